// The page: what is chosen, and what is asked of the endpoint when it changes.

import { setUpAdding } from "./adding.js";
import { addressOf, readAddress } from "./address.js";
import { apiKey, get, getItem, picture, Problem, problemBox } from "./api.js";
import { ask } from "./asking.js";
import { setUpCard } from "./card.js";
import { byId, count, el, keepFocus, ofKey } from "./dom.js";
import { setUpFilters } from "./filters.js";
import { showHistory } from "./history.js";
import { column, newIn, overlapOf } from "./results.js";
import { setUpSearch } from "./search.js";
import { setUpTree } from "./tree.js";
import { setUpVersions } from "./versions.js";
import { setUpVisit } from "./visit.js";
import { setUpWishes } from "./wishes.js";

const WAIT_MS = 200;
const state = { items: [], user: "", byUser: false, card: "" };
let running = new AbortController();
let timer = 0;
let before = []; // the replies that are shown
let pressed = ""; // what opened the card

/** Tell a screen reader; behind an open dialog nothing is heard, so it has a status of its own. */
const say = (words) => { (document.querySelector("dialog[open] [role=status]") ?? byId("status")).textContent = words; };
const versions = setUpVersions({ asked: restart, compared: () => changed() });
const model = () => versions.chosen() || undefined;
const canSteer = (name) => versions.canSteer(name);
const wishes = setUpWishes({ changed, canSteer, say });
const tree = setUpTree({ add, wishes, canSteer, say });
const filters = setUpFilters(() => changed());
const user = () => (state.byUser ? state.user : "");
const visit = setUpVisit({ user, append, changed: () => changed(), say });
const actions = { retry: refresh, showPath, interest: wishes.interest, act: visit.act, view };
const card = setUpCard({ actions, opened: (itemId) => { state.card = itemId; write(); }, closed: cardClosed, say });

const chosen = (more = {}) => ({
  items: state.items.map((item) => item.item_id), user: user(), model: versions.chosen(), other: versions.other(),
  wishes: wishes.list(), filters: filters.read(), item: state.card, ...more,
});
const write = () => window.history.replaceState(null, "", addressOf(chosen()));

/** Ask anew, because something was chosen; `words` say what. */
function changed(words) {
  write();
  if (words) say(words);
  refresh();
}

function refresh() {
  clearTimeout(timer);
  timer = setTimeout(showRecommendations, WAIT_MS);
}

