// The page: what is drawn or chosen goes to the server, what the networks see comes back.

import { ask, oneAtATime } from "./api.js";
import { showBars } from "./bars.js";
import { Choice } from "./choice.js";
import { find, make } from "./dom.js";
import { offerExamples } from "./examples.js";
import { drawByKeys } from "./keyboard.js";
import { paint } from "./pixels.js";
import { Sheet } from "./sheet.js";
import { Lesson } from "./teach.js";
import { Tray } from "./tray.js";
import { a, counted, sentence, thousands } from "./words.js";

const SETTLED = 250; // milliseconds without a change, after which the sentence is said
const START = "Draw a digit, and see what the network reads.";
const shown = { index: null, answer: null }; // the test image on the sheet, and the last answer
let settling = 0;

/** Say a sentence, once nothing has changed for a while. */
function say(words, isQuiet = false) {
  clearTimeout(settling);
  settling = setTimeout(() => {
    const place = find("#sentence"), spoken = make("p", {}, ...[words].flat());
    if (place.textContent !== spoken.textContent) place.replaceChildren(...spoken.childNodes);
    place.classList.toggle("quiet", isQuiet);
  }, SETTLED);
}

function warn(words) {
  find("#trouble").hidden = !words;
  find("#trouble").textContent = words ?? "";
}

const look = oneAtATime(async () => {
  find("#hint").hidden = !sheet.isBlank;
  find("#undo").disabled = find("#clear").disabled = sheet.isBlank && shown.index === null;
  const names = choice.names, strength = choice.strength;
  if (sheet.isBlank && shown.index === null) return showAnswer(null, names, strength);
  const picture = shown.index === null ? { strokes: sheet.strokes } : { index: shown.index };
  try {
    const answer = await ask("predict", { ...picture, adapters: names, strength });
    if (!sheet.isBlank || shown.index !== null) showAnswer(answer, names, strength); // not cleared meanwhile
  } catch (error) {
    say(error.message, true);
  }
});

function showAnswer(answer, names, strength) {
  shown.answer = answer;
  if (answer && answer.index !== null) sheet.show(answer.pixels);
  paint(find("#seen"), answer?.pixels ?? null);
  find("#seen").ariaLabel = `What the network sees: ${answer?.pixels ? "the digit, scaled and centred" : "nothing yet"}`;
  showBars(answer, names);
  for (const button of find("#labels").querySelectorAll("button")) button.disabled = !canBeLabelled();
  if (answer === null) say(START, true);
  else say(answer.problem ?? sentence(answer, names, strength), answer.problem !== null);
}

const canBeLabelled = () => Boolean(shown.answer?.pixels) && shown.index === null;

async function putAside(label) {
  if (!canBeLabelled()) { say("Draw a digit first.", true); return; }
  const strokes = sheet.strokes;
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
  find("#about").textContent = `${facts.run} · ${facts.dataset === "mnist" ? "MNIST" : "scikit-learn's digits"} · `
    + `the base gets ${thousands(facts.base_errors)} of ${thousands(facts.test)} test images wrong`;
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
