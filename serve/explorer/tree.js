// The tree of semantic IDs: levels come from the endpoint as they are opened; listed items' paths are lit.

import { get, problemBox } from "./api.js";
import { byId, codeColour, count, el } from "./dom.js";

/** Make the tree work; `add(itemId)` gets an item that was chosen in it, `wishes` an interest of a node. */
export function setUpTree({ add, wishes, canSteer, say }) {
  const root = byId("tree");
  let model;
  let lit = new Map(); // prefix -> how many listed items are below it
  let ranks = new Map(); // whole semantic ID -> place in the list
  let chosen = ""; // whole semantic ID whose path is shown
  let turn = 0;

  const items = () => [...root.querySelectorAll('[role="treeitem"]')].filter((node) => !node.closest('[role="group"][hidden]') && node.offsetParent);
  const prefixOf = (node) => node.dataset.prefix;
  const isOpen = (node) => node.getAttribute("aria-expanded") === "true";

  function mark(node) {
    const prefix = prefixOf(node);
    const number = lit.get(prefix) ?? 0;
    const onPath = chosen === prefix || chosen.startsWith(`${prefix}.`);
    node.classList.toggle("lit", number > 0);
    node.classList.toggle("on-path", onPath);
    node.setAttribute("aria-selected", String(chosen === prefix));
    node.querySelector(".listed").textContent = ranks.has(prefix) ? `no. ${ranks.get(prefix)}` : number ? `${number} listed` : "";
  }

  function nodeOf(child, level) {
    const dot = el("span", { class: "dot" });
    dot.style.backgroundColor = codeColour(child.code, level);
    const words = child.item_id ? child.samples[0]?.title : child.interests[0] ?? child.samples[0]?.title ?? "";
    const wish = !child.item_id && canSteer(model) ? child.interests[0] : undefined;
    const row = el("div", { class: "node" },
      el("span", { class: "twist", "aria-hidden": "true" }),
      el("span", { class: "code" }, dot, String(child.code)),
      el("span", { class: "title", title: [...child.interests, ...child.samples.map((item) => item.title)].join("\n") }, words),
      el("span", { class: "listed" }),
      wish && wishes.sign(wish),
      child.item_id ? null : el("span", { class: "num" }, el("span", { class: "hidden" }, ", "), String(child.num_items), el("span", { class: "hidden" }, " items")));
    const node = el("li", { role: "treeitem", "data-prefix": child.prefix, "aria-level": level + 1, "aria-label": labelOf(child, words), tabindex: "-1" }, row);
    if (wish) {
      node.dataset.wish = wish;
      node.setAttribute("aria-keyshortcuts", "+");
    }
    if (child.item_id) node.dataset.item = child.item_id;
    else {
      node.setAttribute("aria-expanded", "false");
      node.append(el("ul", { role: "group", hidden: true }));
    }
    row.addEventListener("click", (event) => { if (event.target.closest("button")) return; focus(node); if (child.item_id) add(child.item_id); else toggle(node); });
    mark(node);
    return node;
  }

  function labelOf(child, words) {
    return child.item_id ? `${child.code}, item ${words}` : `${child.code}, ${count(child.num_items, "item")}${words ? `, ${words}` : ""}`;
  }

  async function fill(list, prefix) {
    const asked = turn;
    const level = await get("v1/sids", { prefix, model });
    if (asked !== turn) return false;
    list.replaceChildren(...level.children.map((child) => nodeOf(child, level.level)));
    if (prefix === "") byId("tree-note").textContent = `${count(level.num_items, "item")}. Items that resemble each other begin with the same codes.`;
    list.dataset.filled = "yes";
    return true;
  }

  async function toggle(node, open = !isOpen(node), tell = say) {
    const group = node.querySelector('[role="group"]');
    if (!group) return;
    if (open && !group.dataset.filled) {
      node.setAttribute("aria-busy", "true");
      try { if (!(await fill(group, prefixOf(node)))) return; } catch (error) { showProblem(error); return; } finally { node.removeAttribute("aria-busy"); }
    }
    group.hidden = !open;
    node.setAttribute("aria-expanded", String(open));
    if (open) tell(`${count(group.children.length, "code")} below ${prefixOf(node)}`);
  }

  function showProblem(error) {
    if (error.name === "AbortError") return;
    byId("tree-problem").replaceChildren(problemBox(error, load));
    byId("tree-problem").hidden = false;
  }

  function focus(node) {
    for (const other of root.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  }

  function refresh() {
    root.classList.toggle("only-lit", byId("lit-only").checked && lit.size > 0);
    root.querySelectorAll('[role="treeitem"]').forEach(mark);
    const shown = items();
    if (!shown.some((node) => node.tabIndex === 0)) {
      for (const other of root.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
      if (shown.length) shown[0].tabIndex = 0;
    }
  }

  async function load() {
    turn += 1;
    byId("tree-problem").hidden = true;
    try { if (await fill(root, "")) refresh(); } catch (error) { showProblem(error); }
  }

  /** Open the way to a semantic ID; only `visit` moves the focus there. */
  async function reveal(sid, visit) {
    chosen = sid.join(".");
    for (let level = 1; level < sid.length; level += 1) {
      const node = root.querySelector(`[data-prefix="${sid.slice(0, level).join(".")}"]`);
      if (!node) return;
      if (!isOpen(node)) await toggle(node, true, () => {});
    }
    refresh();
    const leaf = root.querySelector(`[data-prefix="${chosen}"]`);
    if (!leaf) return;
    if (visit) focus(leaf);
    root.scrollTop += leaf.getBoundingClientRect().top - root.getBoundingClientRect().top - root.clientHeight / 2;
  }

  root.addEventListener("keydown", (event) => {
    const shown = items();
    const node = document.activeElement;
    const place = shown.indexOf(node);
    if (place < 0) return;
    const go = (target) => target && focus(target);
    const actions = {
      ArrowDown: () => go(shown[place + 1]),
      ArrowUp: () => go(shown[place - 1]),
      Home: () => go(shown[0]),
      End: () => go(shown[shown.length - 1]),
      ArrowRight: () => (isOpen(node) ? go(shown[place + 1]) : toggle(node, true)),
      ArrowLeft: () => (isOpen(node) ? toggle(node, false) : go(node.parentElement.closest('[role="treeitem"]'))),
      "+": () => node.dataset.wish && wishes.turn(node.dataset.wish),
      Enter: () => (node.dataset.item ? add(node.dataset.item) : toggle(node)),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  byId("lit-only").addEventListener("change", refresh);

  return {
    /** Show another version's tree, or the same again. */
    async show(name) { if (name !== model || !root.dataset.filled) { model = name; chosen = ""; await load(); } },
    /** Light the paths of the listed items. */
    light(listed) {
      lit = new Map();
      ranks = new Map(listed.map(({ sid }, rank) => [sid.join("."), rank + 1]));
      for (const { sid } of listed) {
        for (let level = 1; level <= sid.length; level += 1) {
          const prefix = sid.slice(0, level).join(".");
          lit.set(prefix, (lit.get(prefix) ?? 0) + 1);
        }
      }
      chosen = "";
      refresh();
    },
    reveal,
  };
}
