// The versions: which are loaded, which is asked, and what each can do.

import { get } from "./api.js";
import { byId, el } from "./dom.js";

/** Make the two choices of versions work; `asked()` and `compared()` are called when they change. */
export function setUpVersions({ asked, compared }) {
  let known = new Map();
  let standard = "";
  byId("model").addEventListener("change", asked);
  byId("other").addEventListener("change", compared);

  return {
    /** Ask which versions there are. Returns them. */
    async load() {
      const { data } = await get("v1/models");
      known = new Map(data.map((version) => [version.id, version]));
      standard = data.find((version) => version.default).id;
      const options = () => data.map((version) => el("option", { value: version.id }, version.default ? `${version.id} (default)` : version.id));
      const chosen = [byId("model").value, byId("other").value];
      byId("model").replaceChildren(el("option", { value: "" }, "as users get it"), ...options());
      byId("other").replaceChildren(el("option", { value: "" }, data.length > 1 ? "nothing" : "only one loaded"), ...options());
      byId("other").disabled = data.length < 2;
      this.choose(...chosen);
      return data;
    },
    /** Choose versions by name; an unknown name is none. */
    choose(model, other) {
      byId("model").value = known.has(model) ? model : "";
      byId("other").value = known.has(other) ? other : "";
    },
    /** The version asked; empty to let the endpoint choose, by its default or its experiment. */
    chosen: () => byId("model").value,
    /** The version asked; the default where the endpoint chooses. */
    name: () => byId("model").value || standard,
    /** The version to compare with; empty for none. */
    other: () => byId("other").value,
    /** Whether a version's lists can be steered. */
    canSteer: (name) => known.get(name || standard)?.ranker === "on",
  };
}
