// The sheet: strokes of a mouse, pen, finger or the keyboard, or a test image. It tells when it has changed.

const SIZE = 1000; // coordinates of a stroke go from 0 to this, right and down
const PEN = 84; // the width of a stroke
const NEAR = 5; // points closer to the last one are left out

class Sheet {
  /** `changed(sheet)` is called after every change. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.strokes = [];
    this.image = null; // pixels of a test image in place of strokes
    this.cursor = null; // where the keyboard's pen is
    this.changed = changed;
    this.pointer = null; // the id of the one that draws
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => this.release(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  get isBlank() { return this.strokes.length === 0 && this.image === null; }

  /** Begin a stroke; a test image makes room for it. */
  begin(point) {
    this.image = null;
    this.strokes.push([point]);
    this.tell();
  }

  /** Go on with the last stroke. */
  extend(points) {
    const stroke = this.strokes.at(-1);
    for (const [x, y] of points) {
      const [lastX, lastY] = stroke.at(-1);
      if (Math.hypot(x - lastX, y - lastY) >= NEAR) stroke.push([x, y]);
    }
    this.tell();
  }

  undo() {
    this.strokes.pop();
    this.image = null;
    this.tell();
  }

  clear() {
    this.strokes = [];
    this.image = null;
    this.tell();
  }

  /** Show a test image. */
  show(pixels) {
    this.strokes = [];
    this.image = pixels;
    this.paint();
  }

  tell() {
    this.paint();
    this.changed(this);
  }

  // Pointers ------------------------------------------------------------------------------------------------------

  press(event) {
    if (this.pointer !== null || event.button !== 0) return;
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.begin(this.place(event));
  }

  drag(event) {
    if (event.pointerId !== this.pointer || !this.strokes.length) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.extend((events.length ? events : [event]).map((one) => this.place(one)));
  }

  release(event) {
    if (event.pointerId === this.pointer) this.pointer = null;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const within = (value) => Math.round(Math.min(Math.max(value, 0), 1) * SIZE);
    return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
  }

  // Painting ------------------------------------------------------------------------------------------------------

  paint() {
    const context = this.canvas.getContext("2d"), style = getComputedStyle(this.canvas);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.image !== null) {
      context.imageSmoothingEnabled = false;
      context.drawImage(picture(this.image), 0, 0, this.canvas.width, this.canvas.height);
    }
    const scale = this.canvas.width / SIZE;
    drawStrokes(context, this.strokes, scale, style.getPropertyValue("--pen"));
    if (this.cursor !== null) this.paintCursor(context, scale, style.getPropertyValue("--base"));
  }

  paintCursor(context, scale, colour) {
    const [x, y] = this.cursor;
    context.beginPath();
    context.arc(scale * x, scale * y, scale * PEN / 2, 0, 2 * Math.PI);
    Object.assign(context, { lineWidth: 8 * scale, strokeStyle: colour });
    context.stroke();
  }
}
