// What each adapter did on all test images, as the run has it in its report.

/** A list of counts before and after, and the verdict, for each adapter that has them. */
function showFacts(adapters, test) {
  const known = adapters.filter((one) => one.before);
  find("#facts").hidden = !known.length;
  find("#facts-test").textContent = thousands(test);
  find("#facts .results").replaceChildren(...known.map(factsOf));
}

function factsOf(adapter) {
  const { before, after, digit, verdict } = adapter;
  const rows = [
    [`Missed ${digit}s`, "missed"],
    [`False alarms: others taken for ${a(digit)}`, "false_alarms"],
    ["Wrong images in all", "errors"],
  ];
  const change = (count) => (count ? `${count < 0 ? "−" : "+"}${thousands(Math.abs(count))}` : "0");
  const cells = (key) => [before[key], after[key]].map((count) => make("td", {}, thousands(count)));
  const tone = (more) => (more < 0 ? "better" : more > 0 ? "worse" : "");
  const body = rows.map(([title, key]) => {
    const more = after[key] - before[key], changed = make("td", { className: tone(more) }, change(more));
    return make("tr", {}, make("th", { scope: "row" }, title), ...cells(key), changed);
  });
  const head = ["", adapter.on_top_of.length ? "before" : "base", "with it", "change"].map((title) => (
    title ? make("th", { scope: "col" }, title) : make("td")));
  return make("article", {}, make("h3", {}, adapter.name), make("p", { className: "quiet small" }, adapter.size),
    make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)),
    make("p", { className: `verdict ${adapter.outcome}` }, verdict));
}
