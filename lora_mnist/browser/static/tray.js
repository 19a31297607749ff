// The drawings that were put aside, each with its label. They outlive a reload of the page.

const MAX_DRAWINGS = 500;
const KEY = "lora-mnist tray";
const tray = find("#tray");

/** Pixels are kept and sent as hexadecimal digits. */
const hexOf = (pixels) => Array.from(pixels, (grey) => grey.toString(16).padStart(2, "0")).join("");

const bytesOfHex = (text) => Uint8Array.from(text.match(/../g), (digits) => parseInt(digits, 16));

class Tray {
  /** `changed(tray)` is called after every change, and once at the start. */
  constructor(changed) {
    this.changed = changed;
    this.drawings = JSON.parse(sessionStorage.getItem(KEY) ?? "[]"); // { pixels, label }
    for (const drawing of this.drawings) this.append(drawing);
    changed(this);
  }

  add(drawing) {
    if (this.drawings.length >= MAX_DRAWINGS) return;
    this.drawings.push(drawing);
    this.append(drawing);
    tray.scrollTop = tray.scrollHeight;
    this.tell();
  }

  empty() {
    this.drawings = [];
    tray.replaceChildren();
    this.tell();
  }

  append(drawing) {
    const remove = make("button", { type: "button", textContent: "×", ariaLabel: `Remove drawing of ${a(drawing.label)}` });
    const item = make("li", {}, picture(bytesOfHex(drawing.pixels)), String(drawing.label), remove);
    remove.addEventListener("click", () => {
      const next = item.nextElementSibling ?? item.previousElementSibling;
      this.drawings = this.drawings.filter((one) => one !== drawing);
      item.remove();
      (next?.querySelector("button") ?? find("#sheet")).focus();
      this.tell();
    });
    tray.append(item);
  }

  tell() {
    sessionStorage.setItem(KEY, JSON.stringify(this.drawings));
    this.changed(this);
  }
}
