import assert from "node:assert/strict";
import { test } from "node:test";
import { frameAt, levels } from "../src/levels.js";

const four = { sigmas: [1, 0.75, 0.5, 0.25], frames: { clean: [0, 1, 2, 3], v: [4, 5, 6, 7] }, final: 8 };
const two = { sigmas: [1, 0.5], frames: { clean: [0, 9] }, final: null };

test("levels are all noise levels in falling order, without duplicates", () => {
  assert.deepEqual(levels([four, two]), [1, 0.75, 0.5, 0.25, 0]);
  assert.deepEqual(levels([two]), [1, 0.5]);
  assert.deepEqual(levels([]), []);
});

test("levels that differ by a rounding error are one level", () => {
  assert.deepEqual(levels([two, { ...two, sigmas: [1, 0.5 + 1e-9] }]), [1, 0.5 + 1e-9]);
});

test("the frame at a level is that of the last step with at least that level", () => {
  assert.deepEqual(frameAt(four, "clean", 0.6), { step: 1, frame: 1 });
  assert.deepEqual(frameAt(four, "clean", 0.5), { step: 2, frame: 2 });
  assert.deepEqual(frameAt(two, "clean", 0.6), { step: 0, frame: 0 });
});

test("at level 0 the clean estimate is the final image, and the velocity is that of the last step", () => {
  assert.deepEqual(frameAt(four, "clean", 0), { step: -1, frame: 8 });
  assert.deepEqual(frameAt(four, "v", 0), { step: 3, frame: 7 });
  assert.deepEqual(frameAt(two, "clean", 0), { step: 1, frame: 9 });
});

test("a trajectory without frames shows its final image, or nothing", () => {
  assert.deepEqual(frameAt({ sigmas: [], frames: {}, final: 3 }, "clean", 1), { step: -1, frame: 3 });
  assert.deepEqual(frameAt({ sigmas: [], frames: {}, final: null }, "clean", 1), { step: -1, frame: null });
});
