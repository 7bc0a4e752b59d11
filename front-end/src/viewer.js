// @ts-check
// The viewer: one large image, or a comparison of several: side by side, with a slider, by flicking between them, or as
// their difference.

import { describeCells, drawDifference } from "./compare.js";
import { make, makeButton, suppressShortcuts } from "./dom.js";
import { copyImage, copyText, download } from "./download.js";
import { makeKeyList, pressKey } from "./keys.js";
import { makeStage } from "./stage.js";

const MODES = { side: "side by side", slider: "slider", flick: "flick", difference: "difference" };
const FLICK_INTERVAL = 600; // milliseconds

function makeSlider(name, max, value, onChange) {
  const label = make("label", "fluxnb-tool", name);
  const range = suppressShortcuts(make("input"));
  Object.assign(range, { type: "range", min: 0, max, value });
  range.addEventListener("input", () => onChange(Number(range.value)));
  label.append(range);
  return { label, range };
}

// `host` provides cell(id), label(id, others), url(id), picture(id), displayedPicture(id), preview(id), original(id),
// neighbor(right, down), star(ids), starred(id), select(id), selected(id), onClose(ids), and in a lab useRecipe(id). The
// playback bar moves into the viewer while it is open, so that the noise level can be changed there.
export function makeViewer(root, playback, host) {
  // An output iframe (Colab, VS Code) is as tall as its content, so a modal dialog could open outside the visible part.
  const framed = window.self !== window.top;
  const state = { ids: [], a: 0, b: 1, mode: "side", gain: 4, timer: null };
  const dialog = make("dialog", "fluxnb-viewer");
  const head = make("div", "fluxnb-viewer-head");
  const modes = make("div", "fluxnb-shows");
  const zoomText = make("output", "fluxnb-zoom");
  const steps = make("span", "fluxnb-neighbors");
  const previous = makeButton("", "‹", "previous (←)", () => step(-1));
  const next = makeButton("", "›", "next (→)", () => step(1));
  const choose = makeButton("fluxnb-choose", "choose", "choose for a comparison (space)", chooseDisplayed);
  const copies = make("div", "fluxnb-copies");
  const star = makeButton("fluxnb-star-button", "☆", "star (s)", starDisplayed);
  const close = makeButton("fluxnb-close", "close", "back to the grid (esc)", dismiss);
  const chips = make("div", "fluxnb-chips");
  const tools = make("div", "fluxnb-tools");
  const barSlot = make("div", "fluxnb-bar-slot");
  const facts = make("div", "fluxnb-facts");
  const foot = make("div", "fluxnb-foot");
  const keyList = makeKeyList(keys);
  const reply = make("output", "fluxnb-reply");
  const differenceText = make("output", "fluxnb-difference-text");
  const flicker = makeButton("fluxnb-flicker", "▶ flick", "flick automatically (f)", () => toggleFlicker());
  const divider = makeSlider("divider", 100, 50, (value) => stage.setDivider(value / 100));
  const brighter = makeSlider("brighter", 5, 2, (value) => {
    state.gain = 2 ** value;
    draw();
  });
  const stage = makeStage({
    framed,
    swiped: (by) => (mode() === "alone" || mode() === "flick") && step(by),
    changed({ scale, split }) {
      divider.range.value = String(Math.round(split * 100));
      dialog.dataset.zoom = String(scale);
      zoomText.textContent = scale > 1 ? `${Number(scale.toFixed(1))}×` : "";
    },
  });
  dialog.setAttribute("aria-label", "image viewer");
  star.setAttribute("aria-label", "star");
  modes.setAttribute("role", "group");
  modes.setAttribute("aria-label", "how to compare");
  const buttons = Object.entries(MODES).map(([mode, name], i) => {
    const button = makeButton("fluxnb-show", name, `${name} (${i + 1})`, () => setMode(mode));
    modes.append(button);
    return { mode, button };
  });
  previous.setAttribute("aria-label", "previous");
  next.setAttribute("aria-label", "next");
  steps.append(previous, next);
  const single = {
    "copy image": (id) => copyImage(host.displayedPicture(id)),
    "copy code": (id) => copyText(host.cell(id).code).then(() => "code copied"),
    "copy recipe": (id) => copyText(host.cell(id).recipe).then(() => "recipe copied"),
    download: (id) => download([host.picture(id)]).then(([name]) => `downloaded ${name}`),
  };
  for (const [name, act] of Object.entries(single)) copies.append(makeButton("", name, "", () => run(act)));
  if (host.useRecipe) copies.append(makeButton("", "use settings", "fill in the form", useSettings));
  copies.append(reply);
  foot.append(keyList.node);
  head.append(modes, steps, make("span", "fluxnb-spacer"), zoomText, choose, star, close);
  dialog.append(head, chips, stage.node, tools, barSlot, facts, copies, foot);
  root.append(dialog);

  // ---------------------------------------------------------------------------------------------------------- content
  const label = (id) => host.label(id, state.ids);
  const pair = () => [state.ids[state.a], state.ids[state.b]];
  const mode = () => (state.ids.length > 1 ? state.mode : "alone");

  function build() {
    toggleFlicker(false);
    const now = mode();
    const paired = now === "slider" || now === "difference";
    // Flicking may have made A and B the same image.
    if (paired && state.a === state.b) state.b = (state.a + 1) % state.ids.length;
    const [a, b] = pair();
    const panes = {
      alone: () => state.ids.map((id) => pane(label(id), makeImage(id))),
      side: () => state.ids.map((id) => pane(label(id), makeImage(id))),
      slider() {
        const divider = make("div", "fluxnb-divider");
        return [pane([`A ${label(a)}`, `B ${label(b)}`], makeImage(a), topLayer(b), divider)];
      },
      flick: () => [pane(label(b), makeImage(b))],
      difference: () => [pane("black where equal", make("canvas"))],
    };
    dialog.dataset.mode = now;
    modes.hidden = now === "alone";
    for (const { mode, button } of buttons) button.setAttribute("aria-pressed", String(mode === now));
    chips.replaceChildren(...(paired || now === "flick" ? state.ids.map((id, i) => makeChip(id, i, paired)) : []));
    const controls = { slider: [divider.label], difference: [brighter.label, differenceText], flick: [flicker] };
    tools.replaceChildren(...(controls[now] ?? []));
    facts.replaceChildren(...describeCells((paired ? pair() : state.ids).map(host.cell)));
    copies.hidden = now !== "alone" && now !== "flick";
    steps.hidden = now === "side";
    choose.hidden = now !== "alone";
    keyList.toggle(false);
    reply.textContent = "";
    stage.node.setAttribute("aria-label", accessibleName(now));
    stage.show(panes[now](), host.cell(state.ids[0]), now === "slider");
    drawStar();
    drawChoice();
    draw();
  }

  function accessibleName(now) {
    const names = (now === "side" || now === "alone" ? state.ids : pair()).map(label);
    if (now === "flick") return `${names[1]}, one of ${state.ids.length}`;
    return now === "difference" ? `difference of ${names.join(" and ")}` : names.join(" and ");
  }
  function pane(captions, ...layers) {
    const figure = make("figure", "fluxnb-pane");
    const box = make("div", "fluxnb-box");
    const caption = make("figcaption", "fluxnb-label");
    const { width, height } = host.cell(state.ids[0]);
    box.style.aspectRatio = `${width} / ${height}`;
    box.append(...layers);
    caption.append(...[captions].flat().map((text) => make("span", "", text)));
    figure.append(box, caption);
    return figure;
  }
  function makeImage(id) {
    const image = make("img");
    image.draggable = false;
    image.decoding = "sync"; // flicking must not show a blank image in between
    image.dataset.cell = String(id);
    image.alt = label(id);
    return image;
  }
  function topLayer(id) {
    const layer = make("div", "fluxnb-top-layer");
    layer.append(makeImage(id));
    return layer;
  }
  function makeChip(id, i, paired) {
    const role = !paired ? "" : i === state.a ? "A" : i === state.b ? "B" : "";
    const button = makeButton("fluxnb-chip", "", paired ? "make it B (shift: A)" : "", (event) => {
      const [role, other] = event.shiftKey ? ["a", "b"] : ["b", "a"];
      setPair({ [role]: i, [other]: state[other] === i ? state[role] : state[other] });
      chips.children[i].focus(); // the pressed chip has been replaced
    });
    if (role) button.append(make("b", "", role), " ");
    button.append(label(id));
    button.setAttribute("aria-pressed", String(paired ? role !== "" : i === state.b));
    return button;
  }

  function draw() {
    for (const image of stage.node.querySelectorAll("img")) {
      const url = host.url(Number(image.dataset.cell)) ?? "";
      if (image.getAttribute("src") !== url) image.src = url;
    }
    const canvas = stage.node.querySelector("canvas");
    if (!canvas) return;
    drawDifferenceOf(canvas, pair());
  }

  // The difference of the original pixels, where the page has them or the kernel sends them; otherwise of previews.
  async function drawDifferenceOf(canvas, ids) {
    const reduced = ids.some(host.preview);
    showDifference(canvas, ids.map(host.url), reduced);
    const originals = reduced && host.original ? ids.map((id) => (host.preview(id) ? host.original(id) : null)) : [];
    if (!originals.some(Boolean)) return;
    const { request } = canvas.dataset; // another one is drawn if the noise level changes in the meantime
    const pngs = await Promise.all(originals).catch(() => null);
    if (canvas.dataset.request !== request || !canvas.isConnected) return;
    if (!pngs || pngs.some((png, i) => !png && host.preview(ids[i]))) return;
    const sources = pngs.map((png) => png && URL.createObjectURL(new Blob([png], { type: "image/png" })));
    await showDifference(
      canvas,
      sources.map((url, i) => url ?? host.url(ids[i])),
      false,
    );
    for (const url of sources) if (url) URL.revokeObjectURL(url);
  }
  function showDifference(canvas, urls, reduced) {
    return drawDifference(canvas, urls, state.gain).then((statistics) => {
      if (statistics === null) return;
      const text = reduced ? `preview, ${Math.max(canvas.width, canvas.height)} px · ${statistics}` : statistics;
      differenceText.textContent = text;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${accessibleName("difference")}: ${text}`);
    });
  }

  // ---------------------------------------------------------------------------------------------------------- actions
  function setMode(mode) {
    if (state.ids.length < 2) return;
    state.mode = mode;
    build();
  }
  function setPair(pair) {
    Object.assign(state, pair);
    build();
  }
  // Choose the next image as A or B, skipping the one that has the other role.
  function nextInPair(by, which) {
    const count = state.ids.length;
    const other = state[which === "a" ? "b" : "a"];
    let index = (state[which] + by + count) % count;
    if (index === other) index = (index + by + count) % count;
    if (index !== other) setPair({ [which]: index });
  }
  function flick(by) {
    state.b = (state.b + by + state.ids.length) % state.ids.length;
    const id = state.ids[state.b];
    const image = stage.node.querySelector("img");
    image.dataset.cell = String(id);
    image.alt = label(id);
    stage.node.querySelector("figcaption").firstChild.textContent = label(id);
    stage.node.setAttribute("aria-label", accessibleName("flick"));
    [...chips.children].forEach((node, i) => node.setAttribute("aria-pressed", String(i === state.b)));
    drawStar();
    draw();
  }
  function toggleFlicker(on = state.timer === null) {
    clearInterval(state.timer);
    const next = () => (dialog.isConnected ? flick(1) : toggleFlicker(false));
    state.timer = on ? setInterval(next, FLICK_INTERVAL) : null;
    flicker.textContent = on ? "❚❚ flick" : "▶ flick";
  }
  function showNeighbor(right, down) {
    const id = host.neighbor(right, down);
    if (id === undefined) return;
    state.ids = [id];
    build();
  }
  // Previous or next: another cell, another image while flicking, another B in a comparison of two.
  function step(by) {
    if (mode() === "alone") showNeighbor(by, 0);
    else if (mode() === "flick") flick(by);
    else nextInPair(by, "b");
  }
  function chooseDisplayed() {
    host.select(state.ids[0]);
    drawChoice();
  }
  function drawChoice() {
    const chosen = host.selected(state.ids[0]);
    choose.textContent = chosen ? "☑ chosen" : "☐ choose";
    choose.setAttribute("aria-pressed", String(chosen));
  }
  // Act on the displayed cell and report how it went.
  async function run(act) {
    try {
      reply.textContent = await act(displayed()[0]);
    } catch (problem) {
      reply.textContent = `not possible here: ${problem.message}`;
    }
  }
  function useSettings() {
    host.useRecipe(displayed()[0]);
    dismiss();
  }
  // The displayed cells: one while flicking, otherwise all of them.
  function displayed() {
    return mode() === "flick" ? [state.ids[state.b]] : state.ids;
  }
  function starDisplayed() {
    host.star(displayed());
    drawStar();
  }
  function drawStar() {
    const all = displayed().every(host.starred);
    star.textContent = all ? "★" : "☆";
    star.setAttribute("aria-pressed", String(all));
  }

  function open(ids) {
    Object.assign(state, { ids: [...ids], a: 0, b: Math.min(1, ids.length - 1) });
    if (!dialog.open) {
      barSlot.append(playback.bar);
      if (framed) dialog.show();
      else dialog.showModal();
      root.classList.toggle("fluxnb-viewer-open", framed);
    }
    build();
    stage.zoom(0);
    stage.node.focus({ preventScroll: !framed });
  }
  function dismiss() {
    if (!dialog.open) return;
    toggleFlicker(false);
    root.classList.remove("fluxnb-viewer-open");
    dialog.close();
    host.onClose(state.ids);
  }

  // ------------------------------------------------------------------------------------------------------------- keys
  /** @typedef {import("./keys.js").Keys} Keys */
  /** @type {Keys[]} */
  const pairKeys = [
    {
      keys: "← → (shift)",
      text: "another B (A)",
      on: {
        ArrowRight: (shift) => nextInPair(1, shift ? "a" : "b"),
        ArrowLeft: (shift) => nextInPair(-1, shift ? "a" : "b"),
      },
    },
    { keys: "w", text: "swap A and B", on: { w: () => setPair({ a: state.b, b: state.a }) } },
  ];
  /** @type {Record<string, Keys[]>} */
  const modeKeys = {
    alone: [
      {
        keys: "← → ↑ ↓",
        text: "neighbors",
        on: {
          ArrowLeft: () => showNeighbor(-1, 0),
          ArrowRight: () => showNeighbor(1, 0),
          ArrowUp: () => showNeighbor(0, -1),
          ArrowDown: () => showNeighbor(0, 1),
        },
      },
      { keys: "space", text: "choose for a comparison", on: { " ": chooseDisplayed } },
    ],
    side: [],
    slider: [...pairKeys, { keys: "d", text: "divider", on: { d: () => divider.range.focus() } }],
    flick: [
      {
        keys: "← → space",
        text: "flick",
        on: { ArrowRight: () => flick(1), ArrowLeft: () => flick(-1), " ": () => flick(1) },
      },
      { keys: "f", text: "automatic", on: { f: () => toggleFlicker() } },
    ],
    difference: pairKeys,
  };
  const names = Object.keys(MODES);
  const modeChoice = {
    keys: names.map((_, i) => i + 1).join(" "),
    text: "how to compare",
    on: Object.fromEntries(names.map((name, i) => [String(i + 1), () => setMode(name)])),
  };
  const larger = () => stage.zoom(1.5);
  const zoomKeys = {
    keys: "+ − 0",
    text: "zoom; so does the wheel, and dragging moves",
    on: { "+": larger, "=": larger, "-": () => stage.zoom(1 / 1.5), 0: () => stage.zoom(0) },
  };
  /** @returns {Keys[]} */
  function keys() {
    return [
      ...(mode() === "alone" ? [] : [modeChoice]),
      ...modeKeys[mode()],
      zoomKeys,
      ...playback.keys(),
      { keys: "s", text: "star", on: { s: starDisplayed } },
      { keys: "esc", text: "back to the grid", on: { Escape: dismiss } },
      keyList.entry,
    ];
  }
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the table behind uses the same keys
    const target = /** @type {HTMLElement & { type: string }} */ (event.target);
    const isSliderKey = target.type === "range" && /^(Arrow|Page|Home|End)/.test(event.key);
    const isButtonKey = target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter");
    if (!isSliderKey && !isButtonKey) pressKey(keys(), event);
  });
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault(); // the browser's own handling of Escape
    dismiss();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dismiss());

  return {
    open,
    dismiss,
    draw: () => dialog.open && draw(),
    close() {
      toggleFlicker(false);
      stage.close();
    },
  };
}
