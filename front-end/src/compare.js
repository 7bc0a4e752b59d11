// @ts-check
// Comparison of cells: differences of their pixels and of their recipes.

import { difference, VISIBLE } from "./difference.js";
import { loadImage, make } from "./dom.js";

// Draw the difference of two image URLs into a canvas. Returns the statistics as text, or null if a later call for the
// same canvas has started in the meantime.
export async function drawDifference(canvas, urls, gain) {
  const request = String(Number(canvas.dataset.request ?? 0) + 1);
  canvas.dataset.request = request;
  const images = await Promise.all(urls.map(loadImage));
  if (canvas.dataset.request !== request) return null;
  const width = Math.max(...images.map((image) => image.naturalWidth));
  const height = Math.max(...images.map((image) => image.naturalHeight));
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [a, b] = images.map((image) => {
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  });
  const { out, mean, largest, changed } = difference(a, b, gain);
  context.putImageData(new ImageData(out, width, height), 0, 0);
  canvas.dataset.mean = String(mean);
  const share = `${Math.round(100 * changed)} % of the pixels differ by more than ${VISIBLE}`;
  return `${gain}× · mean ${mean.toFixed(1)} of 255 · largest ${largest} · ${share}`;
}

// The facts that are equal in all of these cells, in order.
export function commonFacts(cells) {
  const [first, ...rest] = cells.map((cell) => new Map(cell.facts));
  return [...first].filter(([name, value]) => rest.every((facts) => facts.get(name) === value));
}

export function factNodes(facts) {
  return [...facts].map(([name, value]) => {
    const fact = make("span", "fluxnb-fact");
    fact.append(make("i", "", name), ` ${value}`);
    return fact;
  });
}

// The recipes of these cells: a table of the facts that differ and a line of the common ones.
export function describeCells(cells) {
  const common = commonFacts(cells);
  const line = make("p", "fluxnb-common");
  line.append(...factNodes(common));
  const all = cells.map((cell) => new Map(cell.facts));
  const names = new Set(all.flatMap((facts) => [...facts.keys()]));
  for (const [name] of common) names.delete(name);
  const table = make("table", "fluxnb-differences");
  for (const name of names) {
    const row = make("tr");
    row.append(make("th", "", name), ...all.map((facts) => make("td", "", facts.get(name) ?? "–")));
    table.append(row);
  }
  return names.size ? [table, line] : [line];
}
