// @ts-check
// The canvas: a plane in which points are drawn with a mouse, a finger, a pen or the keyboard.
//
// The points are a trait in both directions and are sent at the end of each stroke. Without a kernel the points are
// displayed and nothing can be drawn.

import { make, makeButton, suppressShortcuts } from "./dom.js";
import { makeKeyList, pressKey } from "./keys.js";
import { pageMounter, register } from "./output.js";
import { dabs, pathOf, scatter } from "./points.js";
import { followGround } from "./theme.js";
import "./shared.css";
import "./canvas.css";

const WIDTHS = { min: 0.02, max: 0.32, step: 0.02 }; // standard deviations of the brush
const DAB = 12; // points of a click
const STEP = 0.1; // of the brush for a key
const MOST_UNDONE = 100;

function svg(name, attributes, className = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  if (className) node.setAttribute("class", className);
  return node;
}

/** The plane with its axes and, as a scale, two circles of the noise. */
function makePlane(half) {
  const node = make("div", "fluxnb-plane");
  const picture = svg("svg", { viewBox: `${-half} ${-half} ${2 * half} ${2 * half}`, "aria-hidden": "true" });
  const dots = svg("path", {}, "fluxnb-dots");
  const brush = svg("circle", {}, "fluxnb-brush");
  picture.append(
    svg("path", { d: `M${-half} 0H${half}M0 ${-half}V${half}` }, "fluxnb-guide"),
    ...[1, 2].map((r) => svg("circle", { r }, "fluxnb-guide fluxnb-noise")),
    dots,
    brush,
  );
  node.append(picture);
  return { node, brush, show: (points) => dots.setAttribute("d", pathOf(points)) };
}

function countText(count, limit) {
  const points = `${count} point${count === 1 ? "" : "s"}`;
  return count < limit ? points : `${points}: the canvas is full`;
}

// Display points of a saved output.
function mount(root, data) {
  root.classList.add("fluxnb", "fluxnb-canvas");
  const plane = makePlane(data.half);
  plane.node.setAttribute("role", "img");
  plane.node.setAttribute("aria-label", `a drawing of ${countText(data.points.length, Infinity)}`);
  plane.show(data.points);
  root.replaceChildren(plane.node, make("p", "fluxnb-note", "Run this cell in a notebook to draw here."));
  return { close: followGround(root) };
}

