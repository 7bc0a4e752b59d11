import assert from "node:assert/strict";
import test from "node:test";
import { partsOf } from "../src/axes.js";

test("an axis whose cells fit into one table is one part", () => {
  assert.deepEqual(partsOf(60, 4, 240), [[0, 60]]);
});

test("the parts of a longer axis hold all of its values and no more cells than allowed", () => {
  const parts = partsOf(250, 4, 240);
  assert.deepEqual(parts.slice(0, 2), [
    [0, 60],
    [60, 120],
  ]);
  assert.equal(
    parts.reduce((sum, [first, end]) => sum + end - first, 0),
    250,
  );
  assert.ok(parts.every(([first, end]) => (end - first) * 4 <= 240));
});

test("an axis across that alone exceeds the limit has a part for each value", () => {
  assert.equal(partsOf(3, 1000, 240).length, 3);
});
