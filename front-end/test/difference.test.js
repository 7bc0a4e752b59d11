import assert from "node:assert/strict";
import { test } from "node:test";
import { difference } from "../src/difference.js";

const rgba = (...pixels) => Uint8ClampedArray.from(pixels.flat());

test("equal images have no difference", () => {
  const image = rgba([1, 2, 3, 255], [200, 100, 0, 255]);
  const { out, mean, largest, changed } = difference(image, image, 4);
  assert.deepEqual([...out], [0, 0, 0, 255, 0, 0, 0, 255]);
  assert.deepEqual([mean, largest, changed], [0, 0, 0]);
});

test("statistics are those of the undistorted difference, and the gain brightens the image", () => {
  const { out, mean, largest, changed } = difference(
    rgba([10, 0, 0, 255], [0, 0, 0, 255]),
    rgba([0, 3, 0, 255], [0, 0, 100, 255]),
    4,
  );
  assert.deepEqual([...out], [40, 12, 0, 255, 0, 0, 255, 255]);
  assert.equal(mean, 113 / 6);
  assert.deepEqual([largest, changed], [100, 1]);
});

test("a change of eight levels is not counted as visible", () => {
  assert.equal(difference(rgba([8, 0, 0, 255]), rgba([0, 0, 0, 255]), 1).changed, 0);
  assert.equal(difference(rgba([9, 0, 0, 255]), rgba([0, 0, 0, 255]), 1).changed, 1);
});
