// The history: an ordered list that can be sorted and shortened by buttons, so by keyboard too.

import { picture } from "./api.js";
import { byId, el } from "./dom.js";

/** Show the history; `change(items, words)` gets the new list and what happened. */
export function showHistory(items, model, change) {
  const list = byId("history");
  const move = (place, by) => {
    const moved = [...items];
    [moved[place], moved[place + by]] = [moved[place + by], moved[place]];
    change(moved, `${items[place].title} is now number ${place + by + 1}`);
    focusOn(place + by, by < 0 ? "earlier" : "later");
  };
  const remove = (place) => {
    change(items.filter((_, other) => other !== place), `${items[place].title} removed`);
    if (items.length > 1) focusOn(Math.min(place, items.length - 2), "remove");
    else byId("search").focus();
  };
  list.replaceChildren(...items.map((item, place) => el("li", { "data-item": item.item_id, class: item.unknown ? "unknown" : "" },
    picture(item, model),
    el("div", { class: "what" },
      el("span", { class: "title" }, item.title),
      el("span", { class: "note" }, item.unknown ? "not in this catalogue, the model leaves it out" : (item.interests ?? []).slice(0, 2).join(" · ")),
    ),
    el("span", { class: "tools" },
      button("earlier", "↑", `Move ${item.title} earlier`, place === 0, () => move(place, -1)),
      button("later", "↓", `Move ${item.title} later`, place === items.length - 1, () => move(place, 1)),
      button("remove", "×", `Remove ${item.title}`, false, () => remove(place)),
    ))));
  byId("clear").hidden = items.length === 0;
}

function button(name, sign, label, disabled, onclick) {
  return el("button", { type: "button", class: "tool", "data-tool": name, "aria-label": label, title: label, disabled, onclick }, sign);
}

function focusOn(place, tool) {
  const row = byId("history").children[place];
  const wanted = row?.querySelector(`[data-tool="${tool}"]:not(:disabled)`) ?? row?.querySelector("button:not(:disabled)");
  wanted?.focus();
}
