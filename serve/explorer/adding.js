// The form of a new item: what the endpoint refuses stands beside the field it names.

import { post, Problem, problemBox } from "./api.js";
import { byId, count, el } from "./dom.js";
import { codesOf } from "./results.js";

const FIELDS = ["title", "item_id", "description", "brand", "categories", "price", "currency", "interests", "image_uri"];
const LISTS = ["categories", "interests"];
const control = (name) => byId(`new-${name}`);

/** Make the form work; `addressOf(itemId)` is the address of an item's card, `added()` is called after an item was added. */
export function setUpAdding({ addressOf, added, say }) {
  const dialog = byId("adding");
  byId("add-item").addEventListener("click", () => { byId("added").replaceChildren(); dialog.showModal(); });
  byId("adding-close").addEventListener("click", () => dialog.close());
  byId("adding-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });

  function read() {
    const body = {};
    for (const name of FIELDS) {
      const value = control(name).value.trim();
      if (!value) continue;
      body[name] = LISTS.includes(name) ? value.split(/[,\n]/).map((part) => part.trim()).filter(Boolean) : name === "price" ? Number(value) : value;
    }
    if (body.currency) body.currency = body.currency.toUpperCase();
    return body;
  }

  /** Say beside a field what is wrong with it; without words that it is right. */
  function mark(name, words) {
    const note = byId(`new-${name}-error`);
    note.textContent = words ?? "";
    note.hidden = !words;
    if (words) control(name).setAttribute("aria-invalid", "true");
    else control(name).removeAttribute("aria-invalid");
  }

  /** Put the problem beside the fields it names; one that names none of the form's stands below. */
  function refuse(error) {
    if (!(error instanceof Problem)) throw error;
    const { detail, fields = [] } = error.problem;
    const named = FIELDS.filter((name) => fields.some((field) => field.split(".")[0] === name));
    for (const name of named) mark(name, wordsFor(name, detail));
    if (named.length) control(named[0]).focus();
    else byId("added").replaceChildren(problemBox(error, send));
  }

  async function send() {
    FIELDS.forEach((name) => mark(name));
    byId("adding-send").disabled = true;
    byId("added").replaceChildren();
    try {
      const body = read();
      const { item_id: itemId, sids, is_new: isNew } = await post("v1/items", body);
      byId("adding-form").reset();
      byId("added").replaceChildren(answerOf(body.title, itemId, sids, isNew));
      byId("added").querySelector("a").focus();
      say(isNew ? `${body.title} added` : `${body.title} was added before`);
      added();
    } catch (error) {
      refuse(error);
    } finally {
      byId("adding-send").disabled = false;
    }
  }

  function answerOf(title, itemId, sids, isNew) {
    const link = el("a", { href: addressOf(itemId) }, title);
    link.addEventListener("click", () => dialog.close());
    return el("div", { class: "notice" }, el("p", {}, isNew ? "Added: " : "The same item was added before: ", link),
      ...Object.entries(sids).map(([model, sid]) => el("p", {}, `Semantic ID in ${model}: `, el("span", { class: "sid" }, ...codesOf(sid)))),
      el("p", { class: "note" }, `It can be listed by ${count(Object.keys(sids).length, "version")} now.`));
  }
}

/** The part of a problem's detail about a field, of those that name each field; the whole where it does not. */
function wordsFor(name, detail) {
  const own = detail.split("; ").filter((part) => part.startsWith(`${name}:`) || part.startsWith(`${name}.`));
  return own.length ? own.map((part) => part.slice(part.indexOf(":") + 2)).join("; ") : detail;
}
