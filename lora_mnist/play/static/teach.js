// The lesson: begin it, follow it, decide on it.

import { ask, follow } from "./api.js";
import { find } from "./dom.js";
import { showLesson } from "./lesson.js";
import { counted, thousands } from "./words.js";

const start = find("#start"), empty = find("#empty"), running = find("#running"), decision = find("#decision");
const outcome = find("#outcome"), bar = find("progress"), curve = find(".loss polyline"), nameField = find("#name");
const OVER = { cancelled: "Cancelled. Nothing was kept.", discarded: "Discarded. Nothing was kept." };

export class Lesson {
  /** `tray` has the drawings, `kept(name)` is called when there is a new adapter, `lost(words)` when the server ends. */
  constructor(tray, kept, lost) {
    this.tray = tray;
    this.kept = kept;
    this.phase = null; // nothing was heard yet
    this.losses = [];
    start.addEventListener("click", () => this.do("start", { drawings: tray.drawings }));
    find("#cancel").addEventListener("click", () => this.do("cancel", {}));
    find("#discard").addEventListener("click", () => this.do("discard", {}));
    find(".keep").addEventListener("submit", (event) => {
      event.preventDefault();
      this.do("keep", { name: nameField.value });
    });
    follow((state) => this.show(state), lost);
  }

  async do(what, body) {
    try {
      await ask(`teaching/${what}`, body);
    } catch (error) {
      this.say(error.message, true);
    }
  }

  say(words, isBad = false) {
    outcome.textContent = words;
    outcome.classList.toggle("worse", isBad);
  }

  /** How the teaching stands, as the server says. */
  show(state) {
    const before = this.phase, phase = (this.phase = state.phase);
    const isRunning = phase === "starting" || phase === "training", isOpen = phase === "taught" || phase === "keeping";
    running.hidden = !isRunning;
    decision.hidden = !isOpen;
    start.hidden = isRunning || isOpen;
    this.offer();
    for (const button of decision.querySelectorAll("button")) button.disabled = phase === "keeping";
    if (isRunning) this.showProgress(state);
    if (phase === "taught" && before !== "taught" && before !== "keeping") this.open(state);
    if (phase === "taught" || phase === "failed") this.say(state.problem ?? "", true);
    else if (phase === "keeping") this.say("Saving …");
    else if (phase === "kept" && before !== null) this.say(`Kept as ${state.name}. It is on now.`);
    else this.say(before === null ? "" : OVER[phase] ?? "");
    if (phase === "kept" && before !== null) this.kept(state.name);
  }

  /** What the buttons below the tray can do now. */
  offer() {
    const count = this.tray.drawings.length;
    start.disabled = count === 0;
    start.textContent = count ? `Teach ${counted(count, "drawing")}` : "Teach";
    empty.hidden = count === 0 || start.hidden;
  }

  showProgress(state) {
    if (state.step === 0) this.losses = [];
    else this.losses.push([state.step / state.steps, state.loss]);
    bar.value = state.steps ? state.step / state.steps : 0;
    find(".how-far").textContent = state.steps ? howFar(state) : "Opening the run …";
    const most = Math.max(...this.losses.map(([, loss]) => loss), 0);
    curve.setAttribute("points", this.losses.map(([x, loss]) => `${100 * x},${30 - 28 * (loss / most)}`).join(" "));
  }

  open(state) {
    showLesson(state.lesson, state.verdict);
    for (const part of document.querySelectorAll(".may-be-kept")) part.hidden = state.lesson.scale === null;
    decision.querySelector("h3").focus();
  }
}

function howFar(state) {
  const left = state.seconds_left === null ? "" : ` · ${Math.ceil(state.seconds_left)} s left`;
  return `Step ${thousands(state.step)} of ${thousands(state.steps)} · loss ${state.loss.toFixed(2)}${left}`;
}
