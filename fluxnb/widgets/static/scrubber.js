// The scrubber: every step of one trajectory or of many, moved together by sigma. No kernel, no network, no dependency.
//
// One source for two places. In a notebook anywidget calls `render` below and the frames arrive as bytes; in a page
// that stands alone `mount` is called with data: addresses. Text (a prompt, a label) only ever becomes textContent or
// an attribute, never markup.

const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

export function mount(root, data, urls) {
  const state = { zoom: 0, panX: 0, panY: 0, word: -1 }; // word: an index, -1 for the bare picture
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
  const several = data.trajectories.length > 1;
  stage.style.setProperty("--fluxnb-columns", data.columns || Math.min(data.trajectories.length, 4));
  stage.style.setProperty("--fluxnb-widest", data.columns ? "190px" : several ? "256px" : "384px");

  const panels = data.trajectories.map((trajectory) => {
    const figure = make("figure", "fluxnb-trajectory");
    const box = make("div", "fluxnb-box");
    box.style.aspectRatio = `${trajectory.width} / ${trajectory.height}`;
    const [image, veil] = [make("img"), make("img", "fluxnb-veil")];
    image.draggable = veil.draggable = false;
    veil.alt = "";
    const label = make("figcaption", "fluxnb-label", several ? trajectory.label : "");
    label.title = trajectory.caption;
    const where = make("div", "fluxnb-where");
    box.append(image);
    if (data.words?.length > 0) box.append(veil);
    figure.append(box, label, where);
    stage.append(figure);
    return { trajectory, image, veil, box, where };
  });

  const alive = () => root.isConnected;
  const film = transport({ shows: data.shows, playKey: "space", alive, changed: draw });
  const foot = make("div", "fluxnb-foot");
  const stops = levels(data.trajectories);
  foot.append(make("span", "fluxnb-note", data.note));
  if (stops.length > 1) {
    foot.append(make("span", "fluxnb-help", "← → step · space play · x v c n show · + − 0 zoom, drag to move"));
  }
  // Where the model looked for a word: a veil over every frame, clear where it looked.
  const words = data.words ?? [];
  const wordChoice = make("div", "fluxnb-words");
  wordChoice.setAttribute("role", "group");
  wordChoice.setAttribute("aria-label", "word that was looked for");
  const wordButtons = words.map((word, index) => {
    const button = makeButton("fluxnb-word", word, `where it looked for “${word}” (w)`, () => look(index));
    wordChoice.append(button);
    return button;
  });
  if (words.length > 0) foot.append(make("span", "fluxnb-help", "w next word · bright where the model looked for it"));
  // The controls stay in sight while a tall grid scrolls behind them.
  const controls = make("div", "fluxnb-controls");
  if (stops.length > 1) controls.append(film.bar);
  if (stops.length > 1 && data.shows.length > 1) controls.append(film.choice);
  if (words.length > 0) controls.append(wordChoice);
  root.append(title, stage, controls, foot);

  function draw() {
    const sigma = film.sigma;
    for (const { trajectory, image, veil, where } of panels) {
      const { step, frame } = frameAt(trajectory, film.show, sigma);
      put(image, frame);
      // At sigma 0 the model has looked for the last time.
      put(veil, trajectory.veils?.[state.word]?.at(step) ?? null);
      const of = trajectory.sigmas.length;
      where.textContent = of === 0 ? "" : step < 0 ? "the picture" : `step ${step + 1} of ${of}`;
      image.alt = `${where.textContent || "picture"}: ${trajectory.label}`;
    }
    root.dataset.sigma = String(sigma);
    root.dataset.show = film.show ?? "";
    root.dataset.word = words[state.word] ?? "";
    wordButtons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.word)));
  }

  function put(image, frame) {
    if (image.dataset.frame === String(frame)) return;
    image.dataset.frame = String(frame);
    image.hidden = frame === null;
    if (frame !== null) image.src = urls[frame];
  }

  function look(word) {
    state.word = word === state.word ? -1 : word;
    draw();
  }

  function frameView() {
    const scale = ZOOMS[state.zoom];
    const limit = (scale - 1) / 2;
    state.panX = Math.max(-limit, Math.min(limit, state.panX));
    state.panY = Math.max(-limit, Math.min(limit, state.panY));
    for (const { image, veil } of panels) {
      image.style.transform = `translate(${state.panX * 100}%, ${state.panY * 100}%) scale(${scale})`;
      veil.style.transform = image.style.transform;
      image.classList.toggle("fluxnb-near", scale >= 4); // near enough to want to see the pixels
    }
    root.dataset.zoom = String(scale);
  }

  function zoom(by) {
    state.zoom = by === 0 ? 0 : Math.max(0, Math.min(ZOOMS.length - 1, state.zoom + by));
    frameView();
  }
  on(root, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.matches(".fluxnb-show, .fluxnb-word")) return; // space presses its button
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 };
    if (event.key in moves) film.move(moves[event.key]);
    else if (event.key === "Home") film.go(0);
    else if (event.key === "End") film.go(stops.length - 1);
    else if (event.key === " ") film.toggle();
    else if (event.key === "+" || event.key === "=") zoom(1);
    else if (event.key === "-") zoom(-1);
    else if (event.key === "0") zoom(0);
    else if (event.key === "w" && words.length > 0) look(state.word + 1 < words.length ? state.word + 1 : state.word);
    else if (event.key in KEYS) film.display(KEYS[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  for (const { box } of panels) {
    on(box, "dblclick", () => zoom(state.zoom ? 0 : 3));
    on(box, "pointerdown", (event) => {
      film.range.focus({ preventScroll: true });
      if (state.zoom) box.setPointerCapture(event.pointerId);
    });
    on(box, "pointermove", (event) => {
      if (!state.zoom || event.buttons !== 1) return;
      state.panX += event.movementX / box.clientWidth;
      state.panY += event.movementY / box.clientHeight;
      frameView();
    });
  }

  film.stops = stops;
  film.go(0);
  frameView();
  return {
    nearest: film.nearest,
    close() {
      film.stop();
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
