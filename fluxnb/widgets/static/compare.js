// What tells pictures apart: their pixels, and the words of their recipes.

const SEEN = 8; // of 255: a change that an eye may notice

// |A - B| of two pictures of one size, as RGBA made `gain` times brighter, and what it amounts to on a scale of 255.
export function difference(a, b, gain) {
  const out = new Uint8ClampedArray(a.length);
  let sum = 0;
  let most = 0;
  let changed = 0;
  for (let i = 0; i < a.length; i += 4) {
    let here = 0;
    for (let channel = i; channel < i + 3; channel += 1) {
      const apart = Math.abs(a[channel] - b[channel]);
      out[channel] = apart * gain;
      sum += apart;
      here = Math.max(here, apart);
    }
    out[i + 3] = 255;
    most = Math.max(most, here);
    changed += here > SEEN;
  }
  const pixels = Math.max(a.length / 4, 1);
  return { out, mean: sum / (3 * pixels), most, changed: changed / pixels };
}

// Draws the difference of two addresses into a canvas and says it in words; null where a later call overtook this one.
async function drawDifference(canvas, urls, gain) {
  const turn = String(Number(canvas.dataset.turn ?? 0) + 1);
  canvas.dataset.turn = turn;
  const pictures = await Promise.all(urls.map(loaded));
  if (canvas.dataset.turn !== turn) return null;
  const width = Math.max(...pictures.map((picture) => picture.naturalWidth));
  const height = Math.max(...pictures.map((picture) => picture.naturalHeight));
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [a, b] = pictures.map((picture) => {
    context.drawImage(picture, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  });
  const { out, mean, most, changed } = difference(a, b, gain);
  context.putImageData(new ImageData(out, width, height), 0, 0);
  canvas.dataset.mean = String(mean);
  const share = `${Math.round(100 * changed)} % of the pixels differ by more than ${SEEN}`;
  return `${gain}× · mean ${mean.toFixed(1)} of 255 · largest ${most} · ${share}`;
}

// The facts, in order, that have one value in all of these cells.
function shares(cells) {
  const [first, ...rest] = cells.map((cell) => new Map(cell.facts));
  return [...first].filter(([name, value]) => rest.every((facts) => facts.get(name) === value));
}

function factLine(facts) {
  return [...facts].map(([name, value]) => {
    const fact = make("span", "fluxnb-fact");
    fact.append(make("i", "", name), ` ${value}`);
    return fact;
  });
}

// What the recipes of these cells say: a table of what differs, and a line of the rest.
function described(cells) {
  const same = shares(cells);
  const line = make("p", "fluxnb-same");
  line.append(...factLine(same));
  const all = cells.map((cell) => new Map(cell.facts));
  const names = new Set(all.flatMap((facts) => [...facts.keys()]));
  for (const [name] of same) names.delete(name);
  const table = make("table", "fluxnb-differs");
  for (const name of names) {
    const row = make("tr");
    row.append(make("th", "", name), ...all.map((facts) => make("td", "", facts.get(name) ?? "–")));
    table.append(row);
  }
  return names.size ? [table, line] : [line];
}
