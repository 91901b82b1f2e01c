// Elements built by code. Text is always set as text: titles and interests are foreign data, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** Find an element of the page by its id. */
export const byId = (id) => document.getElementById(id);

/** Build an element; `on...` properties are listeners, `class`, `role`, `aria-...` and `data-...` attributes. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Colour of a code: the same code of the same level looks the same wherever it stands. */
export function codeColour(code, level) {
  return `hsl(${(code * 137.508 + level * 40) % 360} ${58 - level * 10}% ${46 + level * 8}%)`;
}

/** A small square that says where an item stands: one stripe per code of its semantic ID. */
export function sidTile(sid) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 48 48");
  svg.setAttribute("class", "tile");
  svg.setAttribute("aria-hidden", "true");
  const shares = sid.map((_, level) => 1 / (level + 1.4));
  const total = shares.reduce((sum, share) => sum + share, 0);
  let left = 0;
  sid.forEach((code, level) => {
    const stripe = document.createElementNS(SVG, "rect");
    const width = (shares[level] / total) * 48;
    for (const [name, value] of Object.entries({ x: left, y: 0, width: width + 0.5, height: 48, fill: codeColour(code, level) })) {
      stripe.setAttribute(name, value);
    }
    left += width;
    svg.append(stripe);
  });
  return svg;
}

/** A price as people write it in its currency; the bare number where the currency is not known. */
export function money(price, currency) {
  if (!/^[A-Z]{3}$/.test(currency ?? "")) return [price.toLocaleString("en"), currency].filter(Boolean).join(" ");
  return new Intl.NumberFormat("en", { style: "currency", currency }).format(price);
}

/** `1 item`, `2 items`. */
export const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/** The element of a key, see `keepFocus`. */
export const ofKey = (area, key) => (key ? [...area.querySelectorAll("[data-key]")].find((found) => found.dataset.key === key) : undefined);

/** Change what an area shows; what had the focus has it again, by its `data-key`, or else what stands at its item's place now. */
export function keepFocus(area, change) {
  const before = document.activeElement;
  const inside = area.contains(before);
  const item = before.closest("li[data-item]");
  const column = [...area.querySelectorAll(".column")].indexOf(before.closest(".column"));
  const place = item ? [...item.parentElement.children].indexOf(item) : -1;
  change();
  if (!inside || area.contains(before)) return;
  const there = area.querySelectorAll(".column")[column]?.querySelectorAll("li[data-item]");
  const near = there?.[Math.min(place, there.length - 1)]?.querySelector("[data-key]");
  (ofKey(area, before.dataset.key) ?? near ?? area).focus();
}
