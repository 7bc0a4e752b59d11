// The viewer: one picture large, or several that are compared: side by side, with a slider, by flicking between them,
// or as their difference. Zoom and place are one for all of them.

const MODES = [
  ["side", "side by side"],
  ["slider", "slider"],
  ["flick", "flick"],
  ["difference", "difference"],
];
const MOST_ZOOM = 16;
const GAP = 12; // pixels between pictures, as in the style
const CAPTION = 24; // pixels under each

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
    changed += here > 8;
  }
  const pixels = Math.max(a.length / 4, 1);
  return { out, mean: sum / (3 * pixels), most, changed: changed / pixels };
}

// What the view around it knows: cell(id), label(id, others), url(id), neighbour(id, right, down), star(id), starred(id),
// onClose(id). The bar of the film moves in here while the viewer is open, so that a scrub goes on.
function makeViewer(root, film, host) {
  // A frame inside a page (Colab, VS Code) is as tall as its content: laid over it, a window could stand out of sight.
  const framed = window.self !== window.top;
  const state = { ids: [], a: 0, b: 1, mode: "side", split: 0.5, gain: 4, scale: 1, x: 0, y: 0, timer: null, drawn: 0 };
  const dialog = make("dialog", "fluxnb-viewer");
  const head = make("div", "fluxnb-viewer-head");
  const modes = make("div", "fluxnb-shows");
  const zoomText = make("output", "fluxnb-zoom");
  const star = makeButton("fluxnb-star-this", "☆", "star (s)", starThese);
  const close = makeButton("fluxnb-close", "close", "back to the grid (esc)", () => dismiss());
  const chips = make("div", "fluxnb-chips");
  const stage = keysAreOurs(make("div", "fluxnb-stage"));
  const tools = make("div", "fluxnb-tools");
  const facts = make("div", "fluxnb-facts");
  const help = make("div", "fluxnb-foot");
  const barPlace = make("div", "fluxnb-bar-place");
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  dialog.setAttribute("aria-label", "pictures, large");
  modes.setAttribute("role", "group");
  modes.setAttribute("aria-label", "how to compare");
  const modeButtons = MODES.map(([mode, name], i) => {
    const button = makeButton("fluxnb-show", name, `${name} (${i + 1})`, () => choose(mode));
    modes.append(button);
    return { mode, button };
  });
  head.append(modes, make("span", "fluxnb-space"), zoomText, star, close);
  dialog.append(head, chips, stage, tools, barPlace, facts, help);
  root.append(dialog);

  const split = rangeTool("divider", 0, 100, 50, (value) => {
    state.split = value / 100;
    place();
  });
  const gain = rangeTool("brighter", 0, 5, 2, (value) => {
    state.gain = 2 ** value;
    draw();
  });
  const flickPlay = makeButton("fluxnb-flick-play", "▶ flick", "flick by itself (f)", () => autoFlick());
  const numbers = make("output", "fluxnb-numbers");

  function rangeTool(name, min, max, value, act) {
    const label = make("label", "fluxnb-tool", name);
    const range = keysAreOurs(make("input"));
    Object.assign(range, { type: "range", min, max, value });
    range.addEventListener("input", () => act(Number(range.value)));
    label.append(range);
    return { label, range };
  }

  const label = (id) => host.label(id, state.ids);

  // ------------------------------------------------------------------------------------------------ what stands there
  function build() {
    autoFlick(false);
    const several = state.ids.length > 1;
    const mode = several ? state.mode : "side";
    dialog.dataset.mode = mode;
    modes.hidden = !several;
    for (const { mode: name, button } of modeButtons) button.setAttribute("aria-pressed", String(name === mode));
    stage.replaceChildren();
    if (mode === "side") for (const id of state.ids) stage.append(pane(id));
    else if (mode === "flick") stage.append(pane(state.ids[state.b]));
    else if (mode === "slider") stage.append(pane(state.ids[state.a], pane(state.ids[state.b])));
    else stage.append(differencePane());
    tools.replaceChildren();
    if (mode === "slider") tools.append(split.label);
    if (mode === "difference") tools.append(gain.label, numbers);
    if (mode === "flick") tools.append(flickPlay);
    chips.replaceChildren(...(mode === "side" ? [] : state.ids.map(chip)));
    facts.replaceChildren(...described(several ? compared(mode) : state.ids, host));
    help.textContent = hints(several, mode);
    stage.setAttribute("aria-label", said(mode));
    starThese.draw();
    fit();
    draw();
  }

  function compared(mode) {
    return mode === "side" || mode === "flick" ? state.ids : [state.ids[state.a], state.ids[state.b]];
  }

  function said(mode) {
    const names = compared(mode).map((id) => label(id));
    if (mode === "flick") return `${label(state.ids[state.b])}, one of ${state.ids.length}`;
    return mode === "difference" ? `difference of ${names.join(" and ")}` : names.join(" and ");
  }

  function hints(several, mode) {
    const zoom = "+ − 0 or wheel zoom, drag to move";
    const common = `${film.stops.length > 1 ? ", . noise level · " : ""}s star · esc back`;
    if (!several) return `← → ↑ ↓ neighbours · space choose for comparing · ${zoom} · ${common}`;
    const keys = { side: "", flick: "← → or space flick · f by itself · ", slider: "← → other B · shift ← → other A · w swap · d divider · " };
    return `1–4 how to compare · ${keys[mode] ?? "← → other B · shift ← → other A · w swap · "}${zoom} · ${common}`;
  }

  function pane(id, over) {
    const figure = make("figure", "fluxnb-pane");
    const box = make("div", "fluxnb-box");
    const cell = host.cell(id);
    box.style.aspectRatio = `${cell.width} / ${cell.height}`;
    const image = make("img");
    image.draggable = false;
    image.decoding = "sync"; // a flick is seen at once or it is no flick
    image.dataset.cell = String(id);
    image.alt = label(id);
    box.append(image);
    const caption = make("figcaption", "fluxnb-label", over ? "" : label(id));
    if (over) {
      const [top] = over.querySelectorAll("img");
      const layer = make("div", "fluxnb-over");
      const divider = make("div", "fluxnb-divider");
      layer.append(top);
      box.append(layer, divider);
      caption.append(make("span", "", `A ${label(id)}`), make("span", "", `B ${top.alt}`));
    }
    figure.append(box, caption);
    return figure;
  }

  function differencePane() {
    const figure = make("figure", "fluxnb-pane");
    const box = make("div", "fluxnb-box");
    const cell = host.cell(state.ids[state.a]);
    const canvas = make("canvas");
    box.style.aspectRatio = `${cell.width} / ${cell.height}`;
    canvas.setAttribute("role", "img");
    box.append(canvas);
    figure.append(box, make("figcaption", "fluxnb-label", "the darker, the more alike"));
    return figure;
  }

  function chip(id, i) {
    const paired = state.mode === "slider" || state.mode === "difference";
    const role = !paired ? "" : i === state.a ? "A" : i === state.b ? "B" : "";
    const button = makeButton("fluxnb-chip", "", paired ? "make it B (shift: A)" : "", (event) => {
      if (event.shiftKey) pair(i, state.b === i ? state.a : state.b);
      else pair(state.a === i ? state.b : state.a, i);
    });
    if (role) button.append(make("b", "", role), " ");
    button.append(label(id));
    button.setAttribute("aria-pressed", String(state.mode === "flick" ? i === state.b : role !== ""));
    return button;
  }

  // --------------------------------------------------------------------------------------------------------- drawing
  function draw() {
    for (const image of stage.querySelectorAll("img")) {
      const url = host.url(Number(image.dataset.cell)) ?? "";
      if (image.getAttribute("src") !== url) image.src = url;
    }
    const canvas = stage.querySelector("canvas");
    if (canvas) drawDifference(canvas);
    place();
  }

  async function drawDifference(canvas) {
    const turn = (state.drawn += 1); // a later scrub overtakes this one
    const pictures = await Promise.all([state.a, state.b].map((i) => loaded(host.url(state.ids[i]))));
    if (turn !== state.drawn) return;
    const width = Math.max(...pictures.map((picture) => picture.naturalWidth));
    const height = Math.max(...pictures.map((picture) => picture.naturalHeight));
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const [a, b] = pictures.map((picture) => {
      context.drawImage(picture, 0, 0, width, height);
      return context.getImageData(0, 0, width, height).data;
    });
    const found = difference(a, b, state.gain);
    context.putImageData(new ImageData(found.out, width, height), 0, 0);
    numbers.textContent = `${state.gain}× · mean ${found.mean.toFixed(1)} of 255 · largest ${found.most} · `
      + `${Math.round(100 * found.changed)} % of the pixels differ by more than 8`; // prettier-ignore
    canvas.setAttribute("aria-label", `${said("difference")}: ${numbers.textContent}`);
    canvas.dataset.mean = String(found.mean);
  }

  // The most room that so many pictures of this shape can have.
  function fit() {
    const [width, height] = [stage.clientWidth - 1, stage.clientHeight - 1]; // they are rounded, up as well
    const count = stage.children.length;
    const first = state.ids.length ? host.cell(state.ids[0]) : null;
    if (!first || !width || !height) return;
    const widths = Array.from({ length: count }, (_, i) => {
      const columns = i + 1;
      const rows = Math.ceil(count / columns);
      const high = (height - GAP * (rows - 1)) / rows - CAPTION;
      return Math.min((width - GAP * (columns - 1)) / columns, (high * first.width) / first.height);
    });
    stage.style.setProperty("--fluxnb-pane", `${Math.max(80, Math.floor(Math.max(...widths)))}px`);
  }

  // Zoom, place and divider: three numbers of the stage that every picture on it follows.
  function place() {
    const limit = (state.scale - 1) / 2;
    state.x = Math.max(-limit, Math.min(limit, state.x));
    state.y = Math.max(-limit, Math.min(limit, state.y));
    stage.style.setProperty("--fluxnb-scale", state.scale);
    stage.style.setProperty("--fluxnb-x", `${state.x * 100}%`);
    stage.style.setProperty("--fluxnb-y", `${state.y * 100}%`);
    stage.style.setProperty("--fluxnb-split", `${state.split * 100}%`);
    stage.classList.toggle("fluxnb-near", state.scale >= 4); // near enough to want to see the pixels
    split.range.value = String(Math.round(state.split * 100));
    dialog.dataset.zoom = String(state.scale);
    zoomText.textContent = state.scale > 1 ? `${Number(state.scale.toFixed(1))}×` : "";
  }

  // About a point, in shares of the picture from its middle, that stays where it is.
  function zoom(factor, atX = 0, atY = 0) {
    const scale = factor === 0 ? 1 : Math.max(1, Math.min(MOST_ZOOM, state.scale * factor));
    const ratio = scale / state.scale;
    state.x = atX - (atX - state.x) * ratio;
    state.y = atY - (atY - state.y) * ratio;
    state.scale = scale;
    place();
  }

  // ---------------------------------------------------------------------------------------------------------- acting
  function choose(mode) {
    if (state.ids.length < 2) return;
    state.mode = mode;
    build();
  }
  function pair(a, b) {
    Object.assign(state, { a, b });
    const held = dialog.contains(document.activeElement) ? document.activeElement.textContent : null;
    build();
    if (!dialog.contains(document.activeElement)) {
      // The chip that was pressed has been made anew.
      ([...chips.children].find((node) => node.textContent.slice(-8) === held?.slice(-8)) ?? stage).focus();
    }
  }
  function next(by, which = "b") {
    const other = which === "b" ? state.a : state.b;
    const count = state.ids.length;
    let at = (state[which] + by + count) % count;
    if (state.mode !== "flick" && at === other) at = (at + by + count) % count;
    if (state.mode === "flick" || at !== other) pair(which === "a" ? at : state.a, which === "b" ? at : state.b);
  }
  function flick(by) {
    state.b = (state.b + by + state.ids.length) % state.ids.length;
    const id = state.ids[state.b];
    const [image] = stage.querySelectorAll("img");
    image.dataset.cell = String(id);
    image.alt = label(id);
    stage.querySelector(".fluxnb-label").textContent = label(id);
    stage.setAttribute("aria-label", said("flick"));
    [...chips.children].forEach((node, i) => node.setAttribute("aria-pressed", String(i === state.b)));
    draw();
  }
  function autoFlick(go = state.timer === null) {
    clearInterval(state.timer);
    state.timer = go ? setInterval(() => (dialog.isConnected ? flick(1) : autoFlick(false)), 600) : null;
    flickPlay.textContent = go ? "❚❚ flick" : "▶ flick";
  }
  function starThese() {
    const one = state.mode === "flick" || state.ids.length === 1;
    host.star(one ? [state.ids[state.ids.length === 1 ? 0 : state.b]] : state.ids);
    starThese.draw();
  }
  starThese.draw = () => {
    const all = state.ids.length > 0 && state.ids.every((id) => host.starred(id));
    star.textContent = all ? "★" : "☆";
    star.setAttribute("aria-label", "star");
    star.setAttribute("aria-pressed", String(all));
  };

  function open(ids, mode) {
    Object.assign(state, { ids: [...ids], a: 0, b: Math.min(1, ids.length - 1), scale: 1, x: 0, y: 0 });
    if (mode) state.mode = mode;
    if (!dialog.open) {
      barPlace.append(film.bar);
      if (framed) dialog.show();
      else dialog.showModal();
      root.classList.toggle("fluxnb-open", framed);
      stage.focus({ preventScroll: true });
    }
    build();
    if (framed) stage.scrollIntoView({ block: "nearest" });
  }
  function dismiss() {
    if (!dialog.open) return;
    autoFlick(false);
    root.classList.remove("fluxnb-open");
    dialog.close();
    host.onClose(state.ids);
  }

  const ACTS = {
    Escape: () => dismiss(),
    "+": () => zoom(1.5),
    "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    0: () => zoom(0),
    s: () => starThese(),
    ",": () => film.move(-1),
    ".": () => film.move(1),
    p: () => film.toggle(),
    ...Object.fromEntries(MODES.map(([mode], i) => [String(i + 1), () => choose(mode)])),
    ...Object.fromEntries(Object.entries(KEYS).map(([letter, show]) => [letter, () => film.display(show)])),
  };
  const ALONE = {
    ArrowLeft: () => wander(-1, 0),
    ArrowRight: () => wander(1, 0),
    ArrowUp: () => wander(0, -1),
    ArrowDown: () => wander(0, 1),
    " ": () => host.choose(state.ids[0]),
  };
  const PAIRED = {
    ArrowRight: (shift) => next(1, shift ? "a" : "b"),
    ArrowLeft: (shift) => next(-1, shift ? "a" : "b"),
    w: () => pair(state.b, state.a),
    d: () => state.mode === "slider" && split.range.focus(),
  };
  const FLICKED = {
    ArrowRight: () => flick(1),
    ArrowLeft: () => flick(-1),
    " ": () => flick(1),
    f: () => autoFlick(),
  };
  function wander(right, down) {
    const id = host.neighbour(state.ids[0], right, down);
    if (id === undefined || id === state.ids[0]) return;
    state.ids = [id];
    build();
  }
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the grid behind has keys of the same names
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    const slides = event.target.type === "range" && /^(Arrow|Page|Home|End)/.test(event.key);
    const presses = event.target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter");
    if (slides || presses) return;
    const several = state.ids.length > 1;
    const own = !several ? ALONE : { slider: PAIRED, difference: PAIRED, flick: FLICKED }[state.mode];
    const act = own?.[event.key] ?? ACTS[event.key];
    if (!act) return;
    act(event.shiftKey);
    event.preventDefault();
  });
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault(); // Escape, as the browser hears it
    dismiss();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dismiss());

  stage.addEventListener("wheel", (event) => {
    const box = event.target.closest(".fluxnb-box");
    if (!box || (framed && !event.ctrlKey)) return;
    event.preventDefault();
    const spot = box.getBoundingClientRect();
    const at = [(event.clientX - spot.left) / spot.width - 0.5, (event.clientY - spot.top) / spot.height - 0.5];
    zoom(Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 300), ...at);
  }, { passive: false }); // prettier-ignore
  stage.addEventListener("dblclick", (event) => {
    const box = event.target.closest(".fluxnb-box");
    if (!box) return;
    const spot = box.getBoundingClientRect();
    const at = [(event.clientX - spot.left) / spot.width - 0.5, (event.clientY - spot.top) / spot.height - 0.5];
    zoom(state.scale > 1 ? 0 : 3, ...at);
  });
  let drags = null;
  stage.addEventListener("pointerdown", (event) => {
    const box = event.target.closest(".fluxnb-box");
    if (!box || event.button !== 0) return;
    const spot = box.getBoundingClientRect();
    const near = Math.abs((event.clientX - spot.left) / spot.width - state.split) * spot.width < 18;
    drags = { box: spot, divider: dialog.dataset.mode === "slider" && (near || state.scale === 1) };
    box.setPointerCapture(event.pointerId);
    if (drags.divider) pull(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drags || event.buttons !== 1) return;
    if (drags.divider) return pull(event);
    state.x += event.movementX / drags.box.width;
    state.y += event.movementY / drags.box.height;
    place();
  });
  stage.addEventListener("pointerup", () => (drags = null));
  function pull(event) {
    state.split = Math.max(0, Math.min(1, (event.clientX - drags.box.left) / drags.box.width));
    place();
  }
  const watcher = new ResizeObserver(fit);
  watcher.observe(stage);

  return {
    open,
    close: dismiss,
    get isOpen() {
      return dialog.open;
    },
    draw: () => dialog.open && draw(),
    end() {
      autoFlick(false);
      watcher.disconnect();
    },
  };
}

// What the recipes of these cells say: a line for one, and for several a table of what differs and a line of the rest.
function described(ids, host) {
  const all = ids.map((id) => new Map(host.cell(id).facts));
  const names = [...new Set(all.flatMap((facts) => [...facts.keys()]))];
  const values = (name) => all.map((facts) => facts.get(name) ?? "–");
  const differs = names.filter((name) => new Set(values(name)).size > 1);
  const same = names.filter((name) => !differs.includes(name));
  const line = make("p", "fluxnb-same");
  for (const name of same) {
    const fact = make("span", "fluxnb-fact");
    fact.append(make("i", "", name), ` ${values(name)[0]}`);
    line.append(fact);
  }
  if (ids.length < 2) return [line];
  const table = make("table", "fluxnb-differs");
  for (const name of differs) {
    const row = make("tr");
    row.append(make("th", "", name), ...values(name).map((value) => make("td", "", value)));
    table.append(row);
  }
  return [table, line];
}
