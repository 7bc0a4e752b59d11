import assert from "node:assert/strict";
import { test } from "node:test";
import { dabs, pathOf, scatter } from "../src/points.js";

/** A generator of numbers that is repeatable. */
function repeatable(state = 1) {
  return () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
}

test("a brush scatters as many points as requested around its center, with its width", () => {
  const points = scatter([1, -0.5], 0.1, 2.5, 4000, repeatable());
  assert.equal(points.length, 4000);
  for (const [axis, center] of [1, -0.5].entries()) {
    const values = points.map((point) => point[axis]);
    const mean = values.reduce((sum, value) => sum + value) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    assert.ok(Math.abs(mean - center) < 0.01);
    assert.ok(Math.abs(Math.sqrt(variance) - 0.1) < 0.01);
  }
});

test("points remain inside the plane and have at most three digits", () => {
  const points = scatter([2.5, -2.5], 0.3, 2.5, 500, repeatable());
  assert.ok(points.flat().every((value) => Math.abs(value) <= 2.5 && value === Number(value.toFixed(3))));
});

test("the dabs of a stroke have equal distances, however many moves it consists of", () => {
  const once = dabs([0, 0], [0.3, 0.4], 0);
  assert.equal(once.centers.length, 8);
  let [since, count] = [0, 0];
  for (let i = 0; i < 10; i++) {
    const part = dabs([0.03 * i, 0.04 * i], [0.03 * (i + 1), 0.04 * (i + 1)], since);
    since = part.since;
    count += part.centers.length;
  }
  assert.equal(count, 8);
  assert.ok(Math.abs(since - once.since) < 1e-9);
});

test("a stroke that does not move has no further dab", () => {
  assert.deepEqual(dabs([1, 1], [1, 1], 0.03), { centers: [], since: 0.03 });
});

test("a path has one dot for each point, with y upwards", () => {
  assert.equal(pathOf([]), "");
  assert.equal(pathOf([[0.5, 1.25], [-1, 0]]), "M0.5 -1.25h0M-1 0h0"); // biome-ignore format: one line
});
