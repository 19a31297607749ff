// Sentences.

/** A share as whole per cent, but never 0 or 100 for what is neither. */
function percent(share) {
  if (share > 0 && share < 0.005) return "<1 %";
  if (share < 1 && share > 0.995) return ">99 %";
  return `${Math.round(100 * share)} %`;
}

const a = (digit) => (digit === 8 ? "an 8" : `a ${digit}`);

const thousands = (count) => count.toLocaleString("en-US");

/** `1 drawing`, `2 drawings`. */
const counted = (count, word) => `${thousands(count)} ${word}${count === 1 ? "" : "s"}`;

/** What the base sees, and what that is with the adapters of `names` at `strength`: texts and elements. */
function sentence(answer, names, strength) {
  const { base, adapted, label } = answer;
  const truth = label === null ? "" : `Test image ${thousands(answer.index)} is ${a(label)}. `;
  const first = `${truth}The base sees ${a(base.digit)} (${sure(base)})`;
  if (!adapted) return [`${first}.`];
  const how = names.flatMap((name, i) => [i ? " and " : "; with ", make("b", {}, name)]); // never broken at a hyphen
  const strong = strength === 1 ? "" : ` at ${strength}`, still = adapted.digit === base.digit ? "still " : "";
  const became = label === null ? "" : ` ${BECAME[kindOf(base.digit, adapted.digit, label)]}`;
  return [first, ...how, `${strong} it is ${still}${a(adapted.digit)} (${sure(adapted)}).`, became];
}

const BECAME = { fixed: "Fixed.", broken: "Broken.", wrong: "Both are wrong.", right: "Both are right." };

/** What became of an image: fixed, broken, wrong (both times) or right (both times). */
function kindOf(before, after, label) {
  if (before === label) return after === label ? "right" : "broken";
  return after === label ? "fixed" : "wrong";
}

const sure = (seen) => percent(seen.probabilities[seen.digit]);