async function add(itemId) {
  if (state.byUser) switchTo(false);
  byId("search-error").hidden = true;
  try {
    const item = await getItem(itemId, model());
    changeHistory([...state.items, item], `${item.title} added, number ${state.items.length + 1} of the history`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    byId("search-error").textContent = error.message;
    byId("search-error").hidden = false;
  }
}

/** Put an item of a list at the end of the history, if it is not there. */
function append(item) {
  return state.items.at(-1)?.item_id === item.item_id ? undefined : add(item.item_id);
}

function changeHistory(items, words) {
  state.items = items;
  showHistory(items, model(), changeHistory);
  filters.offer(items);
  changed(words);
}

/** Look at an item of a list. */
function view(item, answer) {
  pressed = document.activeElement.dataset.key;
  card.open(item.item_id, answer.model, answer.reply);
  return visit.act("view", item, answer.reply);
}

function cardClosed() {
  state.card = byId("card-status").textContent = "";
  write();
  if (!document.activeElement.closest("main, header")) (ofKey(byId("results"), pressed) ?? byId("results")).focus();
}

function body(name) {
  const unsent = visit.unsent();
  const whose = user() ? { user_id: user(), ...(unsent.length ? { seeds: unsent } : {}) } : { history: state.items.map((item) => item.item_id) };
  return { ...whose, ...filters.fields(), ...(name ? { model: name } : {}) };
}

async function showRecommendations() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const nothing = state.byUser ? !state.user : !state.items.length;
  byId("start").hidden = !nothing;
  byId("columns").hidden = byId("steer").hidden = nothing;
  byId("overlap").hidden = true;
  if (nothing) {
    before = [];
    byId("results").setAttribute("aria-busy", "false");
    tree.light([]);
    return showStart(signal);
  }
  byId("results").setAttribute("aria-busy", "true");
  const names = [versions.chosen(), versions.other()].filter((name, place) => place === 0 || name);
  try {
    const answers = await Promise.all(names.map((name) => ask(body(name), wishes.list(), canSteer(name), signal)));
    if (!signal.aborted) await showAnswers(answers);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
  return undefined;
}

async function showAnswers(answers) {
  const [one, two] = answers;
  byId("results").setAttribute("aria-busy", "false");
  byId("columns").classList.toggle("two", answers.length === 2);
  keepFocus(byId("results"), () => {
    byId("columns").replaceChildren(...answers.map((answer, place) => column(answer, answer === one ? two : one, place, actions)));
  });
  byId("overlap").hidden = !(one.reply && two?.reply);
  if (one.reply && two?.reply) byId("overlap").textContent = overlapOf(one, two);
  wishes.offer(one.model);
  say(answers.map(told).join("; "));
  before = answers.map(({ reply }) => reply);
  if (!one.reply) return tree.light([]);
  await tree.show(one.model);
  tree.light(one.reply.items);
  return one.reply.items.length ? tree.reveal(one.reply.items[0].sid, false) : undefined;
}

/** What a screen reader is told of an answer. */
function told({ model: name, reply, error }, place) {
  if (error) return error.problem.title;
  const known = before[place];
  return `${known ? "List updated, " : ""}${count(reply.items.length, "recommendation")} of ${name}${known ? `, ${newIn(reply, known)} new` : ""}`;
}

async function showPath(item, name, reply) {
  await tree.show(name);
  if (reply) tree.light(reply.items);
  await tree.reveal(item.sid, true);
}

async function showStart(signal) {
  try {
    const { items } = await get("v1/items", { limit: 8, model: model() }, signal);
    byId("popular").replaceChildren(...items.map((item) => el("li", {},
      el("button", { type: "button", onclick: () => add(item.item_id) }, picture(item, model()), el("span", { class: "title" }, item.title)))));
    await tree.show(versions.name());
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("popular").replaceChildren(el("li", {}, problemBox(error, begin)));
  }
}

/** Take the history from the items chosen here, or from a known user. */
function switchTo(byUser) {
  state.byUser = byUser;
  document.querySelector(`[name="mode"][value="${byUser ? "user" : "items"}"]`).checked = true;
  byId("by-items").hidden = byUser;
  byId("by-user").hidden = !byUser;
  visit.begin();
}

async function itemOrUnknown(itemId) {
  try {
    return await getItem(itemId, model());
  } catch (error) {
    if (!(error instanceof Problem) || error.problem.status !== 404) throw error;
    return { item_id: itemId, title: itemId, unknown: true };
  }
}

/** Show what the address says. */
async function restore() {
  const said = readAddress();
  versions.choose(said.model, said.other);
  filters.set(said.filters);
  wishes.set(said.wishes);
  state.user = byId("user").value = said.user;
  switchTo(Boolean(said.user));
  if (said.items.length || state.items.length) changeHistory(await Promise.all(said.items.map(itemOrUnknown)));
  else showRecommendations();
  if (said.item) card.open(said.item, model());
}

/** Read the history's items again, which another version may not have, or elsewhere in its tree. */
async function restart() {
  try {
    changeHistory(await Promise.all(state.items.map((item) => itemOrUnknown(item.item_id))));
  } catch (error) {
    byId("columns").replaceChildren(problemBox(error, restart));
  }
}

/** Ask which versions there are, then show what the address says. */
async function begin() {
  try {
    const loaded = await versions.load();
    filters.offerCurrencies(loaded.flatMap((version) => version.currencies));
    byId("k").max = Math.min(...loaded.map((version) => version.beam_width));
    byId("columns").replaceChildren();
    await restore();
  } catch (error) {
    byId("start").hidden = true;
    byId("columns").hidden = false;
    byId("columns").replaceChildren(problemBox(error, begin));
  }
}

setUpSearch({ add, model, say });
setUpAdding({ addressOf: (item) => addressOf(chosen({ item })), added: refresh, say });
byId("clear").addEventListener("click", () => { changeHistory([], "History cleared"); byId("search").focus(); });
for (const choice of document.querySelectorAll('[name="mode"]')) {
  choice.addEventListener("change", () => { switchTo(choice.value === "user"); changed(); });
}
byId("by-user").addEventListener("submit", (event) => {
  event.preventDefault();
  state.user = byId("user").value.trim();
  visit.begin();
  changed();
});
byId("key").value = apiKey.get();
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  byId("key-box").open = false;
  begin();
});
window.addEventListener("hashchange", begin);
begin();
