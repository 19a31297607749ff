// The page: what is drawn or chosen goes through the networks, and what they see is shown.

const START = "Draw a digit, and see what the network reads.";
const ONE_DIGIT = "Draw one digit only: Undo takes back the last stroke.";
const NOTHING = { pixels: null, problem: null, index: null, label: null };

const held = JSON.parse(find("#held").textContent); // the networks and what is known of them
const network = new Network(held);
let subject = NOTHING; // what is on the sheet

/** Show what is on the sheet, and what the networks see in it. */
function look() {
  const { names, on, strength } = choice, isBlank = sheet.isBlank;
  const answer = subject.pixels && {
    ...subject,
    base: prediction(network.logits(subject.pixels)),
    adapted: on.length ? prediction(network.logits(subject.pixels, on, strength)) : null,
  };
  find("#hint").hidden = !isBlank;
  find("#undo").disabled = find("#clear").disabled = isBlank;
  paint(find("#seen"), subject.pixels);
  find("#seen").ariaLabel = `What the network sees: ${subject.pixels ? "the digit, scaled and centred" : "nothing yet"}`;
  showBars(answer, names);
  if (answer) say(sentence(answer, names, strength));
  else say(subject.problem ?? START, true);
  document.dispatchEvent(new Event("looked"));
}

/** Look at strokes; with nothing drawn, at nothing. */
function drawn() {
  subject = { ...NOTHING, ...(sheet.isBlank ? {} : advised(prepareStrokes(sheet.strokes))) };
  look();
}

const advised = (prepared) => (prepared.problem?.includes("digits") ? { problem: `${prepared.problem} ${ONE_DIGIT}` } : prepared);

/** Look at an image in place of strokes. */
function lookAt(image) {
  subject = { ...NOTHING, ...image };
  sheet.show(subject.pixels);
  look();
}

/** A function that runs `work` before the next frame, once however often it is called. */
function onceAFrame(work) {
  let isDue = false;
  return () => {
    if (!isDue) requestAnimationFrame(() => { isDue = false; work(); });
    isDue = true;
  };
}

/** Offer adapters; `on` are the names of those that are on first. */
function offer(adapters, on) {
  choice.offer(adapters, on);
  showFacts(adapters, held.test);
}

async function openFile(file) {
  try {
    const prepared = await prepareFile(file);
    if (prepared.problem) { sheet.clear(); say(prepared.problem, true); } else lookAt(prepared);
  } catch {
    warn(`${file.name} is no picture that this browser can read. Take a PNG, JPEG or WebP.`);
  }
}

const sheet = new Sheet(find("#sheet"), onceAFrame(drawn));
const lookSoon = onceAFrame(look);
const choice = new Choice(() => { lookSoon(); updateGallery(); });
const gallery = new Gallery(held.images, network, choice, lookAt);
let settledGallery = 0;

function updateGallery() {
  clearTimeout(settledGallery);
  settledGallery = setTimeout(async () => { await gallery.update(); showExample(); }, SETTLED);
}

/** As long as nobody has drawn anything, take an image that the adapter fixes: if it can be, one of the digit it is for. */
function showExample() {
  if (subject !== NOTHING || !sheet.isBlank) return;
  const fixed = gallery.images.filter((one) => one.kind === "fixed");
  const example = fixed.find((one) => choice.on.some((adapter) => adapter.digit === one.label)) ?? fixed[0];
  if (example) gallery.take(example);
}

drawByKeys(sheet, (digit) => document.dispatchEvent(new CustomEvent("labelled", { detail: digit }))); // for the playground
find("#undo").addEventListener("click", () => sheet.undo());
find("#clear").addEventListener("click", () => sheet.clear());
find("#file").addEventListener("change", ({ target }) => {
  warn(null);
  if (target.files.length) openFile(target.files[0]);
  target.value = ""; // so that the same one can be opened again
});
offer(held.adapters, held.on);
