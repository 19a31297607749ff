// Drawing without a pointer: the arrow keys move a pen, the space bar puts it down and lifts it.

const STEP = 25, LEAP = 100;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Let `sheet` be drawn on by keys; `label(digit)` is called for a key from 0 to 9. */
function drawByKeys(sheet, label) {
  let isDown = false;
  const lift = () => { isDown = false; };

  function toggle() {
    sheet.cursor ??= [SIZE / 2, SIZE / 2];
    isDown = !isDown;
    if (isDown) sheet.begin([...sheet.cursor]);
    else sheet.paint();
    say(isDown ? "Pen down." : "Pen up.");
  }

  function move([right, down], step) {
    const [x, y] = sheet.cursor ?? [SIZE / 2, SIZE / 2];
    const within = (value) => Math.min(Math.max(value, 0), SIZE);
    sheet.cursor = [within(x + right * step), within(y + down * step)];
    if (isDown) sheet.extend([[...sheet.cursor]]);
    else sheet.paint();
  }

  sheet.canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || (event.ctrlKey && event.key !== "z")) return;
    if (event.key in ARROWS) move(ARROWS[event.key], event.shiftKey ? LEAP : STEP);
    else if (event.key === " ") toggle();
    else if (event.key === "Backspace" || event.key === "z") { lift(); sheet.undo(); }
    else if (event.key === "Delete" || event.key === "Escape") { lift(); sheet.clear(); }
    else if (/^[0-9]$/.test(event.key)) { lift(); label(Number(event.key)); }
    else return;
    event.preventDefault();
  });
  sheet.canvas.addEventListener("pointerdown", lift);
  sheet.canvas.addEventListener("blur", () => { lift(); sheet.cursor = null; sheet.paint(); });
}
