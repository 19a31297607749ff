// A drawing → the 28 × 28 that MNIST would have made of it: datasets/preprocess.py, for clean ink.

const INNER = 20; // pixels of the longer side of the digit
const FAINTEST = 24; // grey levels by which ink stands out at least
const CERTAIN = 0.4, EDGE = 0.05; // of the darkest ink: what certainly is some, and where strokes end
const NOISE = 5; // standard deviations of the paper
const SPECK = 0.03, MAIN = 0.6; // of all the ink: a piece with less is dust; what is left without it
const GAP = 0.2, LIKE = 0.5, SHARE = 0.1; // between two digits; of the larger one's side and ink, to be another

const BLANK = "The picture is blank: nothing in it stands out from its background.";
const severalDigits = (count) => `The picture holds ${count} digits, side by side or one below the other.`;
const smallPieces = (count) => `The picture holds ${count} small pieces, as text or a pattern does, and no digit.`;

/** `{ pixels }`, 784 grey levels of a picture (grey levels, its width and height), or `{ problem }` in words.
 *
 * Loops over all pixels are plain ones: with a function for each pixel a stroke would wait for 30 ms. */
function prepare(grey, width, height) {
  const { ink, noise, peak } = inkOf(grey, width, height);
  const edge = Math.max(EDGE * peak, NOISE * noise), certain = CERTAIN * peak;
  if (peak < FAINTEST || edge > certain) return { problem: BLANK };
  const mask = new Uint8Array(ink.length);
  for (let i = 0; i < ink.length; i++) mask[i] = ink[i] >= edge;
  const { labels, count } = piecesOf(mask, width, height);
  const amounts = new Float64Array(count + 1), isCertain = new Uint8Array(count + 1);
  for (let i = 0; i < ink.length; i++) {
    if (!labels[i]) continue;
    amounts[labels[i]] += ink[i];
    if (ink[i] >= certain) isCertain[labels[i]] = 1;
  }
  const ofDigit = amounts.map((one, piece) => (isCertain[piece] ? one : 0)), all = sum(ofDigit);
  const isKept = ofDigit.map((one) => one > 0 && one >= SPECK * all);
  if (sum(ofDigit.filter((_, piece) => isKept[piece])) < MAIN * all) return { problem: smallPieces(sum(isCertain)) };
  for (let i = 0; i < labels.length; i++) if (!isKept[labels[i]]) labels[i] = 0;
  const digit = cropped(ink, labels, width), digits = countDigits(digit);
  return digits > 1 ? { problem: severalDigits(digits) } : { pixels: centred(scaled(digit)) };
}

/** How far every pixel stands out from the paper, to the side where the ink is; the paper's noise; the most ink. */
function inkOf(grey, width, height) {
  const rim = [], depth = Math.max(Math.floor(Math.min(width, height) / 64), 1);
  for (let i = 0; i < depth; i++) {
    for (let x = 0; x < width; x++) rim.push(grey[i * width + x], grey[(height - 1 - i) * width + x]);
    for (let y = 0; y < height; y++) rim.push(grey[y * width + i], grey[y * width + width - 1 - i]);
  }
  const paper = median(rim), ink = new Float32Array(grey.length);
  let balance = 0, peak = 0;
  for (let i = 0; i < grey.length; i++) balance += (grey[i] - paper) ** 3;
  const side = balance > 0 ? 1 : -1;
  for (let i = 0; i < grey.length; i++) {
    ink[i] = Math.max(side * (grey[i] - paper), 0);
    if (ink[i] > peak) peak = ink[i];
  }
  return { ink, peak, noise: 1.4826 * median(rim.map((one) => Math.abs(one - paper))) };
}

/** Numbers from 1 of the pieces of a mask that hang together, also by a corner, and how many there are. */
function piecesOf(mask, width, height) {
  const labels = new Int32Array(mask.length), open = [];
  let count = 0;
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    labels[start] = ++count;
    open.push(start);
    while (open.length) {
      const at = open.pop(), x = at % width, y = (at - x) / width;
      for (let down = Math.max(y - 1, 0); down <= Math.min(y + 1, height - 1); down++) {
        for (let right = Math.max(x - 1, 0); right <= Math.min(x + 1, width - 1); right++) {
          const next = down * width + right;
          if (mask[next] && !labels[next]) { labels[next] = count; open.push(next); }
        }
      }
    }
  }
  return { labels, count };
}

/** The boxes around what has each number in `labels`, 0 apart: where they end, `width` and `height`, by number. */
function boxesOf(labels, width) {
  const boxes = new Map();
  for (let i = 0; i < labels.length; i++) {
    if (!labels[i]) continue;
    const x = i % width, y = (i - x) / width, box = boxes.get(labels[i]);
    if (!box) boxes.set(labels[i], { left: x, top: y, right: x, bottom: y });
    else { // rows come in their order
      if (x < box.left) box.left = x;
      if (x > box.right) box.right = x;
      box.bottom = y;
    }
  }
  for (const box of boxes.values()) Object.assign(box, { width: box.right - box.left + 1, height: box.bottom - box.top + 1 });
  return boxes;
}

