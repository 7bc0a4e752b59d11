// @ts-check
// The keys of a view. A view has one table of them, from which the displayed list and the handling of a pressed key
// both come.

import { make, makeButton } from "./dom.js";

/**
 * One line of the table.
 * @typedef {object} Keys
 * @property {string} keys as displayed
 * @property {string} text what they do
 * @property {Record<string, (shift: boolean) => void>} on by `KeyboardEvent.key`, what each of them does
 */

/**
 * Run the action of a pressed key.
 * @param {Keys[]} table
 * @param {KeyboardEvent} event
 * @returns {boolean} whether the key is in the table
 */
export function pressKey(table, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  const action = table.find(({ on }) => Object.hasOwn(on, event.key))?.on[event.key];
  if (!action) return false;
  action(event.shiftKey);
  event.preventDefault();
  event.stopPropagation();
  return true;
}

/**
 * The table in one line of text.
 * @param {Keys[]} table
 */
export function keyLine(table) {
  return table.map(({ keys, text }) => `${keys} ${text}`).join(" · ");
}

/**
 * The table as a list behind a button; the key "?" also opens and closes it.
 * @param {() => Keys[]} table read whenever the list is opened
 */
export function makeKeyList(table) {
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
      ...table().map(({ keys, text }) => {
        const entry = make("div");
        entry.append(make("dt", "", keys), make("dd", "", text));
        return entry;
      }),
    );
  }
  return { node, toggle, /** @type {Keys} */ entry: { keys: "?", text: "this list", on: { "?": () => toggle() } } };
}
