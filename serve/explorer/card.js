// The card of one item, as a dialog: all its facts, its interests to wish for, and what can be done with it.

import { changeItem, deleteItem, getItem, picture, problemBox } from "./api.js";
import { byId, el, money } from "./dom.js";
import { codesOf } from "./results.js";

/** Make the card work; `actions` are those of a list, `opened(itemId)` and `closed()` are called when the card is. */
export function setUpCard({ actions, opened, closed, say }) {
  const dialog = byId("card");
  byId("card-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", closed);

  const fact = (name, value) => (value ? [el("dt", {}, name), el("dd", {}, value)] : []);

  function show(item, model, reply) {
    byId("card-title").textContent = item.title;
    const press = (words, act) => el("button", { type: "button", onclick: act }, words);
    const path = () => { dialog.close(); actions.showPath(item, model, reply); };
    const interests = item.interests.map((name) => el("li", {}, actions.interest(name, model, `card/${name}`)));
    byId("card-body").replaceChildren(
      el("div", { class: "card-head" }, picture(item, model), el("dl", { class: "facts-list" },
        ...fact("Price", item.price !== null && money(item.price, item.currency)),
        ...fact("In lists", item.available ? null : "no, not available"),
        ...fact("Brand", item.brand), ...fact("Categories", item.categories.join(", ")), ...fact("Id", item.item_id))),
      item.description && el("p", { class: "description" }, item.description),
      el("h3", {}, "Interests it serves"),
      interests.length ? el("ul", { class: "chips reasons" }, ...interests) : el("p", { class: "note" }, "No trusted interest."),
      el("h3", {}, "Semantic ID"),
      el("button", { type: "button", class: "path", "aria-label": `Show ${item.sid.join(", ")} in the tree`, onclick: path }, ...codesOf(item.sid)),
      el("div", { class: "row doing" },
        press("Add to cart", () => actions.act("cart", item, reply)),
        press("Bought", () => actions.act("purchase", item, reply))),
      changes(item, model, reply));
  }

  /** What an admin key may do with the item. */
  function changes(item, model, reply) {
    const problem = el("div");
    const change = async (act) => {
      try {
        await act();
        actions.retry();
      } catch (error) {
        problem.replaceChildren(problemBox(error, () => change(act)));
      }
    };
    const turn = async () => {
      const { available } = await changeItem(item.item_id, { available: !item.available });
      await card.open(item.item_id, model, reply);
      byId("card-close").focus();
      say(`${item.title} is ${available ? "available" : "not available"} now`);
    };
    const takeOut = async () => {
      await deleteItem(item.item_id);
      dialog.close();
      say(`${item.title} is taken out`);
    };
    return el("details", { class: "changes" }, el("summary", {}, "Change it"),
      el("p", { class: "note" }, "For all users at once; this needs an admin key. Histories that contain the item work as before."),
      el("div", { class: "row doing" },
        el("button", { type: "button", onclick: () => change(turn) }, item.available ? "Not available" : "Available again"),
        el("button", { type: "button", class: "danger", onclick: () => change(takeOut) }, "Take it out")),
      problem);
  }

  const card = {
    /** Open the card of an item; `reply` is the list it came from, if any. */
    async open(itemId, model, reply) {
      byId("card-title").textContent = itemId;
      byId("card-body").replaceChildren(el("p", { class: "note" }, "Loading"));
      if (!dialog.open) dialog.showModal();
      opened(itemId);
      try {
        show(await getItem(itemId, model), model, reply);
      } catch (error) {
        byId("card-body").replaceChildren(problemBox(error, () => card.open(itemId, model, reply)));
      }
    },
  };
  return card;
}
