// Elements, always filled by their text and never by markup.

const find = (selector) => document.querySelector(selector);

/** A new element with properties and children, which are elements or texts. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
