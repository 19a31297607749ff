// Makes the page alive: a slider over the measured strengths, images behind the counts, tables that sort.
// The page is complete without it. Every number it shows is in the page's data, which comes from the run's documents and logits.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const sheet = document.getElementById("sheet");
const SIDE = 28, COLUMNS = data.columns, AT_ONCE = 48;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Strength ------------------------------------------------------------------------------------------------------------

const signed = count => count > 0 ? `+${count.toLocaleString("en")}` : count < 0 ? `−${(-count).toLocaleString("en")}` : "0";

function startSlider(box) {
  const name = box.dataset.adapter, points = data.adapters[name].strengths;
  const base = points.find(point => point.strength === 0), section = box.closest("section");
  const changes = [...section.querySelectorAll("[data-change], [data-digit]")];
  const kept = changes.map(part => part.className); // colours of what was tested, which is the adapter as it was kept
  const input = box.querySelector("input");
  const marks = [...document.querySelectorAll(`[data-plot^="${CSS.escape(name)}/"] .mark[data-strength]`)];
  const trade = document.querySelector(`[data-plot="${CSS.escape(name)}/trade"] svg`);
  const now = document.createElementNS(trade.namespaceURI, "circle");
  now.setAttribute("class", "now");
  now.setAttribute("r", 5);
  const label = document.createElementNS(trade.namespaceURI, "text");
  label.setAttribute("class", "now-label");
  trade.append(now, label);

  function show() {
    const point = points[input.value];
    for (const key of ["strength", "missed", "false_alarms", "errors"]) {
      box.querySelector(`.${key}`).textContent = point[key].toLocaleString("en");
    }
    const asKept = point.strength === 1;
    for (const part of section.querySelectorAll("[data-count]")) part.textContent = point[part.dataset.count].toLocaleString("en");
    changes.forEach((part, i) => {
      const {change, digit} = part.dataset;
      part.textContent = signed(change ? point[change] - base[change] : point.wrong[digit] - base.wrong[digit]);
      part.className = asKept ? kept[i] : "quiet";
    });
    for (const part of section.querySelectorAll("[data-share]")) {
      part.textContent = `${(100 * point[part.dataset.share] / part.dataset.of).toFixed(2)}\u00a0%`;
    }
    section.querySelector(".not-as-kept").hidden = asKept;
    for (const part of section.querySelectorAll(".as-kept")) part.style.visibility = asKept ? "" : "hidden";
    input.setAttribute("aria-valuetext", `${point.strength}: ${point.missed} missed, ${point.false_alarms} false alarms, ${point.errors} errors`);
    for (const mark of marks) {
      const here = mark.dataset.strength === String(point.strength);
      mark.classList.toggle("at", here);
      if (!here || !trade.contains(mark)) continue;
      for (const axis of ["cx", "cy"]) now.setAttribute(axis, mark.getAttribute(axis));
      const x = Number(mark.getAttribute("cx")), onLeft = x > trade.viewBox.baseVal.width / 2;
      label.setAttribute("x", x + (onLeft ? -6 : 6));
      label.setAttribute("y", mark.getAttribute("cy") - 17);  // above the ring, and mostly above the curve
      label.setAttribute("text-anchor", onLeft ? "end" : "start");
      label.textContent = `strength ${point.strength}`;
    }
  }

  input.addEventListener("input", show);
  box.hidden = false;
  show();
}

// Images --------------------------------------------------------------------------------------------------------------

function surely(percent) {
  return percent === 0 ? "<\u00a01\u00a0%" : percent === 100 ? ">\u00a099\u00a0%" : `${percent}\u00a0%`;
}

function taken(guess, label) {
  if (guess.prediction === label) return [`right, ${surely(guess.confidence)} sure`];
  const rest = `, ${surely(guess.confidence)} sure; the ${label} gets ${surely(guess.probability)}`;
  return ["taken for a ", element("b", {}, String(guess.prediction)), rest];
}

// the images of an adapter as objects; see `_data_for_script` in page.py for how they are packed
function unpack(row) {
  const [index, label, agreed] = data.images[row[0]];
  const guess = at => ({prediction: row[at], confidence: row[at + 1], probability: row[at + 2]});
  const before = guess(1), after = guess(4);
  const kind = after.prediction === label ? "fixed" : before.prediction === label ? "broken" : "wrong";
  return {place: row[0], index, label, agreed, before, after, kind};
}

function picture(image) {
  const canvas = element("canvas", {width: SIDE, height: SIDE});
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Test image ${image.index}, a ${image.label}`);
  const [x, y] = [image.place % COLUMNS, Math.floor(image.place / COLUMNS)];
  canvas.getContext("2d").drawImage(sheet, x * SIDE, y * SIDE, SIDE, SIDE, 0, 0, SIDE, SIDE);
  return canvas;
}

function caption(image) {
  const line = () => element("br");
  return [
    element("b", {}, `A ${image.label}`), " ", element("span", {className: "quiet"}, `#${image.index}`), line(),
    "before: ", ...taken(image.before, image.label), line(),
    "after: ", ...taken(image.after, image.label),
    ...(image.agreed === null ? [] : [line(), element("span", {className: "bad"}, `label doubtful: ${image.agreed} of 5 people agree`)]),
  ];
}

