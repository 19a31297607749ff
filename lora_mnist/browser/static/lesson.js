// What a lesson taught, and its side effects.

const GOOD = ["learnt"], BAD = ["side effect", "not learnt", "no scale"]; // kinds of verdict

function showLesson(lesson, verdict) {
  const tone = GOOD.includes(verdict.kind) ? "good" : BAD.includes(verdict.kind) ? "bad" : "";
  const { unseen, val } = lesson, one = unseen ?? lesson;
  const how = unseen ? "each tested with an adapter that has not seen it" : "all seen in training";
  const drawings = card("Drawings that are right", one.before, one.after, unseen?.images ?? sum(lesson.drawings), 1, how);
  const cards = make("dl", {}, drawings);
  const heldBack = "of the data set, held back to decide on";
  if (val) cards.append(card("Wrong images on val", val.before, val.after, val.images, -1, heldBack));
  const parts = [make("p", { className: `verdict ${tone}` }, verdict.words, " ", verdict.side_effects), cards];
  if (val) {
    const title = make("p", { className: "quiet small" }, "Change of the wrong images on val, digit by digit:");
    parts.push(title, digits(val, verdict.worse));
  }
  if (lesson.scale !== null && lesson.scale !== 1) {
    const kept = `If you keep it, it is kept at ${lesson.scale} of the trained update: the most that the guard allows.`;
    parts.push(make("p", {}, kept));
  }
  find(".lesson-result").replaceChildren(...parts);
}

/** A count before and after; `good` is the direction, 1 or -1, in which it should go. */
function card(title, before, after, all, good, note) {
  const tone = Math.sign(after - before) * good;
  const number = make("dd", { className: "number" }, `${thousands(before)} → ${thousands(after)}`);
  const change = make("span", { className: tone > 0 ? "better" : tone < 0 ? "worse" : "" }, signed(after - before));
  return make("div", {}, make("dt", {}, title), number,
    make("dd", { className: "small" }, change, ` of ${thousands(all)}`), make("dd", { className: "quiet small" }, note));
}

/** Red is a digit that is worse beyond chance. */
function digits(val, worse) {
  const change = val.broken.map((broken, digit) => broken - val.fixed[digit]);
  return make("ol", { className: "digits" }, ...change.map((count, digit) =>
    make("li", {}, make("b", {}, digit), make("span", { className: worse.includes(digit) ? "worse" : "quiet" }, signed(count)))));
}

const signed = (count) => (count > 0 ? `+${thousands(count)}` : count < 0 ? `−${thousands(-count)}` : "±0");
