// Lists of recommendations, one column per version, with the places that differ marked.

import { picture, problemBox } from "./api.js";
import { codeColour, count, el, money } from "./dom.js";

const SHOWN_REASONS = 4;
const MAKERS = { ranker: "all sources, ranked", policy: "by the policy", popularity: "by popularity" };

/** Build the column of one version. `answer` is {model, reply} or {model, error}; `other` the list to compare with. */
export function column(answer, other, actions) {
  const head = el("header", {}, el("h2", {}, answer.model ?? "Recommendations"));
  const box = el("section", { class: "column", "aria-label": `Recommendations of ${answer.model ?? "the model"}` }, head);
  if (answer.error) {
    box.append(problemBox(answer.error, actions.retry));
    return box;
  }
  const { items, source, ignored_items: ignored } = answer.reply;
  head.append(el("span", { class: "badge" }, MAKERS[source]));
  if (source === "popularity") {
    box.append(el("p", { class: "notice" }, "The model knows nothing of this history, so these are the most popular items."));
  }
  if (ignored?.length) box.append(el("p", { class: "notice" }, `Left out, not in the catalogue: ${ignored.join(", ")}`));
  const best = items.length && items[0].score !== null ? items[0].score : 0;
  const ranks = new Map(other?.reply?.items.map((item, rank) => [item.item_id, rank]) ?? []);
  const cards = items.map((item, rank) => card(item, rank, {
    share: item.score === null ? null : Math.exp(item.score - best),
    move: other?.reply ? change(rank, ranks.get(item.item_id), other.model) : null,
    answer,
    actions,
  }));
  box.append(el("ol", { class: "cards" }, ...cards));
  return box;
}

/** How an item's place differs from its place in the other list. */
export function change(rank, otherRank, otherModel) {
  if (otherRank === undefined) return { sign: "new", words: `not in the list of ${otherModel}`, kind: "new" };
  const by = otherRank - rank;
  if (by === 0) return { sign: "=", words: `same place as in ${otherModel}`, kind: "same" };
  const sign = by > 0 ? `▲${by}` : `▼${-by}`;
  return { sign, words: `${Math.abs(by)} ${by > 0 ? "higher" : "lower"} than in ${otherModel}`, kind: by > 0 ? "up" : "down" };
}

function card(item, rank, { share, move, answer, actions }) {
  const { model } = answer;
  return el("li", { class: "card", "data-item": item.item_id },
    el("span", { class: "rank", "aria-hidden": "true" }, String(rank + 1)),
    picture(item, model),
    el("div", { class: "what" },
      el("h3", { class: "title" }, item.title),
      el("p", { class: "facts" },
        item.price !== null && item.price !== undefined && el("span", { class: "price" }, money(item.price, item.currency)),
        share !== null && scoreOf(item, share),
        move && el("span", { class: `move ${move.kind}`, title: move.words }, el("span", { "aria-hidden": "true" }, move.sign), el("span", { class: "hidden" }, move.words)),
      ),
      reasonsOf(item.reasons),
      sourcesOf(item.sources),
      el("div", { class: "doing" },
        el("button", { type: "button", class: "path", "aria-label": `Show ${item.sid.join(", ")} of ${item.title} in the tree`, onclick: () => actions.showPath(item, answer) }, ...codesOf(item.sid)),
        el("button", { type: "button", class: "quiet", "aria-label": `Add ${item.title} to the history`, onclick: () => actions.add(item.item_id) }, "+ history"),
      ),
    ));
}

function scoreOf(item, share) {
  const bar = el("span", { class: "bar-in", "aria-hidden": "true" });
  bar.style.setProperty("--share", share);
  if (item.sources?.length) {
    return el("span", { class: "score", title: madeOf(item.contributions) }, bar, el("span", { class: "hidden" }, "Score of the ranker "), item.score.toFixed(2));
  }
  const chance = Math.exp(item.score) * 100;
  const words = chance < 0.1 ? "< 0.1 %" : `${chance.toFixed(1)} %`;
  return el("span", { class: "score", title: `log-probability ${item.score.toFixed(3)}` }, bar, el("span", { class: "hidden" }, "Probability "), words);
}

/** What a ranker's score is made of, the largest part first. */
export function madeOf(contributions) {
  const parts = Object.entries(contributions ?? {}).sort((one, two) => Math.abs(two[1]) - Math.abs(one[1]));
  const words = parts.map(([group, part]) => `${group} ${part < 0 ? "−" : "+"}${Math.abs(part).toFixed(2)}`);
  return words.length ? `score of the ranker: ${words.join(", ")}` : "score of the ranker";
}

function sourcesOf(sources) {
  return sources?.length ? el("p", { class: "note sources" }, `Proposed by ${sources.join(", ")}`) : null;
}

function reasonsOf(reasons) {
  if (!reasons.length) return el("p", { class: "note" }, "No trusted interest in common with the history.");
  const more = reasons.length - SHOWN_REASONS;
  return el("ul", { class: "chips reasons", "aria-label": "Shared interests, strongest first" },
    ...reasons.slice(0, SHOWN_REASONS).map((reason) => el("li", {}, reason)),
    more > 0 && el("li", { class: "more", title: reasons.slice(SHOWN_REASONS).join(", ") }, `+${more}`));
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
