// Test images: by their number, or the next one that a network gets wrong.

import { ask } from "./api.js";
import { find } from "./dom.js";

const form = find("#examples form"), index = find("#index"), note = find("#examples [role=status]");

/** `show(index)` shows a test image; `choice` says which adapters are on. */
export function offerExamples(count, choice, show) {
  index.max = count - 1;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    note.textContent = "";
    show(Number(index.value));
  });
  let last = -1;
  for (const button of document.querySelectorAll("#examples [data-which]")) {
    button.addEventListener("click", async () => {
      const which = button.dataset.which;
      if (which === "adapters-break" && !choice.names.length) { note.textContent = "No adapter is on."; return; }
      note.textContent = "";
      try {
        const found = await ask("search", { which, after: last, adapters: choice.names, strength: choice.strength });
        if (found.index === null) { note.textContent = "There is none."; return; }
        last = index.value = found.index;
        await show(found.index);
      } catch (error) {
        note.textContent = error.message;
      }
    });
  }
}
