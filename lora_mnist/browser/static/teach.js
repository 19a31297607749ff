// The lesson: begin it, follow it, decide on it.

const start = find("#start"), empty = find("#empty"), running = find("#running"), decision = find("#decision");
const outcome = find("#outcome"), bar = find("progress"), curve = find(".loss polyline"), nameField = find("#name");
const UNKEPT = "this lesson"; // what the page calls an adapter that is not kept yet
const TAB = (sessionStorage.lesson ??= Math.random().toString(36).slice(2)); // this tab, also when it is loaded again
const OVER = { cancelled: "Cancelled. Nothing was kept.", discarded: "Discarded. Nothing was kept." };

class Lesson {
  /** `tray` has the drawings, `lost(words)` is called when the server ends. */
  constructor(tray, lost) {
    this.tray = tray;
    this.phase = null; // nothing was heard yet
    this.losses = [];
    start.addEventListener("click", () => this.do("start", { drawings: tray.drawings, tab: TAB }));
    find("#cancel").addEventListener("click", () => this.do("discard", {}));
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
    const before = this.phase, phase = (this.phase = state.phase), isOurs = state.tab === TAB;
    const isRunning = phase === "starting" || phase === "training", isOpen = phase === "taught" || phase === "keeping";
    running.hidden = !isRunning;
    decision.hidden = !isOpen;
    start.hidden = isRunning || isOpen;
    find("#whose").hidden = isOurs || !(isRunning || isOpen);
    this.offer();
    for (const button of decision.querySelectorAll("button")) button.disabled = phase === "keeping";
    if (isRunning) this.showProgress(state);
    if (phase === "taught" && before !== "taught" && before !== "keeping") this.open(state, isOurs);
    if (phase === "taught" || phase === "failed") this.say(state.problem ?? "", true);
    else if (phase === "keeping") this.say("Saving …");
    else if (before === null) this.say("");
    else if (phase === "kept") this.say(isOurs ? `Kept as ${state.name}. It is on now.` : `Another tab kept ${state.name}.`);
    else this.say(OVER[phase] ?? "");
    if (phase === "kept" && before !== null) readRun(isOurs ? [state.name] : choice.names);
    else if (!isOpen && choice.adapters.has(UNKEPT)) this.withdraw();
  }

  /** Take the adapter that was not kept out of the list again. */
  withdraw() {
    const others = choice.names.filter((name) => name !== UNKEPT);
    readRun(others.length ? others : held.on);
  }

  /** What the buttons below the tray can do now. */
  offer() {
    const count = this.tray.drawings.length;
    start.disabled = count === 0;
    start.textContent = count ? `Teach ${counted(count, "drawing")}` : "Teach";
    empty.hidden = count === 0 || start.hidden;
  }

  showProgress({ progress }) {
    const done = progress ? progress.step / progress.steps : 0;
    if (progress) this.losses.push([done, progress.loss]);
    else this.losses = [];
    bar.value = done;
    find(".how-far").textContent = progress ? howFar(progress) : "Opening the run …";
    const most = Math.max(...this.losses.map(([, loss]) => loss), 0);
    curve.setAttribute("points", this.losses.map(([x, loss]) => `${100 * x},${30 - 28 * (loss / most)}`).join(" "));
  }

  /** Show the result, and offer the adapter, so that it can be tried. */
  open(state, isOurs) {
    showLesson(state.lesson, state.verdict);
    for (const part of document.querySelectorAll(".may-be-kept")) part.hidden = state.lesson.scale === null;
    if (isOurs) decision.querySelector("h3").focus();
    readRun(isOurs && state.lesson.scale !== null ? [UNKEPT] : choice.names);
  }
}

const howFar = ({ step, steps, loss, seconds_left }) => (
  `Step ${thousands(step)} of ${thousands(steps)} · loss ${loss.toFixed(2)} · ${Math.ceil(seconds_left)} s left`);

/** Put what is on the sheet into the tray, and make room for the next. */
function putAside(label) {
  const { pixels, problem } = subject;
  if (!pixels || subject.label !== null) { say(problem ?? "Draw a digit first.", true); return; }
  drawings.add({ pixels: hexOf(pixels), label });
  sheet.clear();
  requestAnimationFrame(() => say(`Put aside as ${a(label)}: ${counted(drawings.drawings.length, "drawing")}.`));
  ask("teaching/ready", {}).catch((error) => warn(error.message));
}

/** Offer the adapters that the run has now, and the one that waits for a decision; `on` are the names of those that are on. */
async function readRun(on) {
  try {
    const run = await ask("run");
    nameField.value = run.taught;
    offer(run.adapters, on);
  } catch (error) {
    warn(error.message);
  }
}

let lesson = null;
const drawings = new Tray(() => lesson?.offer());
for (let digit = 0; digit < 10; digit++) {
  const button = make("button", { type: "button", textContent: digit, disabled: true });
  button.addEventListener("click", () => putAside(digit));
  find("#labels").append(button);
}
document.addEventListener("labelled", (event) => putAside(event.detail));
document.addEventListener("looked", () => {
  for (const button of find("#labels").querySelectorAll("button")) button.disabled = !subject.pixels || subject.label !== null;
});
empty.addEventListener("click", () => drawings.empty());
lesson = new Lesson(drawings, warn);
lesson.offer();
