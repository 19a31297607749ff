// Which adapters are on, and how strongly.

import { find, make } from "./dom.js";

const list = find("#adapters .choices"), slider = find("#strength"), now = find("#strength-now");

export class Choice {
  /** `changed()` is called when the reader chooses something else. */
  constructor(changed) {
    this.changed = changed;
    slider.addEventListener("input", () => { this.tellStrength(); changed(); });
    this.tellStrength();
  }

  get strength() { return Number(slider.value); }

  get names() { return [...list.querySelectorAll("input:checked")].map((box) => box.value); }

  /** Offer adapters; `on` are those that are on first. */
  offer(adapters, on) {
    list.replaceChildren(...adapters.map((one) => this.label(one, on.includes(one.name))));
    if (!adapters.length) list.append(make("p", { className: "quiet" }, "This run has none yet. Teach it one."));
    const first = list.querySelector("label:has(:checked)");
    list.scrollTop = first ? first.offsetTop - list.offsetTop : 0; // a new one may be below what there is room for
  }

  label(adapter, isOn) {
    const box = make("input", { type: "checkbox", value: adapter.name, checked: isOn, disabled: Boolean(adapter.problem) });
    box.addEventListener("change", () => {
      if (box.checked) this.switchOn(adapter.on_top_of);
      this.changed();
    });
    const words = [adapter.problem ?? adapter.summary, ...(adapter.on_top_of.length ? [`on top of ${adapter.on_top_of.join(", ")}`] : [])];
    const text = make("span", {}, adapter.name, make("small", {}, words.filter(Boolean).join(", ")));
    return make("label", { className: adapter.problem ? "broken" : "" }, box, text);
  }

  /** An adapter that was trained on top of others is meant to be used with them. */
  switchOn(names) {
    for (const box of list.querySelectorAll("input:enabled")) box.checked ||= names.includes(box.value);
  }

  tellStrength() {
    const meaning = { 0: ", the base", 1: ", as kept" }[this.strength] ?? "";
    now.textContent = `${this.strength}${meaning}`;
    slider.setAttribute("aria-valuetext", now.textContent);
  }
}
