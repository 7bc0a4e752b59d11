// @ts-check
// Download of images: PNG files with an embedded recipe, several of them in one ZIP archive.

import { withRecipe, zipped } from "./archive.js";
import { loadImage, make } from "./dom.js";

async function encodePng(url, recipe) {
  const image = await loadImage(url);
  const canvas = make("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return withRecipe(new Uint8Array(await blob.arrayBuffer()), recipe);
}

// Download one image as PNG, several as a ZIP of PNGs; each is { name, url, recipe }.
export async function download(images) {
  const files = [];
  for (const { name, url, recipe } of images) files.push({ name: `${name}.png`, bytes: await encodePng(url, recipe) });
  const [one] = files;
  const many = files.length > 1;
  const bytes = many ? zipped(files) : one.bytes;
  const link = make("a");
  link.download = many ? "starred.zip" : one.name;
  link.href = URL.createObjectURL(new Blob([bytes], { type: many ? "application/zip" : "image/png" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
