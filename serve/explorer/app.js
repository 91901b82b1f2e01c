// The page: what is chosen, and what is asked of the endpoint when it changes.

import { apiKey, get, getItem, picture, Problem, problemBox, recommend } from "./api.js";
import { byId, count, el } from "./dom.js";
import { setUpFilters } from "./filters.js";
import { showHistory } from "./history.js";
import { column, overlapOf } from "./results.js";
import { setUpSearch } from "./search.js";
import { setUpTree } from "./tree.js";

const WAIT_MS = 200;
const state = { items: [], user: "", byUser: false };
let running = new AbortController();
let timer = 0;

const say = (words) => { byId("status").textContent = words; };
const model = () => byId("model").value || undefined;
const tree = setUpTree({ add, say });
const filters = setUpFilters(refresh);

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

function changeHistory(items, words) {
  state.items = items;
  showHistory(items, model(), changeHistory);
  filters.offer(items);
  const ids = items.map((item) => encodeURIComponent(item.item_id)).join(",");
  window.history.replaceState(null, "", ids ? `#items=${ids}` : "#");
  if (words) say(words);
  refresh();
}

function refresh() {
  clearTimeout(timer);
  timer = setTimeout(showRecommendations, WAIT_MS);
}

async function ask(name, signal) {
  const whose = state.byUser ? { user_id: state.user } : { history: state.items.map((item) => item.item_id) };
  try {
    const reply = await recommend({ ...whose, ...filters.fields(), model: name }, signal);
    return { model: reply.model, reply };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return { model: name, error };
  }
}

async function showRecommendations() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const nothing = state.byUser ? !state.user : !state.items.length;
  byId("start").hidden = !nothing;
  byId("columns").hidden = nothing;
  byId("overlap").hidden = true;
  if (nothing) {
    byId("results").setAttribute("aria-busy", "false");
    tree.light([]);
    await showStart(signal);
    return;
  }
  byId("results").setAttribute("aria-busy", "true");
  const names = [model(), byId("other").value].filter((name, place) => place === 0 || name);
  let answers;
  try {
    answers = await Promise.all(names.map((name) => ask(name, signal)));
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  }
  byId("results").setAttribute("aria-busy", "false");
  const actions = { add, retry: refresh, showPath };
  const [one, two] = answers;
  byId("columns").classList.toggle("two", answers.length === 2);
  byId("columns").replaceChildren(...answers.map((answer) => column(answer, answer === one ? two : one, actions)));
  if (one.reply && two?.reply) {
    byId("overlap").textContent = overlapOf(one, two);
    byId("overlap").hidden = false;
  }
  say(answers.map((answer) => (answer.reply ? `${count(answer.reply.items.length, "recommendation")} of ${answer.model}` : answer.error.problem.title)).join("; "));
  if (one.reply) {
    await tree.show(one.model);
    tree.light(one.reply.items);
    if (one.reply.items.length) await tree.reveal(one.reply.items[0].sid, false);
  } else tree.light([]);
}

async function showPath(item, answer) {
  await tree.show(answer.model);
  tree.light(answer.reply.items);
  await tree.reveal(item.sid, true);
}

async function showStart(signal) {
  try {
    const { items } = await get("v1/items", { limit: 8, model: model() }, signal);
    byId("popular").replaceChildren(...items.map((item) => el("li", {},
      el("button", { type: "button", onclick: () => add(item.item_id) }, picture(item, model()), el("span", { class: "title" }, item.title)))));
    await tree.show(model());
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("popular").replaceChildren(el("li", {}, problemBox(error, begin)));
  }
}

function switchTo(byUser) {
  state.byUser = byUser;
  document.querySelector(`[name="mode"][value="${byUser ? "user" : "items"}"]`).checked = true;
  byId("by-items").hidden = byUser;
  byId("by-user").hidden = !byUser;
  refresh();
}

async function itemOrUnknown(itemId) {
  try {
    return await getItem(itemId, model());
  } catch (error) {
    if (!(error instanceof Problem) || error.problem.status !== 404) throw error;
    return { item_id: itemId, title: itemId, unknown: true };
  }
}

/** Decode a part of the address; one that is not encoded stands for itself. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function restore() {
  const [, ids] = location.hash.split("#items=");
  if (!ids) return showRecommendations();
  return changeHistory(await Promise.all(ids.split(",").slice(0, 200).map(decoded).map(itemOrUnknown)));
}

/** Read the history's items again, which another version may not have, or elsewhere in its tree. */
async function restart() {
  if (!state.items.length) return refresh();
  try {
    return changeHistory(await Promise.all(state.items.map((item) => itemOrUnknown(item.item_id))));
  } catch (error) {
    return byId("columns").replaceChildren(problemBox(error, restart));
  }
}

/** Ask which versions there are, then show what the address or the fields say. */
async function begin() {
  try {
    const { data } = await get("v1/models");
    const chosen = [byId("model").value, byId("other").value];
    const options = () => data.map((version) => el("option", { value: version.id }, version.default ? `${version.id} (default)` : version.id));
    byId("model").replaceChildren(...options());
    byId("model").value = data.some((version) => version.id === chosen[0]) ? chosen[0] : data.find((version) => version.default).id;
    byId("other").replaceChildren(el("option", { value: "" }, data.length > 1 ? "nothing" : "only one loaded"), ...options());
    byId("other").value = data.some((version) => version.id === chosen[1]) ? chosen[1] : "";
    byId("other").disabled = data.length < 2;
    filters.offerCurrencies(data.flatMap((version) => version.currencies));
    byId("k").max = Math.min(...data.map((version) => version.beam_width));
    byId("columns").replaceChildren();
    await restore();
  } catch (error) {
    byId("start").hidden = true;
    byId("columns").hidden = false;
    byId("columns").replaceChildren(problemBox(error, begin));
  }
}

setUpSearch({ add, model, say });
byId("clear").addEventListener("click", () => { changeHistory([], "History cleared"); byId("search").focus(); });
byId("model").addEventListener("change", restart);
byId("other").addEventListener("change", refresh);
for (const choice of document.querySelectorAll('[name="mode"]')) choice.addEventListener("change", () => switchTo(choice.value === "user"));
byId("by-user").addEventListener("submit", (event) => {
  event.preventDefault();
  state.user = byId("user").value.trim();
  refresh();
});
byId("key").value = apiKey.get();
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  byId("key-box").open = false;
  begin();
});
begin();
