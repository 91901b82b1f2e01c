// Filters: what may come out of the list. Their form in a request is that of the endpoint's contract.

import { byId, el } from "./dom.js";

/** Make the filters work; `changed()` is called whenever they are. Returns what reads them. */
export function setUpFilters(changed) {
  const categories = new Map(); // name -> "only" or "never"
  const number = (id) => (byId(id).value === "" ? undefined : byId(id).valueAsNumber);

  function take(kind) {
    const name = byId("category").value.trim();
    if (!name) return byId("category").focus();
    categories.set(name, kind);
    byId("category").value = "";
    return update();
  }

  function drop(name) {
    categories.delete(name);
    update();
    byId("category").focus();
  }

  function update() {
    show();
    changed();
  }

  function show() {
    byId("chosen-categories").replaceChildren(...[...categories].map(([name, kind]) => el("li", { class: kind },
      el("span", {}, `${kind === "only" ? "only" : "never"} ${name}`),
      el("button", { type: "button", class: "tool", "aria-label": `Remove filter ${name}`, onclick: () => drop(name) }, "×"))));
    const used = categories.size + (number("min") !== undefined || number("max") !== undefined ? 1 : 0) + (byId("exclude").checked ? 1 : 0);
    byId("filter-count").textContent = `${used} in use`;
    byId("filter-count").hidden = used === 0;
    byId("reset").hidden = used === 0;
  }

  byId("only").addEventListener("click", () => take("only"));
  byId("never").addEventListener("click", () => take("never"));
  byId("category").addEventListener("keydown", (event) => { if (event.key === "Enter") take("only"); });
  for (const id of ["k", "min", "max", "exclude"]) byId(id).addEventListener("input", update);
  byId("currency").addEventListener("change", update);
  byId("reset").addEventListener("click", () => {
    categories.clear();
    byId("min").value = byId("max").value = "";
    byId("exclude").checked = false;
    byId("category").focus();
    update();
  });

  const named = (kind) => [...categories].filter(([, other]) => other === kind).map(([name]) => name);

  return {
    /** The filters as fields of a request. */
    fields() {
      const allow = {};
      const [only, never, low, high] = [named("only"), named("never"), number("min"), number("max")];
      if (only.length) allow.categories = only;
      if (low !== undefined) allow.min_price = low;
      if (high !== undefined) allow.max_price = high;
      if ((low !== undefined || high !== undefined) && !byId("currency-box").hidden) allow.currency = byId("currency").value;
      const fields = { k: number("k") ?? 10, exclude_history: byId("exclude").checked };
      if (Object.keys(allow).length) fields.allow = allow;
      if (never.length) fields.deny = { categories: never };
      return fields;
    },
    /** The filters as the address has them; what is not set is empty. */
    read() {
      const k = byId("k").value === byId("k").defaultValue ? "" : byId("k").value;
      const currency = byId("currency-box").hidden || !(byId("min").value || byId("max").value) ? "" : byId("currency").value;
      return { k, min: byId("min").value, max: byId("max").value, currency, only: named("only"), never: named("never"), exclude: byId("exclude").checked };
    },
    /** Take the filters of an address. */
    set({ k, min, max, currency, only, never, exclude }) {
      byId("k").value = k || byId("k").defaultValue;
      byId("min").value = min;
      byId("max").value = max;
      if ([...byId("currency").options].some(({ value }) => value === currency)) byId("currency").value = currency;
      categories.clear();
      for (const name of only) categories.set(name, "only");
      for (const name of never) categories.set(name, "never");
      byId("exclude").checked = exclude;
      show();
    },
    /** Offer the currencies of the versions asked, where a price alone would not say which. */
    offerCurrencies(names) {
      const known = [...new Set(names)].sort();
      const before = byId("currency").value;
      byId("currency").replaceChildren(...known.map((value) => el("option", { value }, value)));
      if (known.includes(before)) byId("currency").value = before;
      byId("currency-box").hidden = known.length < 2;
    },
    /** Offer the categories of these items while typing. */
    offer(items) {
      const known = [...new Set(items.flatMap((item) => item.categories ?? []))].sort();
      byId("categories").replaceChildren(...known.map((value) => el("option", { value })));
    },
  };
}
