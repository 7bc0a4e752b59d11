// What every view of frames shares; it stands in front of the view's own script, in one module with it.
//
// A trajectory is { sigmas, frames: { show: [number, ...] }, final: number or null }; numbers count the frames of the view.

const ENDS_IN_PICTURE = new Set(["x", "clean"]); // what sigma 0 shows; velocity and noise have no value there
const CLOSE = 1e-6;
const KEYS = { x: "x", v: "v", c: "clean", n: "noise" };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// JupyterLab takes keys away from a focused control unless the control itself says that it needs them.
function keysAreOurs(node) {
  node.setAttribute("data-lm-suppress-shortcuts", "true");
  return node;
}

function makeButton(className, text, title, act) {
  const node = keysAreOurs(make("button", className, text));
  node.type = "button";
  if (title) node.title = title;
  node.addEventListener("click", act);
  return node;
}

// Every noise level that any of the trajectories visits, from 1 down, and 0 where a trajectory ended in a picture.
export function levels(trajectories) {
  const all = trajectories.flatMap((trajectory) => trajectory.sigmas.concat(trajectory.final === null ? [] : [0]));
  all.sort((a, b) => b - a);
  return all.filter((sigma, i) => i === 0 || all[i - 1] - sigma > CLOSE);
}

// Which frame of a trajectory is in view at sigma: that of the last step begun by then. -1: no step, the picture alone.
export function frameAt(trajectory, show, sigma) {
  const frames = trajectory.frames[show] ?? [];
  if (frames.length === 0 || (sigma <= CLOSE && trajectory.final !== null && ENDS_IN_PICTURE.has(show))) {
    return { step: -1, frame: trajectory.final ?? frames[frames.length - 1] ?? null };
  }
  let step = 0;
  while (step + 1 < trajectory.sigmas.length && trajectory.sigmas[step + 1] >= sigma - CLOSE) step += 1;
  return { step, frame: frames[step] };
}

// The address of a frame that came as bytes; whoever asks for it revokes it.
function address(view) {
  // A DataView may look into a buffer it shares with others: its own stretch of it, and no more.
  const bytes = view.buffer ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : view;
  return URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
}

// The bar under a view of frames: play, a slider over the noise levels, and the choice of what to show. It holds where
// the view stands, and calls `changed` whenever that is another place.
function transport({ shows, playKey, alive, changed }) {
  const state = { stops: [0], at: 0, show: shows[0]?.key, timer: null };
  const bar = make("div", "fluxnb-bar");
  const play = makeButton("fluxnb-play", "▶", `play (${playKey})`, toggle);
  const range = keysAreOurs(make("input"));
  const sigmaText = make("output", "fluxnb-sigma");
  const choice = make("div", "fluxnb-shows");
  play.setAttribute("aria-label", "play");
  Object.assign(range, { type: "range", min: 0, max: 0, step: 1, value: 0 });
  range.setAttribute("aria-label", "noise level");
  range.addEventListener("input", () => {
    stop();
    go(Number(range.value));
  });
  choice.setAttribute("role", "group");
  choice.setAttribute("aria-label", "what to show");
  const buttons = shows.map(({ key, name }) => {
    const letter = Object.keys(KEYS).find((letter) => KEYS[letter] === key);
    const button = makeButton("fluxnb-show", name, letter && `${name} (${letter})`, () => display(key));
    choice.append(button);
    return { key, button };
  });
  bar.append(play, range, sigmaText);

  function draw() {
    const sigma = state.stops[state.at] ?? 0;
    sigmaText.textContent = state.stops.length > 1 ? `σ ${sigma.toFixed(2)}` : "";
    range.max = String(Math.max(state.stops.length - 1, 0));
    range.value = String(state.at);
    range.setAttribute("aria-valuetext", sigmaText.textContent);
    for (const { key, button } of buttons) button.setAttribute("aria-pressed", String(key === state.show));
    changed();
  }
  function go(at) {
    state.at = Math.max(0, Math.min(state.stops.length - 1, at));
    draw();
  }
  function nearest(sigma) {
    const far = (i) => Math.abs(state.stops[i] - sigma);
    go(state.stops.reduce((best, _, i) => (far(i) < far(best) ? i : best), 0));
  }
  function display(key) {
    if (!shows.some((show) => show.key === key)) return;
    state.show = key;
    draw();
  }
  function stop() {
    clearInterval(state.timer);
    state.timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "play");
  }
  function toggle() {
    if (state.timer !== null) return stop();
    if (state.at >= state.stops.length - 1) go(0);
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "pause");
    // A trajectory of two steps and one of fifty both take a few seconds.
    const pause = Math.max(90, Math.min(700, 4000 / Math.max(state.stops.length, 1)));
    state.timer = setInterval(() => {
      if (!alive() || state.at >= state.stops.length - 1) return stop();
      go(state.at + 1);
    }, pause);
  }

  return {
    bar,
    choice,
    range,
    go,
    nearest,
    display,
    stop,
    toggle,
    move(by) {
      stop();
      go(state.at + by);
    },
    get sigma() {
      return state.stops[state.at] ?? 0;
    },
    get show() {
      return state.show;
    },
    // The levels to move among; the place stays as near as it can.
    set stops(stops) {
      const sigma = state.stops[state.at] ?? 0;
      state.stops = stops;
      nearest(sigma);
    },
    get stops() {
      return state.stops;
    },
  };
}
