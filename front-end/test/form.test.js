import assert from "node:assert/strict";
import { test } from "node:test";
import { changedFields, countNumbers, randomSeeds } from "../src/form.js";

test("numbers in a text are counted as Python reads them", () => {
  assert.equal(countNumbers("0-3, 7"), 5);
  assert.equal(countNumbers("1..3 5–6"), 5);
  assert.equal(countNumbers("18446744073709551614-18446744073709551615"), 2);
});

test("a text without numbers counts as one seed, and a huge range as at most 64", () => {
  assert.equal(countNumbers("three"), 1);
  assert.equal(countNumbers(""), 1);
  assert.equal(countNumbers("0-99999999999"), 64);
});

test("random seeds are whole numbers below 2**32, as many as requested", () => {
  const values = [0, 0.5, 1 - 2 ** -40];
  assert.equal(
    randomSeeds(3, () => values.shift()),
    "0, 2147483648, 4294967295",
  );
});

test("fields with other texts are named; surrounding space does not matter", () => {
  assert.deepEqual(changedFields({ prompt: "a fox", seeds: "0" }, { prompt: "a fox ", seeds: "1" }), ["seeds"]);
  assert.deepEqual(changedFields({}, { prompt: "" }), []);
});
