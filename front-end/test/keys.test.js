import assert from "node:assert/strict";
import test from "node:test";
import { keyLine, pressKey } from "../src/keys.js";

function press(key, more = {}) {
  const done = { prevented: false };
  const event = { key, preventDefault: () => (done.prevented = true), stopPropagation() {}, ...more };
  return { event, done };
}

test("a key of the table runs its action and nothing of the page", () => {
  const seen = [];
  const table = [{ keys: "s", text: "star", on: { s: (shift) => seen.push(shift) } }];
  const { event, done } = press("s", { shiftKey: true });
  assert.equal(pressKey(table, event), true);
  assert.deepEqual([seen, done.prevented], [[true], true]);
});

test("other keys, and keys with Control, are left to the page", () => {
  const table = [{ keys: "s", text: "star", on: { s: () => assert.fail() } }];
  for (const each of [press("constructor"), press("s", { ctrlKey: true }), press("x")]) {
    assert.equal(pressKey(table, each.event), false);
    assert.equal(each.done.prevented, false);
  }
});

test("the line of help has the keys of the table and no others", () => {
  const table = [
    { keys: "← →", text: "step", on: {} },
    { keys: "x c", text: "displayed quantity", on: {} },
  ];
  assert.equal(keyLine(table), "← → step · x c displayed quantity");
});
