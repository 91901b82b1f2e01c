// Wishes for more of an interest, or less: chosen by clicking interests or in words, shown as chips with their weights.

import { byId, el } from "./dom.js";

const MOST = 8;
const STEP = 0.5;
const LIMIT = 10;
const signed = (weight) => `${weight < 0 ? "−" : "+"}${Math.abs(weight)}`;
const same = (one, two) => one.trim().toLowerCase() === two.trim().toLowerCase();

/** Make wishes work; `changed(words)` is called with what happened, `canSteer(model)` says whether a version can be steered. */
export function setUpWishes({ changed, canSteer, say }) {
  let wishes = [];
  const find = (name) => wishes.find((wish) => same(wish.name, name));

  /** Give a wish a weight; 0 takes it away. Says what it is now. */
  function wish(kind, name, weight) {
    const found = find(name);
    if (!found && weight && wishes.length === MOST) return say(`There are ${MOST} wishes already; take one away first`);
    if (!weight) wishes = wishes.filter((other) => other !== found);
    else if (found) wishes = wishes.map((other) => (other === found ? { ...found, weight } : other));
    else wishes = [...wishes, { kind, name, weight }];
    show();
    return changed(weight ? `${weight > 0 ? "More" : "Less"} of ${name} wished, weight ${weight}` : `Wish for ${name} taken away`);
  }

  /** Step over 0, which would be no wish. */
  const stepped = (weight, by) => Math.max(-LIMIT, Math.min(LIMIT, weight + by || by));

  function chip({ kind, name, weight }) {
    const tool = (what, sign, label, act) => el("button", { type: "button", class: "tool", "data-key": `wish/${name}/${what}`, "aria-label": label, title: label, onclick: act }, sign);
    return el("li", { class: weight > 0 ? "more" : "less", "data-wish": name },
      tool("down", "−", `Less of ${name}`, () => wish(kind, name, stepped(weight, -STEP))),
      el("span", { class: "weight" }, signed(weight)),
      el("span", {}, name),
      tool("up", "+", `More of ${name}`, () => wish(kind, name, stepped(weight, STEP))),
      tool("drop", "×", `Take away the wish for ${name}`, () => drop(name)));
  }

  function drop(name) {
    const place = wishes.indexOf(find(name));
    wish("", name, 0);
    const next = byId("wishes").children[Math.min(place, wishes.length - 1)]?.querySelector("[data-key$=drop]");
    (next ?? byId("words")).focus();
  }

  /** Show the chips, and on every button of an interest what is wished of it; what has the focus keeps it. */
  function show() {
    const key = byId("wishes").contains(document.activeElement) ? document.activeElement.dataset.key : null;
    byId("wishes").replaceChildren(...wishes.map(chip));
    if (key) [...byId("wishes").querySelectorAll("button")].find((button) => button.dataset.key === key)?.focus();
    for (const button of document.querySelectorAll("button.interest")) dress(button);
  }

  function dress(button) {
    const name = button.dataset.interest;
    const weight = find(name)?.weight ?? 0;
    button.classList.toggle("more", weight > 0);
    button.classList.toggle("less", weight < 0);
    button.querySelector(".sign").textContent = weight ? signed(weight) : "+";
    button.querySelector(".hidden").textContent = weight > 0 ? ", more wished; turn to less" : weight < 0 ? ", less wished; take the wish away" : ", wish for more";
  }

  /** Wish for more at first, turn to less next, take the wish away last. */
  function turn(name) {
    const weight = find(name)?.weight ?? 0;
    wish("interest", name, weight > 0 ? -weight : weight < 0 ? 0 : 1);
  }

  function inWords(weight) {
    const name = byId("words").value.trim();
    if (!name) return byId("words").focus();
    byId("words").value = "";
    return wish("text", name, weight);
  }

  byId("steer-form").addEventListener("submit", (event) => { event.preventDefault(); inWords(1); });
  byId("less-words").addEventListener("click", () => inWords(-1));

  return {
    list: () => wishes,
    turn,
    /** Take the wishes of an address. */
    set(list) { wishes = list; show(); },
    /** Say above the list whether a version can be steered. */
    offer(model) {
      const can = canSteer(model);
      for (const control of byId("steer-form").elements) control.disabled = !can;
      byId("steer-note").textContent = can ? "" : "This version has no ranker, so interests cannot be wished for.";
      byId("steer-note").hidden = can;
    },
    /** A sign that wishes for an interest by the mouse; by keyboard and for screen readers what it stands in does. */
    sign(name) {
      const sign = el("button", { type: "button", class: "interest tool", "data-interest": name, tabindex: "-1", "aria-hidden": "true", title: `Wish for ${name}`, onclick: () => turn(name) },
        el("span", { class: "hidden" }), el("span", { class: "sign" }));
      dress(sign);
      return sign;
    },
    /** An interest: a button that wishes for it, or its name where the version cannot be steered. */
    interest(name, model, key) {
      if (!canSteer(model)) return el("span", { class: "interest" }, name);
      const button = el("button", { type: "button", class: "interest", "data-interest": name, "data-key": key, onclick: () => turn(name) },
        name, el("span", { class: "hidden" }), el("span", { class: "sign", "aria-hidden": "true" }));
      dress(button);
      return button;
    },
  };
}
