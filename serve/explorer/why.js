// Why an item is listed: which sources proposed it, and what each group of features adds to its score.

import { el } from "./dom.js";

const SOURCES = {
  generation: "written by the policy", transitions: "follows the history", next: "follows at once", cooccurrence: "stands beside the history",
  text: "similar text", image: "similar image", interests: "near interests", interests_steps: "interests that come next",
  popular: "popular of late", history: "in the history", steer: "your wishes",
};
const GROUPS = {
  counts: "what follows what", text: "text", image: "image", interests: "interests", popularity: "recent popularity",
  repeat: "seen before", request: "this request", steer: "your wishes",
};
const opened = new Set(); // items whose reasons are open, over all lists
let first = true;

const signed = (part) => `${part < 0 ? "−" : "+"}${Math.abs(part).toFixed(2)}`;

/** The parts of a score, the largest first; those that would read as 0 are left out. */
export function partsOf(contributions) {
  return Object.entries(contributions ?? {}).filter(([, part]) => Math.abs(part) >= 0.005).sort((one, two) => Math.abs(two[1]) - Math.abs(one[1]));
}

/** The largest part of any score in a list, to which bars are drawn. */
export const largestPart = (items) => Math.max(0, ...items.flatMap((item) => partsOf(item.contributions).map(([, part]) => Math.abs(part))));

function row([group, part], largest) {
  const bar = el("span", { class: part < 0 ? "part minus" : "part" });
  bar.style.setProperty("--share", Math.abs(part) / largest);
  return el("tr", {}, el("th", { scope: "row" }, GROUPS[group] ?? group), el("td", { class: "bars", "aria-hidden": "true" }, bar), el("td", { class: "value" }, signed(part)));
}

/** The reasons of a ranked item, to be opened; null for a list that has no ranker. The first item of the first list is open. */
export function why(item, largest, key) {
  if (!item.sources?.length) return null;
  if (first) opened.add(item.item_id);
  first = false;
  const parts = partsOf(item.contributions);
  const table = el("table", { class: "parts" },
    el("caption", { class: "hidden" }, `What adds to the score of ${item.title}`),
    el("tbody", {}, ...parts.map((part) => row(part, largest))));
  const sources = el("ul", { class: "sources", "aria-label": `Sources that proposed ${item.title}` },
    el("li", { class: "by", "aria-hidden": "true" }, "Proposed by"), ...item.sources.map((name) => el("li", { title: name }, SOURCES[name] ?? name.replaceAll("_", " "))));
  const box = el("details", { class: "why", open: opened.has(item.item_id) },
    el("summary", { "data-key": key }, "Why", el("span", { class: "hidden" }, ` ${item.title}`),
      parts.length > 0 && el("span", { class: "note" }, ` most by ${GROUPS[parts[0][0]] ?? parts[0][0]} ${signed(parts[0][1])}`)),
    parts.length ? table : el("p", { class: "note" }, "Added after the run; the ranker does not know it, so it keeps the policy's place."),
    sources);
  box.addEventListener("toggle", () => (box.open ? opened.add(item.item_id) : opened.delete(item.item_id)));
  return box;
}