const longer = (box) => Math.max(box.width, box.height);

/** What lies in the box around all pieces. */
function cropped(ink, labels, width) {
  const boxes = [...boxesOf(labels, width).values()], most = (key, choose) => choose(...boxes.map((one) => one[key]));
  const left = most("left", Math.min), top = most("top", Math.min);
  const across = most("right", Math.max) - left + 1, down = most("bottom", Math.max) - top + 1, size = across * down;
  const inside = { width: across, height: down, ink: new Float32Array(size), labels: new Int32Array(size) };
  for (let y = 0; y < down; y++) for (let x = 0; x < across; x++) {
    const from = (top + y) * width + left + x, to = y * across + x;
    inside.ink[to] = ink[from];
    inside.labels[to] = labels[from];
  }
  return inside;
}

/** How many groups of pieces stand apart, each as large as a digit beside the others. */
function countDigits({ ink, labels, width, height }) {
  const boxes = boxesOf(labels, width);
  if (boxes.size === 1) return 1;
  const reach = GAP * Math.max(...[...boxes.values()].map(longer)) / 2;
  const groups = piecesOf(grown(labels, width, height, reach), width, height).labels;
  labels.forEach((label, i) => { if (!label) groups[i] = 0; });
  const amounts = new Map();
  groups.forEach((group, i) => { if (group) amounts.set(group, (amounts.get(group) ?? 0) + ink[i]); });
  const found = [...boxesOf(groups, width)].map(([group, box]) => ({ side: longer(box), amount: amounts.get(group) }));
  const side = Math.max(...found.map((one) => one.side)), amount = Math.max(...found.map((one) => one.amount));
  return found.filter((one) => one.side >= LIKE * side && one.amount >= SHARE * amount).length;
}

/** A mask of what is no farther than `reach` from a piece. */
function grown(labels, width, height, reach) {
  const mask = new Uint8Array(labels.length), rows = Math.floor(reach);
  const isInside = (i) => [i - 1, i + 1, i - width, i + width].every((beside) => labels[beside]);
  labels.forEach((label, i) => {
    if (!label) return;
    mask[i] = 1;
    if (isInside(i)) return; // what it reaches, its neighbours reach too
    const x = i % width, y = Math.floor(i / width);
    for (let down = Math.max(-rows, -y); down <= Math.min(rows, height - 1 - y); down++) {
      const half = Math.floor(Math.sqrt(reach * reach - down * down)), row = (y + down) * width;
      mask.fill(1, row + Math.max(x - half, 0), row + Math.min(x + half, width - 1) + 1);
    }
  });
  return mask;
}

/** The digit with a longer side of `INNER` pixels, each the mean of the area it covers, the brightest at 255. */
function scaled({ ink, labels, width, height }) {
  const [across, down] = [width, height].map((side) => Math.max(roundEven(INNER * side / Math.max(width, height)), 1));
  const columns = sharesOf(width, across), rows = sharesOf(height, down), small = new Float64Array(across * down);
  const part = new Float64Array(across); // one row of the drawing, already as narrow
  for (let y = 0; y < height; y++) {
    part.fill(0);
    columns.forEach((shares, k) => shares.forEach(([x, share]) => {
      if (labels[y * width + x]) part[k] += share * ink[y * width + x];
    }));
    rows.forEach((shares, k) => shares.forEach(([line, share]) => {
      if (line === y) part.forEach((one, x) => { small[k * across + x] += share * one; });
    }));
  }
  const brightest = largest(small);
  return { width: across, height: down, grey: small.map((one) => one * 255 / brightest) };
}

/** Of each of `after` equal parts: which of `before` parts it covers, and how much of it each makes up. */
function sharesOf(before, after) {
  return Array.from({ length: after }, (_, k) => {
    const start = k * before / after, end = (k + 1) * before / after, found = [];
    for (let part = Math.floor(start); part < Math.min(end, before); part++) {
      const overlap = Math.min(end, part + 1) - Math.max(start, part);
      if (overlap > 0) found.push([part, Math.fround(overlap * after / before)]);
    }
    return found;
  });
}

/** 784 grey levels with the centre of mass in the middle, as far as there is room. */
function centred({ width, height, grey }) {
  const all = sum(grey), pixels = new Uint8Array(SIDE * SIDE);
  const middle = (place) => grey.reduce((total, one, i) => total + one * place(i), 0) / all;
  const start = (centre, side) => Math.min(Math.max(roundEven(SIDE / 2 - centre), 0), SIDE - side);
  const left = start(middle((i) => i % width), width), top = start(middle((i) => Math.floor(i / width)), height);
  grey.forEach((one, i) => { pixels[(top + Math.floor(i / width)) * SIDE + left + i % width] = roundEven(one); });
  return pixels;
}

/** As Python rounds: a half goes to the even neighbour. */
function roundEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 ? below + 1 : below;
}

const sum = (values) => values.reduce((one, other) => one + other, 0);

const largest = (values) => values.reduce((one, other) => Math.max(one, other), 0);

function median(values) {
  const sorted = Float64Array.from(values).sort(), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
