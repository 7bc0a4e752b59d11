// The scrubber: every step of one walk or of many, moved together by sigma. No kernel, no network, no dependency.
//
// One source for two places. In a notebook anywidget calls `render` below and the frames arrive as bytes; in a page
// that stands alone `mount` is called with data: addresses. Text (a prompt, a label) only ever becomes textContent or
// an attribute, never markup.

const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

export function mount(root, data, urls) {
  const stops = levels(data.walks);
  const state = { at: 0, show: data.shows[0]?.key, zoom: 0, panX: 0, panY: 0, timer: null };
  const listeners = new AbortController();
  const on = (node, name, act, options = {}) =>
    node.addEventListener(name, act, { ...options, signal: listeners.signal });
  // Held so that the browser keeps them decoded: a scrub then only swaps pictures it already has.
  const held = urls.map((url) => {
    const image = new Image();
    image.src = url;
    return image;
  });

  root.classList.add("fluxnb", "fluxnb-scrubber");
  root.replaceChildren();
  const title = make("div", "fluxnb-title", data.title);
  const stage = make("div", "fluxnb-stage");
  const several = data.walks.length > 1;
  stage.style.setProperty("--fluxnb-columns", data.columns || Math.min(data.walks.length, 4));
  stage.style.setProperty("--fluxnb-widest", data.columns ? "190px" : several ? "256px" : "384px");

  const panels = data.walks.map((walk) => {
    const figure = make("figure", "fluxnb-walk");
    const box = make("div", "fluxnb-box");
    box.style.aspectRatio = `${walk.width} / ${walk.height}`;
    const image = make("img");
    image.draggable = false;
    const label = make("figcaption", "fluxnb-label", several ? walk.label : "");
    label.title = walk.caption;
    const where = make("div", "fluxnb-where");
    box.append(image);
    figure.append(box, label, where);
    stage.append(figure);
    return { walk, image, box, where };
  });

  const bar = make("div", "fluxnb-bar");
  const play = make("button", "fluxnb-play", "▶");
  const range = make("input");
  const sigmaText = make("output", "fluxnb-sigma");
  const shows = make("div", "fluxnb-shows");
  const foot = make("div", "fluxnb-foot");
  play.type = "button";
  play.title = "play (space)";
  play.setAttribute("aria-label", "play");
  Object.assign(range, { type: "range", min: 0, max: Math.max(stops.length - 1, 0), step: 1, value: 0 });
  range.setAttribute("aria-label", "noise level");
  shows.setAttribute("role", "group");
  shows.setAttribute("aria-label", "what to show");
  const buttons = data.shows.map(({ key, name }) => {
    const button = make("button", "fluxnb-show", name);
    button.type = "button";
    const letter = Object.keys(KEYS).find((letter) => KEYS[letter] === key);
    if (letter) button.title = `${name} (${letter})`;
    on(button, "click", () => display(key));
    shows.append(button);
    return { key, button };
  });
  // JupyterLab takes keys away from a focused control unless the control itself says that it needs them.
  for (const control of [play, range, ...buttons.map(({ button }) => button)]) {
    control.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  bar.append(play, range, sigmaText);
  foot.append(make("span", "fluxnb-note", data.note));
  if (stops.length > 1) {
    foot.append(make("span", "fluxnb-help", "← → step · space play · x v c n show · + − 0 zoom, drag to move"));
  }
  // The controls stay in sight while a tall grid scrolls behind them.
  const controls = make("div", "fluxnb-controls");
  if (stops.length > 1) controls.append(bar);
  if (stops.length > 1 && data.shows.length > 1) controls.append(shows);
  root.append(title, stage, controls, foot);

  function draw() {
    const sigma = stops[state.at] ?? 0;
    for (const { walk, image, where } of panels) {
      const { step, frame } = frameAt(walk, state.show, sigma);
      const url = frame === null ? "" : urls[frame];
      if (image.dataset.frame !== String(frame)) {
        image.dataset.frame = String(frame);
        image.src = url;
      }
      const of = walk.sigmas.length;
      where.textContent = of === 0 ? "" : step < 0 ? "the picture" : `step ${step + 1} of ${of}`;
      image.alt = `${where.textContent || "picture"}: ${walk.label}`;
    }
    sigmaText.textContent = stops.length > 1 ? `σ ${sigma.toFixed(2)}` : "";
    range.value = String(state.at);
    range.setAttribute("aria-valuetext", sigmaText.textContent);
    for (const { key, button } of buttons) button.setAttribute("aria-pressed", String(key === state.show));
    root.dataset.sigma = String(sigma);
    root.dataset.show = state.show ?? "";
  }

  function frameView() {
    const scale = ZOOMS[state.zoom];
    const limit = (scale - 1) / 2;
    state.panX = Math.max(-limit, Math.min(limit, state.panX));
    state.panY = Math.max(-limit, Math.min(limit, state.panY));
    for (const { image } of panels) {
      image.style.transform = `translate(${state.panX * 100}%, ${state.panY * 100}%) scale(${scale})`;
      image.classList.toggle("fluxnb-near", scale >= 4); // near enough to want to see the pixels
    }
    root.dataset.zoom = String(scale);
  }

  function go(at) {
    state.at = Math.max(0, Math.min(stops.length - 1, at));
    draw();
  }
  function display(key) {
    if (!data.shows.some((show) => show.key === key)) return;
    state.show = key;
    draw();
  }
  function zoom(by) {
    state.zoom = by === 0 ? 0 : Math.max(0, Math.min(ZOOMS.length - 1, state.zoom + by));
    frameView();
  }
  function stop() {
    clearInterval(state.timer);
    state.timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "play");
  }
  function toggle() {
    if (state.timer !== null) return stop();
    if (state.at >= stops.length - 1) go(0);
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "pause");
    // A walk of two steps and one of fifty both take a few seconds.
    const pause = Math.max(90, Math.min(700, 4000 / Math.max(stops.length, 1)));
    state.timer = setInterval(() => {
      if (!root.isConnected || state.at >= stops.length - 1) return stop();
      go(state.at + 1);
    }, pause);
  }

  on(range, "input", () => {
    stop();
    go(Number(range.value));
  });
  on(play, "click", toggle);
  on(root, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.classList.contains("fluxnb-show")) return; // space presses its button
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 };
    if (event.key in moves) {
      stop();
      go(state.at + moves[event.key]);
    } else if (event.key === "Home") go(0);
    else if (event.key === "End") go(stops.length - 1);
    else if (event.key === " ") toggle();
    else if (event.key === "+" || event.key === "=") zoom(1);
    else if (event.key === "-") zoom(-1);
    else if (event.key === "0") zoom(0);
    else if (event.key in KEYS) display(KEYS[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  for (const { box } of panels) {
    on(box, "dblclick", () => zoom(state.zoom ? 0 : 3));
    on(box, "pointerdown", (event) => {
      range.focus({ preventScroll: true });
      if (state.zoom) box.setPointerCapture(event.pointerId);
    });
    on(box, "pointermove", (event) => {
      if (!state.zoom || event.buttons !== 1) return;
      state.panX += event.movementX / box.clientWidth;
      state.panY += event.movementY / box.clientHeight;
      frameView();
    });
  }

  go(0);
  frameView();
  return {
    go,
    display,
    nearest: (sigma) => go(stops.reduce((best, s, i) => (Math.abs(s - sigma) < Math.abs(stops[best] - sigma) ? i : best), 0)),
    close() {
      stop();
      listeners.abort();
      held.length = 0;
    },
  };
}

// anywidget's door: frames come as bytes (a DataView each), once, with the model.
function render({ model, el }) {
  const root = make("div");
  el.append(root);
  let urls = [];
  let scrubber = null;
  const show = () => {
    scrubber?.close();
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = model.get("frames").map(address);
    scrubber = mount(root, model.get("data"), urls);
    scrubber.nearest(model.get("sigma"));
  };
  const move = () => scrubber?.nearest(model.get("sigma"));
  model.on("change:data", show);
  model.on("change:sigma", move);
  show();
  return () => {
    model.off("change:data", show);
    model.off("change:sigma", move);
    scrubber?.close();
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

export default { render };
