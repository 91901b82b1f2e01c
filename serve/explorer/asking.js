// From what is chosen to the answer of one version. Wishes that it does not know by name are asked in words, and the answer says so.

import { Problem, recommend } from "./api.js";

const inWords = new Map(); // version -> interests that it does not know by name

/** Return {model, reply, asWords, unsteered}, or {model, error} if the endpoint refuses. */
export async function ask(body, wishes, canSteer, signal) {
  const model = body.model ?? "";
  const unknown = inWords.get(model) ?? inWords.set(model, new Set()).get(model);
  let steered = canSteer;
  for (;;) {
    const asked = steered ? wishes : [];
    const steer = asked.map(({ kind, name, weight }) => ({ [unknown.has(name) ? "text" : kind]: name, weight }));
    try {
      const reply = await recommend(steer.length ? { ...body, steer } : body, signal);
      const asWords = asked.filter(({ kind, name }) => kind === "interest" && unknown.has(name)).map(({ name }) => name);
      return { model: reply.model, reply, asWords, unsteered: wishes.length > 0 && !steered };
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      const { type, fields } = error.problem;
      const place = type === "unknown-interest" ? Number(fields[0].split(".")[1]) : -1;
      if (asked[place] && !unknown.has(asked[place].name)) unknown.add(asked[place].name);
      else if (type === "cannot-steer" && steered) steered = false; // the version that an experiment chose has no ranker
      else return { model: model || "the endpoint", error };
    }
  }
}
