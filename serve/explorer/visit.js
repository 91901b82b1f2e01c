// The visit: what was clicked in the lists. For a known user it may be sent as events; what is not sent counts on this page only.

import { post, Problem } from "./api.js";
import { byId, count, el } from "./dom.js";

const DONE = { view: "Looked at", cart: "Put into the cart", purchase: "Bought" };
const STATES = { here: "not sent", sending: "being sent", sent: "sent" };

/** An id that no other event has; `crypto.randomUUID` is there on https and this machine only. */
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Make the visit work.
 *
 * `user()` names the user or is empty, `append(item)` puts an item at the end of a history that was chosen here, `changed()` is called
 * when a user's list may be another one.
 */
export function setUpVisit({ user, append, changed, say }) {
  let events = [];
  let whose = "";

  const sends = () => Boolean(user()) && byId("send").checked;

  function show() {
    const send = byId("send");
    send.disabled = !user();
    if (!user()) send.checked = false;
    byId("send-note").textContent = !user() ? "Events need a user. What you click is added to the history."
      : send.checked ? `What you click is kept as done by ${user()}.` : `What you click counts on this page, and is not kept for ${user()}.`;
    byId("visit-count").textContent = count(events.length, "event");
    byId("visit-count").hidden = byId("forget").hidden = events.length === 0;
    byId("visit").replaceChildren(...events.map(row).reverse());
  }

  function row(event) {
    const again = () => deliver(event);
    return el("li", { class: event.state, "data-event": event.type, "data-item": event.item.item_id },
      el("span", { class: "what" }, el("span", { class: "title" }, `${DONE[event.type]} ${event.item.title}`),
        el("span", { class: "note" }, event.user ? STATES[event.state] ?? `not sent: ${event.problem}` : "added to the history")),
      event.state === "failed" && el("button", { type: "button", class: "quiet", "aria-label": `Send again: ${DONE[event.type]} ${event.item.title}`, onclick: again }, "Send again"));
  }

  async function deliver(event) {
    event.state = "sending";
    show();
    const body = { event_id: event.id, type: event.type, user_id: event.user, item_id: event.item.item_id };
    try {
      const { errors } = await post("v1/events", event.list ? { ...body, recommendation_id: event.list } : body);
      event.state = errors.length ? "failed" : "sent";
      event.problem = errors[0]?.detail;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      event.state = "failed";
      event.problem = error.message;
    }
    say(`${DONE[event.type]} ${event.item.title}: ${STATES[event.state] ?? `not sent, ${event.problem}`}`);
    show();
    if (event.user === user()) changed();
  }

  byId("send").addEventListener("change", show);
  byId("forget").addEventListener("click", () => {
    events = [];
    show();
    say("Visit forgotten on this page");
    byId("visit-title").focus();
    changed();
  });

  return {
    /** Note what was done with an item of a list. */
    async act(type, item, reply) {
      const event = { id: newId(), type, user: user(), item, list: reply?.recommendation_id, state: "here" };
      events.push(event);
      if (sends()) return deliver(event);
      show();
      say(`${DONE[type]} ${item.title}`);
      return user() ? changed() : append(item);
    },
    /** Items of the visit that the endpoint was not told of, oldest first. */
    unsent: () => (user() ? events.filter(({ state }) => state !== "sent").map(({ item }) => item.item_id) : []),
    /** Begin a visit of another user, or of none; that of the same goes on. */
    begin() {
      if (user() !== whose) { events = []; byId("send").checked = false; }
      whose = user();
      show();
    },
  };
}
