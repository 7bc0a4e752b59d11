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
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return recipe ? withRecipe(bytes, recipe) : bytes;
}

/**
 * @typedef {object} Picture
 * @property {string} name
 * @property {string} url of the final image in the page
 * @property {string} recipe empty for a step, whose image is a preview
 * @property {number} preview longest side of that image in pixels if it does not have the original pixels, otherwise 0
 * @property {(() => Promise<Uint8Array>) | null} original fetches a PNG with the original pixels, where that is possible
 */

/**
 * A PNG with its recipe, and its name, which contains "preview" if it does not have the original pixels.
 * @param {Picture} picture
 */
export async function pngOf({ name, url, recipe, preview, original }, encode = encodePng) {
  if (!preview) return { name: `${name}.png`, bytes: await encode(url, recipe) };
  if (original) {
    try {
      return { name: `${name}.png`, bytes: await original() };
    } catch {
      // The kernel does not reply; the preview is what there is.
    }
  }
  return { name: `${name}-preview-${preview}px.png`, bytes: await encode(url, recipe) };
}

/**
 * Copy an image to the clipboard, as PNG with the original pixels where they can be had.
 * @param {Picture} picture
 * @returns {Promise<string>} what was copied
 */
export async function copyImage(picture) {
  const png = pngOf(picture);
  const blob = png.then(({ bytes }) => new Blob([bytes], { type: "image/png" }));
  await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
  const { name } = await png;
  if (name === `${picture.name}.png`) return picture.recipe ? "image copied" : "preview of this step copied";
  return `preview copied, ${picture.preview} px`;
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

/**
 * Download one image as PNG, several as a ZIP of PNGs.
 * @param {Picture[]} pictures
 * @returns {Promise<string[]>} the names of the files
 */
export async function download(pictures) {
  const files = [];
  for (const picture of pictures) files.push(await pngOf(picture));
  const [one] = files;
  const many = files.length > 1;
  const bytes = many ? zipped(files) : one.bytes;
  const link = make("a");
  link.download = many ? "starred.zip" : one.name;
  link.href = URL.createObjectURL(new Blob([bytes], { type: many ? "application/zip" : "image/png" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  return files.map(({ name }) => name);
}