function canvasView(root, model) {
  const { half, limit, shapes } = model.get("settings");
  const listeners = new AbortController();
  const on = (node, name, act) => node.addEventListener(name, act, { signal: listeners.signal });
  /** @type {import("./points.js").Point[]} */
  let points = model.get("points");
  let history = [];
  let stroke = null; // { x, y, since } while a stroke is drawn
  /** @type {import("./points.js").Point} */
  let place = [0, 0]; // of the brush

  root.classList.add("fluxnb", "fluxnb-canvas");
  const plane = makePlane(half);
  suppressShortcuts(plane.node).tabIndex = 0;
  plane.node.setAttribute("role", "application");
  plane.node.setAttribute(
    "aria-label",
    "canvas: arrows move the brush, Shift with arrows draws, space scatters points",
  );

  const panel = make("div", "fluxnb-panel");
  const choice = make("div", "fluxnb-shapes");
  choice.setAttribute("role", "group");
  choice.setAttribute("aria-label", "shapes");
  choice.append(
    ...Object.keys(shapes).map((name) =>
      makeButton("fluxnb-shape", name, `replace the drawing with: ${name}`, () => replace(shapes[name])),
    ),
  );
  const width = Object.assign(suppressShortcuts(make("input")), { type: "range", ...WIDTHS, value: "0.08" });
  const label = make("label", "fluxnb-width", "brush");
  label.append(width);
  const edit = make("div", "fluxnb-edit");
  const undoButton = makeButton("fluxnb-undo", "undo", "undo the last change (u)", undo);
  const clearButton = makeButton("fluxnb-clear", "clear", "remove all points (Delete)", () => replace([]));
  edit.append(undoButton, clearButton);
  const status = make("div", "fluxnb-count");
  status.setAttribute("role", "status");
  const note = make("p", "fluxnb-note", "Draw in the plane. Circles: one and two standard deviations of the noise.");
  const keyList = makeKeyList(() => keys);
  panel.append(make("div", "fluxnb-heading", "shapes"), choice, label, edit, status, note, keyList.node);
  root.replaceChildren(plane.node, panel);

  const brushWidth = () => Number(width.value);

  function draw() {
    plane.show(points);
    plane.brush.setAttribute("cx", String(place[0]));
    plane.brush.setAttribute("cy", String(-place[1]));
    plane.brush.setAttribute("r", String(2 * brushWidth())); // 86 % of the points fall inside
    status.textContent = countText(points.length, limit);
    undoButton.disabled = !history.length;
    clearButton.disabled = !points.length;
    root.dataset.points = String(points.length);
  }
  function remember() {
    history = [...history, points].slice(-MOST_UNDONE);
  }
  function send() {
    model.set("points", points);
    model.save_changes();
  }
  function replace(next) {
    endStroke();
    remember();
    points = next;
    draw();
    send();
  }
  function undo() {
    endStroke();
    if (!history.length) return;
    points = history.pop();
    draw();
    send();
  }

  function add(center, count = undefined) {
    const free = limit - points.length;
    if (free > 0) points = [...points, ...scatter(center, brushWidth(), half, count).slice(0, free)];
  }
  function beginStroke() {
    remember();
    stroke = { since: 0 };
  }
  function drawTo(next) {
    const { centers, since } = dabs(place, next, stroke.since);
    for (const center of centers) add(center);
    stroke.since = since;
    place = next;
  }
  function endStroke() {
    if (!stroke) return;
    stroke = null;
    if (history.at(-1) === points) history.pop(); // the canvas was full
    draw();
    send();
  }

  /** @returns {import("./points.js").Point} */
  function placeOf(event) {
    const box = plane.node.getBoundingClientRect();
    const within = (value) => Math.max(-half, Math.min(half, value));
    const across = (event.clientX - box.left) / box.width;
    const down = (event.clientY - box.top) / box.height;
    return [within((2 * across - 1) * half), within((1 - 2 * down) * half)];
  }
  on(plane.node, "pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    endStroke();
    plane.node.setPointerCapture(event.pointerId);
    beginStroke();
    place = placeOf(event);
    add(place, DAB);
    draw();
  });
  on(plane.node, "pointermove", (event) => {
    if (!event.isPrimary) return;
    if (stroke && event.buttons === 1) {
      const parts = event.getCoalescedEvents?.() ?? [];
      for (const part of parts.length ? parts : [event]) drawTo(placeOf(part));
    } else place = placeOf(event);
    draw();
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) on(plane.node, name, endStroke);
  on(plane.node, "keyup", (event) => {
    if (event.key === "Shift") endStroke();
  });

  function move(dx, dy, draws) {
    const within = (value) => Math.max(-half, Math.min(half, Math.round(value * 100) / 100));
    /** @type {import("./points.js").Point} */
    const next = [within(place[0] + dx * STEP), within(place[1] + dy * STEP)];
    if (draws) {
      if (!stroke) beginStroke();
      drawTo(next);
    } else {
      endStroke();
      place = next;
    }
    draw();
  }
  function dab() {
    endStroke();
    beginStroke();
    add(place, DAB);
    endStroke();
  }
  function changeWidth(by) {
    width.value = String(brushWidth() + by * WIDTHS.step);
    draw();
  }
  const keys = [
    {
      keys: "← ↑ → ↓",
      text: "move the brush, with Shift: draw",
      on: {
        ArrowLeft: (shift) => move(-1, 0, shift),
        ArrowRight: (shift) => move(1, 0, shift),
        ArrowUp: (shift) => move(0, 1, shift),
        ArrowDown: (shift) => move(0, -1, shift),
      },
    },
    { keys: "space", text: "scatter points", on: { " ": dab, Enter: dab } },
    {
      keys: "+ −",
      text: "width of the brush",
      on: { "+": () => changeWidth(1), "=": () => changeWidth(1), "-": () => changeWidth(-1) },
    },
    { keys: "u", text: "undo", on: { u: undo, Backspace: undo } },
    { keys: "Delete", text: "clear", on: { Delete: () => replace([]) } },
    keyList.entry,
  ];
  on(plane.node, "keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      undo();
      event.preventDefault();
      event.stopPropagation();
    } else pressKey(keys, event);
  });
  on(width, "input", draw);

  const handlers = {
    "change:points"() {
      const given = model.get("points");
      if (given === points) return; // sent from here
      stroke = null;
      remember();
      points = given;
      draw();
    },
    // The connection of a widget ends when its kernel restarts or stops.
    comm_live_update() {
      note.textContent = "There is no kernel behind this drawing any more. Run this cell again to draw.";
    },
  };
  for (const [name, handler] of Object.entries(handlers)) model.on(name, handler);
  draw();
  const endTheme = followGround(root);
  return () => {
    endTheme();
    for (const [name, handler] of Object.entries(handlers)) model.off(name, handler);
    listeners.abort();
  };
}

function initialize({ model }) {
  return register(model);
}

function render({ model, el }) {
  const root = make("div");
  el.append(root);
  return canvasView(root, model);
}

export const mountPage = pageMounter(mount, render);
export default { initialize, render };
