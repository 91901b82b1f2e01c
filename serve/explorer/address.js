// The address: what is chosen, after its `#`, so that a link shows the same list. Its parts are NAME=VALUE with & between.

const MOST = { items: 200, wishes: 8, categories: 100 };
const WISH = /^(interest|text):(-?[0-9.]+):(.+)$/s;
const FILTERS = ["k", "min", "max", "currency"];

/** Decode a part; one that is not encoded stands for itself. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function wishOf(value) {
  const [, kind, weight, name] = value.match(WISH) ?? [];
  const number = Number(weight);
  return name && number && Math.abs(number) <= 10 ? { kind, name: name.slice(0, 200), weight: number } : null;
}

/** Read what the address says; what it does not say is empty. */
export function readAddress() {
  const parts = location.hash.slice(1).split("&").map((part) => [part.split("=", 1)[0], part.slice(part.indexOf("=") + 1)]);
  const raw = (wanted) => parts.filter(([name, value]) => name === wanted && value).map(([, value]) => value);
  const one = (name) => decoded(raw(name).at(-1) ?? "");
  const list = (name, most) => raw(name).flatMap((value) => value.split(",")).filter(Boolean).slice(0, most).map(decoded);
  return {
    items: list("items", MOST.items),
    user: one("user").slice(0, 256),
    model: one("model"),
    other: one("other"),
    wishes: raw("wish").map(decoded).map(wishOf).filter(Boolean).slice(0, MOST.wishes),
    filters: {
      ...Object.fromEntries(FILTERS.map((name) => [name, one(name)])),
      only: list("only", MOST.categories),
      never: list("never", MOST.categories),
      exclude: one("exclude") === "1",
    },
    item: one("item"),
  };
}

/** Return the address of a choice in the form of `readAddress`; what is empty is left out. */
export function addressOf({ items, user, model, other, wishes, filters, item }) {
  const code = encodeURIComponent;
  const listed = (values) => values.map(code).join(",");
  const parts = [["items", listed(items)], ["user", code(user)], ["model", code(model)], ["other", code(other)]];
  parts.push(...wishes.map(({ kind, name, weight }) => ["wish", `${kind}:${weight}:${code(name)}`]));
  parts.push(...FILTERS.map((name) => [name, code(filters[name])]));
  parts.push(["only", listed(filters.only)], ["never", listed(filters.never)], ["exclude", filters.exclude ? "1" : ""], ["item", code(item)]);
  return `#${parts.filter(([, value]) => value).map(([name, value]) => `${name}=${value}`).join("&")}`;
}
