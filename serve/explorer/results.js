// Lists of recommendations, one column per version, with the places that differ marked.

import { picture, problemBox } from "./api.js";
import { codeColour, count, el, money } from "./dom.js";
import { largestPart, why } from "./why.js";

const SHOWN_REASONS = 4;
const MAKERS = { ranker: "all sources, ranked", policy: "by the policy", popularity: "by popularity" };

/** Build the column of one version. `answer` is that of `ask`; `other` the one to compare with; `place` which column it is. */
export function column(answer, other, place, actions) {
  const head = el("header", {}, el("h2", {}, answer.model));
  const box = el("section", { class: "column", "aria-label": `Recommendations of ${answer.model}` }, head);
  if (answer.error) {
    box.append(problemBox(answer.error, actions.retry));
    return box;
  }
  const { items, source, experiment } = answer.reply;
  head.append(el("span", { class: "badge" }, MAKERS[source]));
  if (experiment) head.append(el("span", { class: "badge arm" }, `arm ${experiment.arm} of experiment ${experiment.experiment}`));
  box.append(...noticesOf(answer).map((words) => el("p", { class: "notice" }, words)));
  const best = items.length && items[0].score !== null ? items[0].score : 0;
  const largest = largestPart(items);
  const ranks = new Map(other?.reply?.items.map((item, rank) => [item.item_id, rank]) ?? []);
  const cards = items.map((item, rank) => card(item, rank, {
    share: item.score === null ? null : Math.exp(item.score - best),
    move: other?.reply ? change(rank, ranks.get(item.item_id), other.model) : null,
    key: (what) => `${place}/${item.item_id}/${what}`,
    largest,
    answer,
    actions,
  }));
  box.append(el("ol", { class: "cards" }, ...cards));
  return box;
}

/** What a reader of the list must know. */
function noticesOf({ reply, asWords, unsteered }) {
  const ignored = reply.ignored_items;
  return [
    reply.source === "popularity" && "The model knows nothing of this history, so these are the most popular items.",
    unsteered && "This version has no ranker, so the wishes do not count.",
    asWords?.length && `Taken as words, because this version has no interest of this name: ${asWords.join(", ")}`,
    ignored?.length && `Left out, not in the catalogue: ${ignored.join(", ")}`,
  ].filter(Boolean);
}

/** How an item's place differs from its place in the other list. */
export function change(rank, otherRank, otherModel) {
  if (otherRank === undefined) return { sign: "new", words: `not in the list of ${otherModel}`, kind: "new" };
  const by = otherRank - rank;
  if (by === 0) return { sign: "=", words: `same place as in ${otherModel}`, kind: "same" };
  const sign = by > 0 ? `▲${by}` : `▼${-by}`;
  return { sign, words: `${Math.abs(by)} ${by > 0 ? "higher" : "lower"} than in ${otherModel}`, kind: by > 0 ? "up" : "down" };
}

function card(item, rank, { share, move, key, largest, answer, actions }) {
  const { model, reply } = answer;
  const act = (type, words) => el("button", { type: "button", class: "quiet", "data-key": key(type), "aria-label": `${words}: ${item.title}`, onclick: () => actions.act(type, item, reply) }, words);
  return el("li", { class: "card", "data-item": item.item_id },
    el("span", { class: "rank", "aria-hidden": "true" }, String(rank + 1)),
    picture(item, model),
    el("div", { class: "what" },
      el("h3", { class: "title" }, el("button", { type: "button", class: "open", "data-key": key("open"), "aria-haspopup": "dialog", onclick: () => actions.view(item, answer) }, item.title)),
      el("p", { class: "facts" },
        item.price !== null && item.price !== undefined && el("span", { class: "price" }, money(item.price, item.currency)),
        share !== null && scoreOf(item, share),
        move && el("span", { class: `move ${move.kind}`, title: move.words }, el("span", { "aria-hidden": "true" }, move.sign), el("span", { class: "hidden" }, move.words)),
      ),
      reasonsOf(item.reasons, (name) => actions.interest(name, model, key(`interest/${name}`))),
      why(item, largest, key("why")),
      el("div", { class: "doing" },
        el("button", { type: "button", class: "path", "data-key": key("path"), "aria-label": `Show ${item.sid.join(", ")} of ${item.title} in the tree`, onclick: () => actions.showPath(item, model, reply) }, ...codesOf(item.sid)),
        act("cart", "Add to cart"),
        act("purchase", "Bought"),
      ),
    ));
}

function scoreOf(item, share) {
  const bar = el("span", { class: "bar-in", "aria-hidden": "true" });
  bar.style.setProperty("--share", share);
  if (item.sources?.length) {
    return el("span", { class: "score" }, bar, el("span", { class: "hidden" }, "Score of the ranker "), item.score.toFixed(2).replace("-", "−"));
  }
  const chance = Math.exp(item.score) * 100;
  const words = chance < 0.1 ? "< 0.1 %" : `${chance.toFixed(1)} %`;
  return el("span", { class: "score", title: `log-probability ${item.score.toFixed(3)}` }, bar, el("span", { class: "hidden" }, "Probability "), words);
}

function reasonsOf(reasons, chip) {
  if (!reasons.length) return el("p", { class: "note" }, "No trusted interest in common with the history.");
  const line = (name) => el("li", {}, chip(name));
  const rest = reasons.slice(SHOWN_REASONS).map(line);
  const more = el("li", {}, el("button", { type: "button", class: "more-reasons", onclick: () => {
    more.replaceWith(...rest);
    rest[0].querySelector("button")?.focus();
  } }, `+${rest.length}`, el("span", { class: "hidden" }, " more interests")));
  return el("ul", { class: "chips reasons", "aria-label": "Shared interests, strongest first" }, ...reasons.slice(0, SHOWN_REASONS).map(line), rest.length > 0 && more);
}

/** The codes of a semantic ID, each with its colour. */
export function codesOf(sid) {
  return sid.map((code, level) => {
    const dot = el("span", { class: "dot" });
    dot.style.backgroundColor = codeColour(code, level);
    return el("span", { class: "code" }, dot, String(code));
  });
}

/** One sentence on how far two lists agree. */
export function overlapOf(one, two) {
  const first = new Set(one.reply.items.map((item) => item.item_id));
  const both = two.reply.items.filter((item) => first.has(item.item_id)).length;
  const same = two.reply.items.filter((item, rank) => one.reply.items[rank]?.item_id === item.item_id).length;
  return `${count(both, "item")} in both lists, ${same} of them at the same place.`;
}

/** How many items of a list were not in the one before it. */
export function newIn(reply, before) {
  const known = new Set(before.items.map((item) => item.item_id));
  return reply.items.filter((item) => !known.has(item.item_id)).length;
}
