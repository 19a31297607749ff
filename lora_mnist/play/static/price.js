// What a lesson was worth and what it costs.

import { find, make } from "./dom.js";

export function showPrice(price, drawings) {
  find(".price").replaceChildren(make("p", {}, JSON.stringify(price), String(drawings)));
}
