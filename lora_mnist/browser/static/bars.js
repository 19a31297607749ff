// Ten probabilities of the base to the left of the digits, ten of the adapted network to the right.

const bars = find("#bars");

for (let digit = 0; digit < 10; digit++) {
  const [base, adapted] = ["base", "adapted"].map((side) => make("td", { className: side },
    make("div", { className: "share" }, make("i", { className: "bar" }), make("span"))));
  bars.tBodies[0].insertRow().append(base, make("th", { scope: "row", textContent: digit }), adapted);
}

/** Show what both see, or nothing (null); `names` are the adapters that are on. */
function showBars(answer, names) {
  bars.classList.toggle("empty", !answer?.base);
  bars.classList.toggle("alone", !answer?.adapted);
  bars.querySelector(".adapted .who").textContent = names.length ? `With ${names.join(" and ")}` : "No adapter is on";
  for (const side of ["base", "adapted"]) showSide(side, answer?.[side] ?? null);
}

function showSide(side, seen) {
  bars.querySelector(`thead .${side} .guess`).textContent = seen ? seen.digit : "";
  bars.querySelectorAll(`tbody .${side}`).forEach((one, digit) => {
    const share = seen ? seen.probabilities[digit] : 0;
    one.classList.toggle("first", seen?.digit === digit);
    one.querySelector(".bar").style.setProperty("--share", share);
    one.querySelector("span").textContent = share >= 0.005 ? percent(share) : "";
  });
}
