// The page: what is drawn or chosen goes to the server, what the networks see comes back.

import { ask, oneAtATime } from "./api.js";
import { showBars } from "./bars.js";
import { Choice } from "./choice.js";
import { find, make } from "./dom.js";
import { offerExamples } from "./examples.js";
import { drawByKeys } from "./keyboard.js";
import { paint } from "./pixels.js";
import { say, warn } from "./say.js";
import { Sheet } from "./sheet.js";
import { Lesson } from "./teach.js";
import { Tray } from "./tray.js";
import { a, counted, sentence, thousands } from "./words.js";

const START = "Draw a digit, and see what the network reads.";
const shown = { index: null }; // the test image on the sheet

const look = oneAtATime(async () => {
  const isBlank = sheet.isBlank && shown.index === null;
  find("#hint").hidden = !isBlank;
  find("#undo").disabled = find("#clear").disabled = isBlank;
  const names = choice.names, strength = choice.strength;
  if (isBlank) return showAnswer(null, names, strength);
  const picture = shown.index === null ? { strokes: sheet.strokes } : { index: shown.index };
  try {
    const answer = await ask("predict", { ...picture, adapters: names, strength });
    const isCurrent = shown.index === answer.index && (shown.index !== null || !sheet.isBlank);
    if (isCurrent) showAnswer(answer, names, strength); // else something else is on the sheet by now
  } catch (error) {
    say(error.message, true);
  }
});

function showAnswer(answer, names, strength) {
  if (answer && answer.index !== null) sheet.show(answer.pixels);
  paint(find("#seen"), answer?.pixels ?? null);
  find("#seen").ariaLabel = `What the network sees: ${answer?.pixels ? "the digit, scaled and centred" : "nothing yet"}`;
  showBars(answer, names);
  for (const button of find("#labels").querySelectorAll("button")) button.disabled = !answer?.pixels || answer.index !== null;
  if (answer === null) say(START, true);
  else say(answer.problem ?? sentence(answer, names, strength), answer.problem !== null);
}

/** Put the drawing into the tray, and make room for the next. */
async function putAside(label) {
  const strokes = sheet.strokes;
  if (!strokes.length) { say("Draw a digit first.", true); return; }
  sheet.clear(); // at once, so that the next one can be drawn
  try {
    const answer = await ask("predict", { strokes });
    if (answer.pixels === null) { sheet.restore(strokes); say(answer.problem, true); return; }
    tray.add({ pixels: answer.pixels, label });
    if (sheet.isBlank) say(`Put aside as ${a(label)}: ${counted(tray.drawings.length, "drawing")}.`);
    await ask("teaching/ready", {});
  } catch (error) {
    warn(error.message);
  }
}

/** Read the run again; `on` are the adapters that are switched on, by default the latest one. */
async function open(on) {
  const facts = await ask("run");
  const usable = facts.adapters.filter((one) => !one.problem), latest = usable.at(-1);
  choice.offer(facts.adapters, on ?? (latest ? [latest.name, ...latest.on_top_of] : []));
  const images = facts.dataset === "mnist" ? "MNIST" : facts.dataset, rare = facts.rare ? `; in training it ${facts.rare}` : "";
  find("#about").textContent = `${facts.run} · ${images} · the base gets ${thousands(facts.base_errors)} of `
    + `${thousands(facts.test)} test images wrong${rare}`;
  find("#name").value = facts.taught;
  look();
  return facts;
}

const sheet = new Sheet(find("#sheet"), () => { shown.index = null; look(); });
const choice = new Choice(look);
let lesson = null;
const tray = new Tray(() => lesson?.offer());

for (let digit = 0; digit < 10; digit++) {
  const button = make("button", { type: "button", textContent: digit, disabled: true });
  button.addEventListener("click", () => putAside(digit));
  find("#labels").append(button);
}
find("#undo").addEventListener("click", () => sheet.undo());
find("#clear").addEventListener("click", () => sheet.clear());
find("#empty").addEventListener("click", () => tray.empty());
drawByKeys(sheet, putAside, (words) => say(words));

try {
  const facts = await open();
  lesson = new Lesson(tray, (name) => open([name]).catch((error) => warn(error.message)), warn);
  lesson.offer();
  offerExamples(facts.test, choice, (index) => { shown.index = index; return look(); });
} catch (error) {
  warn(error.message);
}
