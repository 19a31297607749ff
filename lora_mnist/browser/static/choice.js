// Which adapters are on, and how strongly.

const slider = find("#strength");

class Choice {
  /** `changed()` is called when the reader chooses something else. */
  constructor(changed) {
    this.changed = changed;
    this.list = find("#adapters .choices");
    this.adapters = new Map(); // by name, with A and B as numbers
    slider.addEventListener("input", () => { this.tellStrength(); changed(); });
    this.tellStrength();
  }

  get strength() { return Number(slider.value); }

  get names() { return [...this.list.querySelectorAll("input:checked")].map((box) => box.value); }

  /** The adapters that are on. */
  get on() { return this.names.map((name) => this.adapters.get(name)); }

  /** Offer adapters as the page holds them; `on` are the names of those that are on first. */
  offer(adapters, on) {
    this.adapters = new Map(adapters.map((one) => [one.name, unpacked(one)]));
    this.list.replaceChildren(...adapters.map((one) => this.label(one, on.includes(one.name))));
    if (!adapters.length) this.list.append(make("p", { className: "quiet" }, "There is none yet."));
    const first = this.list.querySelector("label:has(:checked)");
    this.list.scrollTop = first ? first.offsetTop - this.list.offsetTop : 0; // a new one may be below what there is room for
    this.changed();
  }

  label(adapter, isOn) {
    const box = make("input", { type: "checkbox", value: adapter.name, checked: isOn, disabled: Boolean(adapter.problem) });
    box.addEventListener("change", () => {
      if (box.checked) this.switchOn(adapter.on_top_of);
      this.changed();
    });
    const below = adapter.on_top_of.length ? `, on top of ${adapter.on_top_of.join(", ")}` : "";
    const text = make("span", {}, adapter.name, make("small", {}, `${adapter.problem ?? adapter.summary}${below}`));
    return make("label", { className: adapter.problem ? "broken" : "" }, box, text);
  }

  /** An adapter that was trained on top of others is meant to be used with them. */
  switchOn(names) {
    for (const box of this.list.querySelectorAll("input:enabled")) box.checked ||= names.includes(box.value);
  }

  tellStrength() {
    const meaning = { 0: ", the base", 1: ", as stored" }[this.strength] ?? "";
    find("#strength-now").textContent = `${this.strength}${meaning}`;
    slider.setAttribute("aria-valuetext", find("#strength-now").textContent);
  }
}