function enlarge(image) {
  const dialog = document.getElementById("large");
  const close = element("button", {type: "button", onclick: () => dialog.close()}, "Close");
  dialog.replaceChildren(picture(image), element("p", {}, ...caption(image)), close);
  dialog.showModal();
}

// `cell` is {matrix, row, column}, or null for all of them
function isIn(image, cell) {
  if (!cell) return true;
  if (image.label !== cell.row) return false;
  const [before, after] = [image.before, image.after].map(guess => guess.prediction === cell.column);
  return cell.matrix === "before" ? before : cell.matrix === "after" ? after : before !== after;
}

const CELLS = {before: "before", after: "after", change: "before or after, but not both"};

function startGallery(box) {
  const name = box.dataset.adapter, images = data.adapters[name].predictions.map(unpack);
  const tables = [...document.querySelectorAll(`table[data-adapter="${CSS.escape(name)}"]`)];
  const list = box.querySelector(".images"), more = box.querySelector(".more");
  const digit = box.querySelector(".digit"), kinds = [...box.querySelectorAll("[data-kind]")];
  let cell = null, kind = "", shown = AT_ONCE;

  function show() {
    const found = images.filter(image => isIn(image, cell) && (!kind || image.kind === kind)
      && (digit.value === "" || image.label === Number(digit.value)));
    list.replaceChildren(...found.slice(0, shown).map(image =>
      element("li", {}, element("button", {type: "button", onclick: () => enlarge(image)}, picture(image), ...caption(image)))));
    const where = cell ? `true digit ${cell.row}, taken for ${cell.column} ${CELLS[cell.matrix]}` : "wrong before or after";
    box.querySelector(".how-many").textContent = `${Math.min(shown, found.length)} of ${found.length} images here: ${where}.`
      + (cell && cell.row === cell.column ? " Images that were right both times are not on this page." : "");
    more.hidden = found.length <= shown;
    for (const button of tables.flatMap(table => [...table.querySelectorAll("button")])) {
      button.setAttribute("aria-pressed", String(cell !== null && cell.button === button));
    }
    for (const button of kinds) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  }

  function choose(change) {
    change();
    shown = AT_ONCE;
    show();
  }

  for (const table of tables) {
    for (const td of table.querySelectorAll("td")) {
      const here = {matrix: table.dataset.matrix, row: td.parentNode.rowIndex - 1, column: td.cellIndex - 1};
      if (!images.some(image => isIn(image, here))) continue;
      here.button = element("button", {type: "button"}, td.textContent);
      here.button.setAttribute("aria-label", `${td.title}; show images`);
      here.button.setAttribute("aria-pressed", "false");
      here.button.addEventListener("click", () => {
        choose(() => { cell = here; kind = ""; digit.value = ""; });
        box.scrollIntoView({block: "nearest"});
      });
      td.replaceChildren(here.button);
    }
  }
  kinds.forEach(button => button.addEventListener("click", () => choose(() => { kind = button.dataset.kind; cell = null; })));
  digit.addEventListener("change", () => choose(() => { cell = null; }));
  more.addEventListener("click", () => { shown += AT_ONCE; show(); });
  box.hidden = false;  // empty until something is chosen
}

// Tables --------------------------------------------------------------------------------------------------------------

function valueOf(row, column) {
  const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent;
  const number = parseFloat(text.trim().replaceAll(",", "").replace("−", "-"));
  return Number.isNaN(number) ? text.trim() : number;
}

function compare(one, other) {
  if (typeof one === typeof other) return typeof one === "number" ? one - other : one.localeCompare(other);
  return typeof one === "number" ? -1 : 1;
}

// a phone folds each row into lines, which then need the names of their columns
function startFolding(table) {
  const names = [...table.tHead.rows[0].cells].map(header => header.textContent);
  for (const row of table.tBodies[0].rows) for (const cell of row.cells) cell.dataset.label = names[cell.cellIndex];
  table.classList.add("named");
}

function startTable(table) {
  const headers = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  headers.forEach((header, column) => {
    const button = element("button", {type: "button"}, ...header.childNodes);
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const way = header.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      headers.forEach(other => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", way);
      const rows = [...body.rows].sort((a, b) => compare(valueOf(a, column), valueOf(b, column)));
      body.append(...(way === "ascending" ? rows : rows.reverse()));
    });
  });
}

document.querySelectorAll(".slider").forEach(startSlider);
document.querySelectorAll("table.folds").forEach(startFolding);
document.querySelectorAll("table.sortable").forEach(startTable);
if (sheet) sheet.decode().then(() => document.querySelectorAll(".gallery").forEach(startGallery));

// a link to what is folded opens it
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
if (location.hash) unfold();
