// @ts-check
// The list of keys that a view displays, behind a button and the key "?". What a key does is in TABLE_KEYS and
// GLOBAL_KEYS of grid.js, and in COMMON_KEYS and MODE_KEYS of viewer.js; tooltips of buttons name their keys as well.

import { make, makeButton } from "./dom.js";

/**
 * @param {() => [string, string][]} entries keys and what they do, read whenever the list is opened
 */
export function makeKeyList(entries) {
  const node = make("div", "fluxnb-keys");
  const list = make("dl", "fluxnb-key-list");
  const button = makeButton("fluxnb-keys-button", "? keys", "show the keys (?)", () => toggle());
  list.hidden = true;
  button.setAttribute("aria-expanded", "false");
  node.append(button, list);

  function toggle(open = list.hidden) {
    list.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
    if (!open) return;
    list.replaceChildren(
      ...entries().map(([keys, action]) => {
        const entry = make("div");
        entry.append(make("dt", "", keys), make("dd", "", action));
        return entry;
      }),
    );
  }
  return { node, toggle };
}
