// Sentences.

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

/** What the base sees, and what that is with the adapters of `names` at `strength`. */
export function sentence(answer, names, strength) {
  const { base, adapted } = answer;
  const truth = answer.index === null ? "" : `Test image ${thousands(answer.index)} is ${a(answer.label)}. `;
  const first = `The base sees ${a(base.digit)} (${percent(base.probabilities[base.digit])})`;
  if (!adapted) return `${truth}${first}.`;
  const how = `with ${names.join(" and ")}${strength === 1 ? "" : ` at ${strength}`}`;
  const sure = `(${percent(adapted.probabilities[adapted.digit])})`;
  if (adapted.digit === base.digit) return `${truth}${first}; ${how} it is still ${a(adapted.digit)} ${sure}.`;
  return `${truth}${first}; ${how} it is ${a(adapted.digit)} ${sure}.`;
}
