// @ts-check
// Where a grid takes its cells and frames from: the traits of a widget, or the contents of a page.

import { frameUrl } from "./dom.js";

/**
 * @typedef {import("./levels.js").Trajectory & {
 *   position: number[], name: string, caption: string, facts: [string, string][], recipe: string, code: string,
 *   width: number, height: number, preview: number }} Cell one cell, as `GridEncoder.add` describes it
 * @typedef {{ url: string, step: number, steps: number, width: number, height: number }} Preview
 * @typedef {object} Source
 * @property {any} data title, axes, quantities and state, as `GridEncoder.data` describes them
 * @property {Cell[]} cells
 * @property {(number: number) => string | undefined} url address of a frame
 * @property {Map<string, Preview>} previews of unfinished cells, by their position joined by commas
 */

const PRELOADED = 16; // images of one turn

/**
 * Load the frames of a page after the first view. References keep them decoded in the browser, so that moving the slider
 * only swaps them.
 */
function preload(urls) {
  /** @type {HTMLImageElement[]} */
  const images = [];
  function next() {
    for (const url of urls.slice(images.length, images.length + PRELOADED)) {
      images.push(Object.assign(new Image(), { src: url }));
    }
    if (images.length < urls.length) setTimeout(next, 30);
  }
  setTimeout(next, 200);
  return images;
}

/** @returns {Source & { images: HTMLImageElement[] }} */
export function pageSource(data, urls) {
  return { data, cells: data.cells, url: (number) => urls[number], previews: new Map(), images: preload(urls) };
}

/**
 * The traits of a widget as a source.
 * @returns {Source & { preview(message: any, buffer: DataView): void, close(): void }}
 */
export function modelSource(model) {
  /** @type {string[]} */
  let urls = [];
  let run = 0;
  /** @type {Map<string, Preview>} */
  const previews = new Map();
  function clear() {
    for (const url of [...urls, ...[...previews.values()].map((preview) => preview.url)]) URL.revokeObjectURL(url);
    urls = [];
    previews.clear();
  }
  return {
    get data() {
      const data = model.get("data");
      // The frames of another run have the same numbers.
      if (data.run !== run) clear();
      run = data.run;
      return data;
    },
    get cells() {
      return model.get("cells");
    },
    url(number) {
      const frame = model.get("frames")[number];
      if (urls[number] === undefined && frame !== undefined) urls[number] = frameUrl(frame);
      return urls[number];
    },
    previews,
    preview({ position, step, steps, width, height, run: from }, buffer) {
      if (from !== run) return;
      const place = position.join();
      const previous = previews.get(place);
      if (previous) URL.revokeObjectURL(previous.url);
      previews.set(place, { url: frameUrl(buffer), step, steps, width, height });
    },
    close: clear,
  };
}

/**
 * Write cells that arrive as messages into the traits, for views that are opened later. Called once for each widget.
 * Messages that arrive before this script are lost; the kernel sends the traits again from time to time.
 */
export function receiveCells(model) {
  model.on("msg:custom", ({ kind, run, number, cell, first_frame }, buffers) => {
    if (kind !== "cell" || run !== model.get("data").run) return;
    model.get("cells")[number] = cell;
    buffers.forEach((buffer, i) => {
      model.get("frames")[first_frame + i] = buffer;
    });
  });
}
