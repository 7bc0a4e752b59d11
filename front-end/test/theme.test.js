import assert from "node:assert/strict";
import { test } from "node:test";
import { luminance } from "../src/theme.js";

test("luminance is that of WCAG for each notation of a browser", () => {
  assert.equal(luminance("rgb(0, 0, 0)"), 0);
  assert.ok(Math.abs(luminance("rgb(255, 255, 255)") - 1) < 1e-9);
  assert.ok(Math.abs(luminance("rgba(119, 119, 119, 0.5)") - 0.1845) < 1e-4);
  assert.ok(Math.abs(luminance("color(srgb 1 0 0)") - 0.2126) < 1e-9);
});
