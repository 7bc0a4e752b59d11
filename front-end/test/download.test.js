import assert from "node:assert/strict";
import { test } from "node:test";
import { pngOf } from "../src/download.js";

const encode = async () => "from the page";
const picture = { name: "fox", url: "data:", recipe: "{}", preview: 0, original: null };

test("a picture with its original pixels keeps its name", async () => {
  assert.deepEqual(await pngOf(picture, encode), { name: "fox.png", bytes: "from the page" });
});

test("of a preview the original pixels are fetched", async () => {
  const original = async () => "from the kernel";
  assert.deepEqual(await pngOf({ ...picture, preview: 512, original }, encode), {
    name: "fox.png",
    bytes: "from the kernel",
  });
});

test("a preview whose original cannot be fetched is named as such", async () => {
  const original = () => Promise.reject(new Error("no kernel"));
  for (const source of [original, null]) {
    const { name } = await pngOf({ ...picture, preview: 512, original: source }, encode);
    assert.equal(name, "fox-preview-512px.png");
  }
});
