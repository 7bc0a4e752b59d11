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

/** Copy an image to the clipboard, as PNG. */
export async function copyImage(url, recipe) {
  const png = encodePng(url, recipe).then((bytes) => new Blob([bytes], { type: "image/png" }));
  await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
}

/** Copy a text to the clipboard, also where a page has no permission for the clipboard but may copy its selection. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea");
    area.value = text;
    area.style.position = "fixed";
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) throw new Error("the browser does not allow copying here");
  }
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
