// The endpoint: every request of the page goes through here, with the key and with problems as errors.

import { byId, el, sidTile } from "./dom.js";

// the page may stand below a prefix, and so may the endpoint: both begin where this file's folder lies
const BASE = new URL("../", import.meta.url);
const KEY = "digr-api-key";

/** The key its user typed; it lives as long as the tab. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the server refused, or that it did not answer, with the cause it gave. */
export class Problem extends Error {
  constructor(problem, retryAfter) {
    super(problem.detail);
    this.problem = problem;
    this.retryAfter = retryAfter;
  }
}

function headers(more = {}) {
  const key = apiKey.get();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, BASE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const detail = "the server cannot be reached; it may be starting, or have stopped";
    throw new Problem({ type: "no-connection", title: "No connection", status: 0, detail });
  }
  if (response.ok) return response;
  const kind = response.headers.get("content-type") ?? "";
  const plain = { type: "http-error", title: "No answer", status: response.status, detail: `the server answered with status ${response.status}` };
  const problem = kind.startsWith("application/problem+json") ? await response.json() : plain;
  throw new Problem(problem, response.headers.get("retry-after"));
}

/** Read from the endpoint; parameters that are not given are left out. */
export async function get(path, parameters = {}, signal) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null));
  const response = await send(`${path}?${query}`, { headers: headers(), signal });
  return response.json();
}

async function sendJson(method, path, body, signal) {
  const sent = { method, headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body), signal };
  return (await send(path, sent)).json();
}

/** Send something new to the endpoint, as JSON. */
export const post = (path, body, signal) => sendJson("POST", path, body, signal);

/** Change an item. Returns it. */
export const changeItem = (itemId, change) => sendJson("PATCH", `v1/items/${encodeURIComponent(itemId)}`, change);

/** Take an item out. */
export const deleteItem = (itemId) => send(`v1/items/${encodeURIComponent(itemId)}`, { method: "DELETE", headers: headers() });

/** Ask for recommendations. */
export const recommend = (body, signal) => post("v1/recommend", body, signal);

/** Read one item. */
export const getItem = (itemId, model, signal) => get(`v1/items/${encodeURIComponent(itemId)}`, { model }, signal);

/** Picture of an item: its image where it has one, or else the stripes of its semantic ID; nothing where neither is known. */
export function picture(item, model) {
  if (!item.image && !item.sid) return null;
  const frame = el("span", { class: "picture", "aria-hidden": "true" }, sidTile(item.sid ?? []));
  if (item.image) showImage(frame, item, model);
  return frame;
}

async function showImage(frame, item, model) {
  const address = new URL(item.image.replace(/^\//, ""), BASE);
  if (model) address.searchParams.set("model", model);
  const image = el("img", { alt: "", loading: "lazy", width: 48, height: 48 });
  image.addEventListener("error", () => image.remove());
  if (apiKey.get()) {
    // an <img> sends no key
    try {
      const response = await send(address, { headers: headers() });
      image.src = URL.createObjectURL(await response.blob());
      image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      return;
    }
  } else image.src = address;
  frame.append(image);
}

/** Show what went wrong: what the server says, the fields it names, and what can be done here. */
export function problemBox(error, retry) {
  if (!(error instanceof Problem)) throw error;
  const { type, title, detail, status, unknown_items: unknown } = error.problem;
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const box = el("div", { class: "problem", role: "alert" }, el("h3", {}, title), el("p", {}, detail + wait));
  if (unknown?.length) box.append(el("p", {}, `Not in the catalogue: ${unknown.join(", ")}`));
  box.append(el("p", { class: "note" }, el("code", {}, type), status ? ` · status ${status}` : ""));
  if (status === 401 || status === 403) {
    const open = () => {
      document.querySelector("dialog[open]")?.close();
      byId("key-box").open = true;
      byId("key").focus();
    };
    box.append(el("button", { type: "button", class: "primary", onclick: open }, "Enter an API key"));
  } else if (retry && (status === 0 || status === 429 || status >= 500)) box.append(el("button", { type: "button", class: "primary", onclick: retry }, "Try again"));
  return box;
}
