// Test images, and what becomes of each with the adapters that are on. All of it is computed here.

const AT_ONCE = 8; // images computed in one go, so that a stroke never waits
const KINDS = {
  fixed: "the adapter fixes it", broken: "the adapter breaks it", wrong: "both are wrong", right: "both are right",
};

class Gallery {
  /** `images`: pixels as base64, labels and indices; `show(image)` is called with the one that the reader takes. */
  constructor(images, network, choice, show) {
    const pixels = bytesOf(images.pixels), cut = (i) => pixels.subarray(i * SIDE * SIDE, (i + 1) * SIDE * SIDE);
    this.images = images.labels.map((label, i) => ({ label, index: images.indices[i], pixels: cut(i), kind: null, base: null }));
    Object.assign(this, { network, choice, show, filter: "all", list: find("#thumbs"), run: 0 });
    this.images.forEach((image) => this.list.append(this.thumb(image)));
    for (const button of document.querySelectorAll("#kinds button")) {
      button.addEventListener("click", () => { this.filter = button.dataset.kind; this.tell(); });
    }
    find("#random").addEventListener("click", () => this.pick(this.images));
    find("#random-fixed").addEventListener("click", () => this.pick(this.images.filter((one) => one.kind === "fixed")));
    this.list.addEventListener("keydown", (event) => this.move(event));
    this.tell();
  }

  thumb(image) {
    image.thumb = make("button", { type: "button", tabIndex: -1 }, picture(image.pixels));
    image.thumb.addEventListener("click", () => this.take(image));
    return image.thumb;
  }

  /** Compute all of them with what is on now, a few at a time. Called again, it begins again. */
  async update() {
    const run = ++this.run, { on, strength } = this.choice;
    for (let i = 0; i < this.images.length; i += AT_ONCE) {
      await new Promise((done) => setTimeout(done));
      if (run !== this.run) return;
      for (const image of this.images.slice(i, i + AT_ONCE)) {
        image.base ??= prediction(this.network.logits(image.pixels)).digit;
        const after = on.length ? prediction(this.network.logits(image.pixels, on, strength)).digit : image.base;
        image.kind = kindOf(image.base, after, image.label);
      }
    }
    this.tell();
  }

  /** Show which image is of which kind, and those of the kind that was chosen. */
  tell() {
    const counts = { all: this.images.length };
    for (const { kind } of this.images) if (kind) counts[kind] = (counts[kind] ?? 0) + 1; // null: not computed yet
    for (const button of document.querySelectorAll("#kinds button")) {
      button.ariaPressed = String(button.dataset.kind === this.filter);
      button.querySelector("span").textContent = counts[button.dataset.kind] ?? "";
    }
    for (const image of this.images) {
      image.thumb.className = image.kind ?? "";
      image.thumb.hidden = this.filter !== "all" && image.kind !== this.filter;
      const became = image.kind ? `: ${KINDS[image.kind]}` : "";
      image.thumb.ariaLabel = `Test image ${thousands(image.index)}, ${a(image.label)}${became}`;
    }
    const shown = this.shown;
    find("#no-thumb").hidden = shown.length > 0;
    if (!shown.some((one) => one.thumb.tabIndex === 0)) this.focusable(shown[0]);
    find("#random-fixed").disabled = !counts.fixed;
  }

  get shown() { return this.images.filter((one) => !one.thumb.hidden); }

  /** The one image that Tab leads to; the arrow keys lead to the others. */
  focusable(image) {
    for (const one of this.images) one.thumb.tabIndex = one === image ? 0 : -1;
  }

  move(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key], { shown } = this;
    const next = step && shown[shown.findIndex((one) => one.thumb === document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    this.focusable(next);
    next.thumb.focus();
  }

  pick(images) {
    if (images.length) this.take(images[Math.floor(Math.random() * images.length)]);
  }

  take(image) {
    this.focusable(image);
    this.show(image);
  }
}
