// @ts-check
// The list of keys of a view, behind a button and the key "?".

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
