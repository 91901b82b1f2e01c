// Search while typing: the combobox pattern with a list box; focus stays in the field, the active option is named by id.

import { get, picture, Problem } from "./api.js";
import { byId, count, el } from "./dom.js";

const WAIT_MS = 150;

/** Make the search field work; `add(itemId)` gets the chosen item, `model()` names the version, `say` tells what was found. */
export function setUpSearch({ add, model, say }) {
  const field = byId("search");
  const list = byId("found");
  const trouble = byId("search-error");
  let options = [];
  let active = -1;
  let outdated = true; // the field says something else than the list answers
  let timer = 0;
  let running = new AbortController();

  function close() {
    list.hidden = true;
    active = -1;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  }

  function activate(index) {
    active = index;
    options.forEach((option, place) => option.element.setAttribute("aria-selected", String(place === index)));
    if (index < 0) return field.removeAttribute("aria-activedescendant");
    field.setAttribute("aria-activedescendant", options[index].element.id);
    return options[index].element.scrollIntoView({ block: "nearest" });
  }

  async function choose(option) {
    field.value = "";
    close();
    await add(option.itemId);
    field.focus();
  }

  const lineOf = (item) => el("span", { class: "what" }, el("span", { class: "title" }, item.title),
    item.interest && el("span", { class: "note interest" }, el("span", { class: "hidden" }, ", "), `for ${item.interest}`));

  function show(items, typed) {
    const found = items.map((item) => ({ itemId: item.item_id, line: [picture(item, model()), lineOf(item), el("span", { class: "id" }, item.item_id)] }));
    if (typed && !/\s/.test(typed) && !items.some((item) => item.item_id === typed)) {
      found.push({ itemId: typed, line: [el("span", { class: "title" }, `Use “${typed}” as an item id`)] });
    }
    options = found.map((option, place) => {
      const element = el("li", { id: `found-${place}`, role: "option", "aria-selected": "false" }, ...option.line);
      element.addEventListener("pointerdown", (event) => event.preventDefault());
      element.addEventListener("click", () => choose(option));
      return { ...option, element };
    });
    const nothing = el("li", { class: "nothing", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "No title or interest has all these words");
    list.replaceChildren(...(items.length ? [] : [nothing]), ...options.map((option) => option.element));
    list.hidden = false;
    field.setAttribute("aria-expanded", "true");
    activate(-1);
    say(items.length ? `${count(items.length, "item")} found` : "No item found");
  }

  async function search() {
    running.abort();
    running = new AbortController();
    const { signal } = running;
    const typed = field.value.trim();
    clearTimeout(timer);
    outdated = false;
    try {
      const { items } = await get("v1/items", { query: typed, limit: 8, model: model() }, signal);
      trouble.hidden = true;
      if (document.activeElement === field && !signal.aborted) show(items, typed);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      close();
      trouble.textContent = error.message;
      trouble.hidden = false;
    }
  }

  field.addEventListener("input", () => { outdated = true; clearTimeout(timer); timer = setTimeout(search, WAIT_MS); });
  field.addEventListener("click", () => { if (list.hidden) search(); });
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    const last = options.length - 1;
    if (event.key === "Escape") { if (list.hidden) field.value = ""; close(); }
    else if (event.key === "Enter" && (outdated || list.hidden)) search();
    else if (event.key === "Enter" && active >= 0) choose(options[active]);
    else if (event.key === "Enter" && options.length) choose(options[0]);
    else if (event.key === "ArrowDown" && list.hidden) search();
    else if (event.key === "ArrowDown") activate(active < last ? active + 1 : 0);
    else if (event.key === "ArrowUp" && !list.hidden) activate(active > 0 ? active - 1 : last);
    else return;
    event.preventDefault();
  });
}
