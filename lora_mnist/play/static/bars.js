// Ten probabilities of the base to the left of the digits, ten of the adapted network to the right.

import { find, make } from "./dom.js";
import { percent } from "./words.js";

const SIDES = ["base", "adapted"];
const table = find("#bars");

function cell(side) {
  return make("td", { className: side }, make("div", { className: "share" }, make("i", { className: "bar" }), make("span")));
}

for (let digit = 0; digit < 10; digit++) {
  const row = table.tBodies[0].insertRow();
  row.append(cell("base"), make("th", { scope: "row", textContent: digit }), cell("adapted"));
}

/** Show what both see, or nothing (null); `names` are the adapters that are on. */
export function showBars(answer, names) {
  table.classList.toggle("empty", !answer?.base);
  table.classList.toggle("alone", !answer?.adapted);
  table.querySelector(".adapted .who").textContent = names.length ? `With ${names.join(" and ")}` : "No adapter is on";
  for (const side of SIDES) showSide(side, answer?.[side] ?? null);
}

function showSide(side, sight) {
  table.querySelector(`thead .${side} .guess`).textContent = sight ? sight.digit : "";
  table.querySelectorAll(`tbody .${side}`).forEach((one, digit) => {
    const share = sight ? sight.probabilities[digit] : 0;
    one.classList.toggle("first", sight?.digit === digit);
    one.querySelector(".bar").style.setProperty("--share", share);
    one.querySelector("span").textContent = share >= 0.005 ? percent(share) : "";
  });
}
