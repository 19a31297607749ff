// The sentence above all, and what went wrong.

const SETTLED = 250; // milliseconds without a change, after which the sentence is said
let settling = 0;

/** Say a sentence, a text or a list of texts and elements, once nothing has changed for a while. */
function say(words, isQuiet = false) {
  clearTimeout(settling);
  settling = setTimeout(() => {
    const place = find("#sentence"), spoken = make("p", {}, ...[words].flat());
    if (place.textContent !== spoken.textContent) place.replaceChildren(...spoken.childNodes);
    place.classList.toggle("quiet", isQuiet);
  }, SETTLED);
}

/** Say what went wrong at once; null: nothing any more. */
function warn(words) {
  find("#trouble").hidden = !words;
  find("#trouble").textContent = words ?? "";
}
