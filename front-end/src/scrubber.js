// @ts-check
// The scrubber: the steps of one or several trajectories with one slider over sigma. Needs no kernel and no network.
//
// In a notebook anywidget calls `render` and the frames arrive as bytes; pages and outputs of cells call
// `mountPage`. Text (a prompt, a label) is only ever assigned to textContent or to an attribute, never parsed as
// markup.

import { frameUrl, make, makeButton, makeTitle } from "./dom.js";
import { keyLine, pressKey } from "./keys.js";
import { frameAt, levels } from "./levels.js";
import { pageMounter, register } from "./output.js";
import { makePlayback } from "./playback.js";
import { followGround } from "./theme.js";
import { throttledTrait } from "./traits.js";
import "./shared.css";
import "./scrubber.css";

const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

/** @param {(sigma: number) => void} [moved] called when the user moves the slider */
function mount(root, data, urls, moved) {
  const state = { zoom: 0, panX: 0, panY: 0, word: -1 }; // word: an index, -1 for no overlay
  const listeners = new AbortController();
  const on = (node, name, act, options = {}) =>
    node.addEventListener(name, act, { ...options, signal: listeners.signal });
  // References keep the images decoded in the browser, so that moving the slider only swaps them.
  const preloaded = urls.map((url) => {
    const image = new Image();
    image.src = url;
    return image;
  });

  root.classList.add("fluxnb", "fluxnb-scrubber");
  root.replaceChildren();
  const title = makeTitle(root, data.title);
  const stage = make("div", "fluxnb-stage");
  const several = data.trajectories.length > 1;
  stage.style.setProperty("--fluxnb-columns", data.columns || Math.min(data.trajectories.length, 4));
  stage.style.setProperty("--fluxnb-max-width", data.columns ? "190px" : several ? "256px" : "384px");

  const panels = data.trajectories.map((trajectory) => {
    const figure = make("figure", "fluxnb-trajectory");
    const box = make("div", "fluxnb-box");
    box.style.aspectRatio = `${trajectory.width} / ${trajectory.height}`;
    const [image, overlay] = [make("img"), make("img", "fluxnb-overlay")];
    image.draggable = overlay.draggable = false;
    overlay.alt = "";
    const label = make("figcaption", "fluxnb-label", several ? trajectory.label : "");
    label.title = trajectory.caption;
    const position = make("div", "fluxnb-position");
    box.append(image);
    if (data.words?.length > 0) box.append(overlay);
    figure.append(box, label, position);
    stage.append(figure);
    return { trajectory, image, overlay, box, position };
  });

  const isConnected = () => root.isConnected;
  const playback = makePlayback({ shows: data.shows, playKey: "space", isConnected, changed: draw, moved });
  const foot = make("div", "fluxnb-foot");
  const sigmas = levels(data.trajectories);
  const help = make("span", "fluxnb-help");
  foot.append(make("span", "fluxnb-note", data.note), help);
  // Attention to a prompt word: a dark overlay on every frame, transparent where the attention is high.
  const words = data.words ?? [];
  const wordChoice = make("div", "fluxnb-words");
  wordChoice.setAttribute("role", "group");
  wordChoice.setAttribute("aria-label", "attention to a prompt word");
  const wordButtons = words.map((word, index) => {
    const button = makeButton("fluxnb-word", word, `attention to “${word}” (w)`, () => selectWord(index));
    wordChoice.append(button);
    return button;
  });
  // The controls remain visible while a tall grid scrolls behind them.
  const controls = make("div", "fluxnb-controls");
  controls.setAttribute("role", "group");
  controls.setAttribute("aria-label", "controls");
  if (sigmas.length > 1) controls.append(playback.bar);
  if (sigmas.length > 1 && data.shows.length > 1) controls.append(playback.choice);
  if (words.length > 0) controls.append(wordChoice);
  root.append(title, stage, controls, foot);

  function draw() {
    const sigma = playback.sigma;
    for (const { trajectory, image, overlay, position } of panels) {
      const { step, frame } = frameAt(trajectory, playback.show, sigma);
      setFrame(image, frame);
      // Step -1, the final image, shows the attention of the last step.
      setFrame(overlay, trajectory.overlays?.[state.word]?.at(step) ?? null);
      const count = trajectory.sigmas.length;
      position.textContent = count === 0 ? "" : step < 0 ? "the picture" : `step ${step + 1} of ${count}`;
      image.alt = `${position.textContent || "picture"}: ${trajectory.label}`;
    }
    root.dataset.sigma = String(sigma);
    root.dataset.show = playback.show ?? "";
    root.dataset.word = words[state.word] ?? "";
    wordButtons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.word)));
  }

  function setFrame(image, frame) {
    if (image.dataset.frame === String(frame)) return;
    image.dataset.frame = String(frame);
    image.hidden = frame === null;
    if (frame !== null) image.src = urls[frame];
  }

  function selectWord(word) {
    state.word = word === state.word ? -1 : word;
    draw();
  }

  // Select the next word, and no word after the last.
  function selectNextWord() {
    selectWord(state.word + 1 < words.length ? state.word + 1 : state.word);
  }

  function applyZoom() {
    const scale = ZOOMS[state.zoom];
    const limit = (scale - 1) / 2;
    state.panX = Math.max(-limit, Math.min(limit, state.panX));
    state.panY = Math.max(-limit, Math.min(limit, state.panY));
    for (const { image, overlay } of panels) {
      image.style.transform = `translate(${state.panX * 100}%, ${state.panY * 100}%) scale(${scale})`;
      overlay.style.transform = image.style.transform;
      image.classList.toggle("fluxnb-pixelated", scale >= 4); // show individual pixels
    }
    root.dataset.zoom = String(scale);
  }

  function zoom(by) {
    state.zoom = by === 0 ? 0 : Math.max(0, Math.min(ZOOMS.length - 1, state.zoom + by));
    applyZoom();
  }
  const levelKeys = {
    keys: "← →",
    text: "step",
    on: {
      ArrowRight: () => playback.move(1),
      ArrowUp: () => playback.move(1),
      ArrowLeft: () => playback.move(-1),
      ArrowDown: () => playback.move(-1),
      PageUp: () => playback.move(5),
      PageDown: () => playback.move(-5),
      Home: () => playback.moveTo(0),
      End: () => playback.moveTo(sigmas.length - 1),
    },
  };
  /** @type {import("./keys.js").Keys[]} */
  const keys = [
    ...(sigmas.length > 1
      ? [levelKeys, { keys: "space", text: "play", on: { " ": playback.toggle } }, ...playback.showKeys()]
      : []),
    {
      keys: "+ − 0",
      text: "zoom, drag to move",
      on: { "+": () => zoom(1), "=": () => zoom(1), "-": () => zoom(-1), 0: () => zoom(0) },
    },
    ...(words.length > 0
      ? [{ keys: "w", text: "next word, bright where the image attends to it", on: { w: selectNextWord } }]
      : []),
  ];
  help.textContent = keyLine(keys);
  on(root, "keydown", (event) => {
    const pressesButton = event.key === " " && event.target.matches(".fluxnb-show, .fluxnb-word");
    if (!pressesButton) pressKey(keys, event);
  });
  for (const { box } of panels) {
    on(box, "dblclick", () => zoom(state.zoom ? 0 : 3));
    on(box, "pointerdown", (event) => {
      playback.range.focus({ preventScroll: true });
      if (state.zoom) box.setPointerCapture(event.pointerId);
    });
    on(box, "pointermove", (event) => {
      if (!state.zoom || event.buttons !== 1) return;
      state.panX += event.movementX / box.clientWidth;
      state.panY += event.movementY / box.clientHeight;
      applyZoom();
    });
  }

  playback.levels = sigmas;
  playback.go(sigmas.length - 1); // the picture
  applyZoom();
  const endTheme = followGround(root);
  return {
    goToSigma: playback.goToSigma,
    close() {
      playback.stop();
      endTheme();
      listeners.abort();
      preloaded.length = 0;
    },
  };
}

// Called by anywidget for each view; frames arrive once, as one DataView each.
function render({ model, el }) {
  const root = make("div");
  el.append(root);
  let urls = [];
  let scrubber = null;
  const sigma = throttledTrait(model, "sigma");
  const show = () => {
    scrubber?.close();
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = model.get("frames").map(frameUrl);
    scrubber = mount(root, model.get("data"), urls, sigma.set);
    scrubber.goToSigma(model.get("sigma"));
  };
  const move = () => scrubber?.goToSigma(model.get("sigma"));
  model.on("change:data", show);
  model.on("change:sigma", move);
  show();
  return () => {
    model.off("change:data", show);
    model.off("change:sigma", move);
    sigma.close();
    scrubber?.close();
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

function initialize({ model }) {
  return register(model);
}

export const mountPage = pageMounter(mount, render);
export default { initialize, render };
