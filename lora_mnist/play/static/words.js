// Sentences.

import { make } from "./dom.js";

/** A share as whole per cent, but never 0 or 100 for what is neither. */
export function percent(share) {
  if (share > 0 && share < 0.005) return "<1 %";
  if (share < 1 && share > 0.995) return ">99 %";
  return `${Math.round(100 * share)} %`;
}

export const a = (digit) => (digit === 8 ? "an 8" : `a ${digit}`);

export const thousands = (count) => count.toLocaleString("en-US");

/** `1 drawing`, `2 drawings`. */
export const counted = (count, word) => `${thousands(count)} ${word}${count === 1 ? "" : "s"}`;

/** What the base sees, and what that is with the adapters of `names` at `strength`: texts and elements. */
export function sentence(answer, names, strength) {
  const { base, adapted } = answer;
  const truth = answer.index === null ? "" : `Test image ${thousands(answer.index)} is ${a(answer.label)}. `;
  const first = `${truth}The base sees ${a(base.digit)} (${sure(base)})`;
  if (!adapted) return [`${first}.`];
  const how = names.flatMap((name, i) => [i ? " and " : "; with ", make("b", {}, name)]); // never broken at a hyphen
  const strong = strength === 1 ? "" : ` at ${strength}`, still = adapted.digit === base.digit ? "still " : "";
  return [first, ...how, `${strong} it is ${still}${a(adapted.digit)} (${sure(adapted)}).`];
}

const sure = (sight) => percent(sight.probabilities[sight.digit]);
