// What every view of frames shares; it stands in front of the view's own script, in one module with it.
//
// A walk is { sigmas, frames: { show: [number, ...] }, final: number or null }; numbers count the frames of the view.

const ENDS_IN_PICTURE = new Set(["x", "clean"]); // what sigma 0 shows; velocity and noise have no value there
const CLOSE = 1e-6;
const KEYS = { x: "x", v: "v", c: "clean", n: "noise" };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Every noise level that any of the walks visits, from 1 down, and 0 where a walk ended in a picture.
export function levels(walks) {
  const all = walks.flatMap((walk) => walk.sigmas.concat(walk.final === null ? [] : [0]));
  all.sort((a, b) => b - a);
  return all.filter((sigma, i) => i === 0 || all[i - 1] - sigma > CLOSE);
}

// Which frame of a walk is in view at sigma: that of the last step begun by then. -1: no step, the picture alone.
export function frameAt(walk, show, sigma) {
  const frames = walk.frames[show] ?? [];
  if (frames.length === 0 || (sigma <= CLOSE && walk.final !== null && ENDS_IN_PICTURE.has(show))) {
    return { step: -1, frame: walk.final ?? frames[frames.length - 1] ?? null };
  }
  let step = 0;
  while (step + 1 < walk.sigmas.length && walk.sigmas[step + 1] >= sigma - CLOSE) step += 1;
  return { step, frame: frames[step] };
}

// The address of a frame that came as bytes; whoever asks for it revokes it.
function address(view) {
  // A DataView may look into a buffer it shares with others: its own stretch of it, and no more.
  const bytes = view.buffer ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : view;
  return URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
}
