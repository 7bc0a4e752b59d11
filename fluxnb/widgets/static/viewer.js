// The viewer: one picture large, or several that are compared: side by side, with a slider, by flicking between them,
// or as their difference.

const MODES = { side: "side by side", slider: "slider", flick: "flick", difference: "difference" };
const FLICK = 600; // milliseconds
const HINTS = {
  alone: "← → ↑ ↓ neighbours · space choose for comparing",
  side: "1–4 how to compare",
  slider: "1–4 how to compare · ← → other B · shift ← → other A · w swap · d divider",
  flick: "1–4 how to compare · ← → or space flick · f by itself",
  difference: "1–4 how to compare · ← → other B · shift ← → other A · w swap",
};

function makeTool(name, max, value, act) {
  const label = make("label", "fluxnb-tool", name);
  const range = keysAreOurs(make("input"));
  Object.assign(range, { type: "range", min: 0, max, value });
  range.addEventListener("input", () => act(Number(range.value)));
  label.append(range);
  return { label, range };
}

// What the view around it knows: cell(id), label(id, others), url(id), neighbour(right, down), star(ids), starred(id),
// choose(id), onClose(ids). The bar of the film moves in here while the viewer is open, so that a scrub goes on.
function makeViewer(root, film, host) {
  // A frame inside a page (Colab, VS Code) is as tall as its content: laid over it, a window could stand out of sight.
  const framed = window.self !== window.top;
  const state = { ids: [], a: 0, b: 1, mode: "side", gain: 4, timer: null };
  const dialog = make("dialog", "fluxnb-viewer");
  const head = make("div", "fluxnb-viewer-head");
  const modes = make("div", "fluxnb-shows");
  const zoomText = make("output", "fluxnb-zoom");
  const star = makeButton("fluxnb-star-this", "☆", "star (s)", starThese);
  const close = makeButton("fluxnb-close", "close", "back to the grid (esc)", dismiss);
  const chips = make("div", "fluxnb-chips");
  const tools = make("div", "fluxnb-tools");
  const barPlace = make("div", "fluxnb-bar-place");
  const facts = make("div", "fluxnb-facts");
  const help = make("div", "fluxnb-foot");
  const numbers = make("output", "fluxnb-numbers");
  const flicker = makeButton("fluxnb-flicker", "▶ flick", "flick by itself (f)", () => flickOn());
  const divider = makeTool("divider", 100, 50, (value) => stage.divide(value / 100));
  const brighter = makeTool("brighter", 5, 2, (value) => {
    state.gain = 2 ** value;
    draw();
  });
  const stage = makeStage({
    framed,
    moved({ scale, split }) {
      divider.range.value = String(Math.round(split * 100));
      dialog.dataset.zoom = String(scale);
      zoomText.textContent = scale > 1 ? `${Number(scale.toFixed(1))}×` : "";
    },
  });
  dialog.setAttribute("aria-label", "pictures, large");
  star.setAttribute("aria-label", "star");
  modes.setAttribute("role", "group");
  modes.setAttribute("aria-label", "how to compare");
  const buttons = Object.entries(MODES).map(([mode, name], i) => {
    const button = makeButton("fluxnb-show", name, `${name} (${i + 1})`, () => compareBy(mode));
    modes.append(button);
    return { mode, button };
  });
  head.append(modes, make("span", "fluxnb-space"), zoomText, star, close);
  dialog.append(head, chips, stage.node, tools, barPlace, facts, help);
  root.append(dialog);

  // ------------------------------------------------------------------------------------------------ what stands there
  const label = (id) => host.label(id, state.ids);
  const pair = () => [state.ids[state.a], state.ids[state.b]];
  const mode = () => (state.ids.length > 1 ? state.mode : "alone");

  function build() {
    flickOn(false);
    const now = mode();
    const paired = now === "slider" || now === "difference";
    if (paired && state.a === state.b) state.b = (state.a + 1) % state.ids.length; // flicked onto the other
    const [a, b] = pair();
    const panes = {
      alone: () => state.ids.map((id) => pane(label(id), picture(id))),
      side: () => state.ids.map((id) => pane(label(id), picture(id))),
      slider: () => [pane([`A ${label(a)}`, `B ${label(b)}`], picture(a), over(b), make("div", "fluxnb-divider"))],
      flick: () => [pane(label(b), picture(b))],
      difference: () => [pane("the darker, the more alike", make("canvas"))],
    };
    dialog.dataset.mode = now;
    modes.hidden = now === "alone";
    for (const { mode, button } of buttons) button.setAttribute("aria-pressed", String(mode === now));
    chips.replaceChildren(...(paired || now === "flick" ? state.ids.map((id, i) => chip(id, i, paired)) : []));
    const used = { slider: [divider.label], difference: [brighter.label, numbers], flick: [flicker] };
    tools.replaceChildren(...(used[now] ?? []));
    facts.replaceChildren(...described((paired ? pair() : state.ids).map(host.cell)));
    const scrub = film.stops.length > 1 ? ", . noise level · " : "";
    help.textContent = `${HINTS[now]} · + − 0 or wheel zoom, drag to move · ${scrub}s star · esc back`;
    stage.node.setAttribute("aria-label", said(now));
    stage.show(panes[now](), host.cell(state.ids[0]), now === "slider");
    drawStar();
    draw();
  }

  function said(now) {
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
    caption.append(...[captions].flat().map((words) => make("span", "", words)));
    figure.append(box, caption);
    return figure;
  }
  function picture(id) {
    const image = make("img");
    image.draggable = false;
    image.decoding = "sync"; // a flick is seen at once or it is no flick
    image.dataset.cell = String(id);
    image.alt = label(id);
    return image;
  }
  function over(id) {
    const layer = make("div", "fluxnb-over");
    layer.append(picture(id));
    return layer;
  }
  function chip(id, i, paired) {
    const role = !paired ? "" : i === state.a ? "A" : i === state.b ? "B" : "";
    const button = makeButton("fluxnb-chip", "", paired ? "make it B (shift: A)" : "", (event) => {
      const [mine, other] = event.shiftKey ? ["a", "b"] : ["b", "a"];
      match({ [mine]: i, [other]: state[other] === i ? state[mine] : state[other] });
      chips.children[i].focus(); // the one that was pressed has been made anew
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
    drawDifference(canvas, pair().map(host.url), state.gain).then((words) => {
      if (words === null) return;
      numbers.textContent = words;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${said("difference")}: ${words}`);
    });
  }

  // ---------------------------------------------------------------------------------------------------------- acting
  function compareBy(mode) {
    if (state.ids.length < 2) return;
    state.mode = mode;
    build();
  }
  function match(pair) {
    Object.assign(state, pair);
    build();
  }
  // Another picture as A or as B, past the one that is the other already.
  function next(by, which) {
    const count = state.ids.length;
    const other = state[which === "a" ? "b" : "a"];
    let at = (state[which] + by + count) % count;
    if (at === other) at = (at + by + count) % count;
    if (at !== other) match({ [which]: at });
  }
  function flick(by) {
    state.b = (state.b + by + state.ids.length) % state.ids.length;
    const id = state.ids[state.b];
    const image = stage.node.querySelector("img");
    image.dataset.cell = String(id);
    image.alt = label(id);
    stage.node.querySelector("figcaption").firstChild.textContent = label(id);
    stage.node.setAttribute("aria-label", said("flick"));
    [...chips.children].forEach((node, i) => node.setAttribute("aria-pressed", String(i === state.b)));
    drawStar();
    draw();
  }
  function flickOn(go = state.timer === null) {
    clearInterval(state.timer);
    state.timer = go ? setInterval(() => (dialog.isConnected ? flick(1) : flickOn(false)), FLICK) : null;
    flicker.textContent = go ? "❚❚ flick" : "▶ flick";
  }
  function wander(right, down) {
    const id = host.neighbour(right, down);
    if (id === undefined) return;
    state.ids = [id];
    build();
  }
  // Those in view: one while flicking, else all of them.
  function inView() {
    return mode() === "flick" ? [state.ids[state.b]] : state.ids;
  }
  function starThese() {
    host.star(inView());
    drawStar();
  }
  function drawStar() {
    const all = inView().every(host.starred);
    star.textContent = all ? "★" : "☆";
    star.setAttribute("aria-pressed", String(all));
  }

  function open(ids) {
    Object.assign(state, { ids: [...ids], a: 0, b: Math.min(1, ids.length - 1) });
    if (!dialog.open) {
      barPlace.append(film.bar);
      if (framed) dialog.show();
      else dialog.showModal();
      root.classList.toggle("fluxnb-open", framed);
    }
    build();
    stage.zoom(0);
    stage.node.focus({ preventScroll: !framed });
  }
  function dismiss() {
    if (!dialog.open) return;
    flickOn(false);
    root.classList.remove("fluxnb-open");
    dialog.close();
    host.onClose(state.ids);
  }

  const ACTS = {
    Escape: dismiss,
    "+": () => stage.zoom(1.5),
    "=": () => stage.zoom(1.5),
    "-": () => stage.zoom(1 / 1.5),
    0: () => stage.zoom(0),
    s: starThese,
    ",": () => film.move(-1),
    ".": () => film.move(1),
    p: film.toggle,
    ...Object.fromEntries(Object.keys(MODES).map((mode, i) => [String(i + 1), () => compareBy(mode)])),
    ...Object.fromEntries(Object.entries(KEYS).map(([letter, show]) => [letter, () => film.display(show)])),
  };
  const PAIRED = {
    ArrowRight: (shift) => next(1, shift ? "a" : "b"),
    ArrowLeft: (shift) => next(-1, shift ? "a" : "b"),
    w: () => match({ a: state.b, b: state.a }),
  };
  const OWN = {
    alone: {
      ArrowLeft: () => wander(-1, 0),
      ArrowRight: () => wander(1, 0),
      ArrowUp: () => wander(0, -1),
      ArrowDown: () => wander(0, 1),
      " ": () => host.choose(state.ids[0]),
    },
    slider: { ...PAIRED, d: () => divider.range.focus() },
    flick: { ArrowRight: () => flick(1), ArrowLeft: () => flick(-1), " ": () => flick(1), f: () => flickOn() },
    difference: PAIRED,
  };
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the grid behind has keys of the same names
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    const slides = event.target.type === "range" && /^(Arrow|Page|Home|End)/.test(event.key);
    const presses = event.target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter");
    const act = OWN[mode()]?.[event.key] ?? ACTS[event.key];
    if (slides || presses || !act) return;
    act(event.shiftKey);
    event.preventDefault();
  });
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault(); // Escape, as the browser hears it
    dismiss();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dismiss());

  return {
    open,
    draw: () => dialog.open && draw(),
    end() {
      flickOn(false);
      stage.end();
    },
  };
}
