// @ts-check
// The lab: a form that requests images and displays them as they are sampled. It needs a kernel and so has no page.
//
// Numbers are sent to Python as text, because JavaScript would round large seeds. Text is only ever assigned to
// textContent, an attribute or a field's value, never parsed as markup.

import { frameUrl, make, makeButton, suppressShortcuts } from "./dom.js";
import { followGround } from "./theme.js";
import "./shared.css";
import "./lab.css";

const FIELDS = [
  ["prompt", "prompt", "what to draw"],
  ["negative", "negative prompt", "what to avoid"],
  ["seeds", "seeds", "0-3, or 1, 5, 9"],
  ["steps", "steps", "1, 2, 4"],
  ["width", "width", "pixels, a multiple of 16"],
  ["height", "height", "pixels, a multiple of 16"],
  ["guidance", "guidance", "strength"],
];
const MULTILINE = new Set(["prompt", "negative"]);

// The same text as `duration` in fluxnb/units.py.
function formatDuration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function labView(root, model) {
  const listeners = new AbortController();
  const on = (node, name, handler) => node.addEventListener(name, handler, { signal: listeners.signal });
  const urls = [];
  let tiles = [];
  let progressCounts = { done: 0, remaining: null, fraction: 0 };

  root.classList.add("fluxnb", "fluxnb-lab");
  root.replaceChildren();
  const form = make("div", "fluxnb-form");
  const shortFields = make("div", "fluxnb-fields");
  const inputs = {};
  for (const [name, label, hint] of FIELDS) {
    const text = model.get("form").fields[name];
    if (text === undefined) continue;
    const field = make("label", `fluxnb-field fluxnb-${name}`, label);
    const input = suppressShortcuts(make(MULTILINE.has(name) ? "textarea" : "input"));
    if (MULTILINE.has(name)) input.rows = 2;
    else Object.assign(input, { type: "text", autocomplete: "off", spellcheck: false });
    input.placeholder = hint;
    input.value = text;
    inputs[name] = input;
    field.append(input);
    (MULTILINE.has(name) ? form : shortFields).append(field);
  }
  const button = makeButton("fluxnb-main", "generate", "generate (Ctrl-Enter)", press);
  shortFields.append(button);
  form.append(shortFields);
  const status = make("div", "fluxnb-status");
  const progress = make("progress");
  const statusText = make("span", "fluxnb-progress-text");
  status.append(progress, statusText);
  statusText.setAttribute("role", "status");
  const problem = make("div", "fluxnb-problem");
  problem.setAttribute("role", "alert");
  const problemText = make("div", "fluxnb-problem-text");
  const remedy = make("div", "fluxnb-remedy");
  problem.append(problemText, remedy);
  const frame = make("div", "fluxnb-frame");
  const table = make("div", "fluxnb-grid");
  frame.append(table);
  const foot = make("div", "fluxnb-foot");
  const help = "Ctrl-Enter generates · Escape stops · fnb.explore(lab.grid) opens the grid";
  foot.append(make("span", "fluxnb-help", help));
  root.append(form, status, problem, frame, foot);

  const running = () => model.get("state").phase === "running";

  function press() {
    if (running()) {
      button.disabled = true;
      button.textContent = "stopping";
      model.send({ kind: "cancel" });
      return;
    }
    const fields = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
    root.dataset.clicked = String(performance.now());
    model.send({ kind: "generate", fields });
  }

  // Copy the texts that Python set into the fields, except the one that is being edited.
  function updateFields() {
    const texts = model.get("form").fields;
    for (const [name, input] of Object.entries(inputs)) {
      if (texts[name] !== undefined && input !== document.activeElement) input.value = texts[name];
    }
  }

  // Display one empty tile for each requested image, and the images that are finished.
  function layOut() {
    const { rows = [], columns = [], tiles: described = [], width = 1, height = 1 } = model.get("table");
    urls.splice(0).forEach((url) => url && URL.revokeObjectURL(url));
    const side = columns.length > 6 ? 112 : columns.length > 3 ? 160 : 224;
    // With a single step count the tiles flow, each with its seed above it.
    const flows = columns.length === 1;
    table.classList.toggle("fluxnb-flow", flows);
    table.style.setProperty("--fluxnb-columns", String(Math.max(columns.length, 1)));
    table.style.setProperty("--fluxnb-side", `${Math.min(side, Math.max(width, 96) * 2)}px`);
    table.style.setProperty("--fluxnb-ratio", `${width} / ${height}`);
    table.replaceChildren();
    const putInGrid = (node, row, column) => {
      Object.assign(node.style, { gridRow: String(row), gridColumn: String(column) });
      table.append(node);
    };
    if (described.length > 1 && !flows) {
      columns.forEach((name, i) => putInGrid(make("div", "fluxnb-head", name), 1, i + 2));
      rows.forEach((name, i) => putInGrid(make("div", "fluxnb-row-head", name), i + 2, 1));
    }
    tiles = described.map(({ row, column, name, steps }) => {
      const node = make("div", "fluxnb-tile fluxnb-empty");
      const step = make("span", "fluxnb-step");
      node.append(step);
      node.title = name;
      if (flows) {
        const item = make("div", "fluxnb-item");
        item.append(make("div", "fluxnb-head fluxnb-row-head", rows[row]), node);
        table.append(item);
      } else putInGrid(node, row + 2, column + 2);
      return { node, step, steps, name, image: null };
    });
    progressCounts = { done: 0, remaining: null, fraction: 0 };
    model.get("frames").forEach((data, i) => (data.byteLength ?? data.length) && showFrame(i, data, 0));
  }

  // Display a finished image, for step 0, or the preview after a step.
  function showFrame(index, data, step) {
    const tile = tiles[index];
    if (!tile) return;
    if (tile.image === null) {
      tile.image = make("img");
      tile.node.prepend(tile.image);
      tile.node.classList.remove("fluxnb-empty");
    }
    const previous = urls[index];
    urls[index] = frameUrl(data);
    tile.image.src = urls[index];
    if (previous) URL.revokeObjectURL(previous);
    tile.image.alt = step ? `${tile.name}: preview after step ${step} of ${tile.steps}` : tile.name;
    tile.step.textContent = step ? `${step} of ${tile.steps}` : "";
    if (!step && root.dataset.first === undefined) root.dataset.first = String(performance.now());
  }

  function draw() {
    const state = model.get("state");
    const { phase, total } = state;
    const done = running() ? Math.max(progressCounts.done, state.done) : state.done;
    const remaining = progressCounts.remaining ?? state.remaining;
    root.dataset.phase = phase;
    button.disabled = false;
    button.textContent = running() ? "stop" : "generate";
    button.title = running() ? "stop after this step (Escape)" : "generate (Ctrl-Enter)";
    progress.hidden = !running();
    Object.assign(progress, { max: 1, value: progressCounts.fraction });
    problem.hidden = phase !== "failed";
    problemText.textContent = state.message;
    remedy.textContent = state.remedy;
    const pictures = `${total} picture${total === 1 ? "" : "s"}`;
    if (phase === "running") {
      const unknown = remaining === null || remaining === undefined;
      const suffix = unknown ? "" : ` · about ${formatDuration(remaining)} left`;
      statusText.textContent = `${done} of ${pictures}${suffix}`;
    } else if (phase === "finished") statusText.textContent = `${pictures} in ${formatDuration(state.elapsed)}`;
    else if (phase === "stopped") statusText.textContent = `stopped; ${done} of ${pictures}`;
    else if (phase === "failed") statusText.textContent = total ? `${done} of ${pictures}` : "";
    else statusText.textContent = "";
  }

  function restart() {
    delete root.dataset.first;
    layOut();
    draw();
  }

  function onMessage({ kind, index, step, done, remaining, fraction }, buffers) {
    if (kind !== "frame") return;
    progressCounts = { done, remaining, fraction };
    showFrame(index, buffers[0], step);
    draw();
  }

  on(root, "keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running()) press();
    else if (event.key === "Escape" && running()) press();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const handlers = {
    "msg:custom": onMessage,
    "change:table": restart,
    "change:state": draw,
    "change:form": updateFields,
  };
  for (const [name, handler] of Object.entries(handlers)) model.on(name, handler);
  restart();
  const endTheme = followGround(root);
  return () => {
    endTheme();
    for (const [name, handler] of Object.entries(handlers)) model.off(name, handler);
    listeners.abort();
    urls.forEach((url) => url && URL.revokeObjectURL(url));
  };
}

// Called once by anywidget. Finished images are written into the trait for views that are opened later.
function initialize({ model }) {
  model.on("msg:custom", ({ kind, index, step }, buffers) => {
    if (kind === "frame" && !step) model.get("frames")[index] = buffers[0];
  });
}

function render({ model, el }) {
  const root = make("div");
  el.append(root);
  return labView(root, model);
}

export default { initialize, render };
