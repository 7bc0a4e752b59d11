// @ts-check
// The lab: a form, and the grid that it requested last. Needs a kernel for new images.

import { make, makeButton } from "./dom.js";
import { changedFields, makeForm } from "./form.js";
import { connectGrid } from "./kernel.js";
import { pageMounter, register } from "./output.js";
import { receiveCells } from "./source.js";
import { followGround } from "./theme.js";
import "./shared.css";
import "./viewer.css";
import "./explore.css";
import "./lab.css";

// The same text as `duration` in fluxnb/units.py.
function formatDuration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function labView(root, model) {
  const listeners = new AbortController();
  const on = (node, name, handler) => node.addEventListener(name, handler, { signal: listeners.signal });
  let counts = { done: 0, remaining: null, fraction: 0 };
  const running = () => model.get("state").phase === "running";

  root.classList.add("fluxnb", "fluxnb-lab");
  const { examples } = model.get("form");
  const form = makeForm({ fields: model.get("fields"), examples, press, generate, changed: formChanged });
  const status = make("div", "fluxnb-lab-status");
  const progress = make("progress");
  const statusText = make("span", "fluxnb-progress-text");
  const notices = make("ul", "fluxnb-notices");
  const problem = make("div", "fluxnb-problem");
  const problemText = make("div", "fluxnb-problem-text");
  const remedy = make("div", "fluxnb-remedy");
  const history = make("div", "fluxnb-history");
  const stale = make("div", "fluxnb-stale");
  const gridRoot = make("div");
  progress.setAttribute("aria-label", "finished pictures");
  statusText.setAttribute("role", "status");
  problem.setAttribute("role", "alert");
  const reply = make("span", "fluxnb-lab-reply");
  reply.setAttribute("role", "status");
  status.append(progress, statusText, reply);
  problem.append(problemText, remedy);
  root.replaceChildren(form.node, status, notices, problem, history, stale, gridRoot);

  const { grid, requests, close } = connectGrid(gridRoot, model, {
    reply: (text) => {
      reply.textContent = text;
    },
    hasForm: true,
    useRecipe(cell) {
      const seeds = new Map(cell.facts).get("seed"); // as text, because JavaScript would round a large number
      const recipe = JSON.parse(cell.recipe);
      form.set({ ...recipe, negative: recipe.negative ?? "", seeds });
    },
  });

  function stop() {
    form.button.disabled = true;
    form.button.textContent = "stopping";
    requests.send({ kind: "cancel" }, { text: "stopping after the current step …" });
  }
  function generate() {
    if (running()) return;
    root.dataset.clicked = String(performance.now());
    delete root.dataset.first;
    requests.send({ kind: "generate", fields: form.values });
  }
  function press() {
    if (running()) stop();
    else generate();
  }
  function formChanged() {
    drawStale();
    model.set("fields", { ...model.get("fields"), ...form.values });
    model.save_changes();
  }

  // The run whose images are displayed, as an entry of the history.
  const displayedRun = () => model.get("history").find(({ run }) => run === model.get("data").run);

  // Images of other settings than those of the form are labeled as such.
  function drawStale() {
    const current = displayedRun();
    const names = current ? changedFields(current.fields, form.values) : [];
    stale.hidden = !names.length;
    stale.textContent = names.length ? `The pictures below are of other settings (${names.join(", ")}).` : "";
    root.classList.toggle("fluxnb-is-stale", names.length > 0);
  }

  function drawHistory() {
    const runs = model.get("history");
    const current = model.get("data").run;
    history.hidden = runs.length < 2;
    history.replaceChildren(make("span", "fluxnb-history-title", "runs"));
    for (const { run, fields, done, total, state } of [...runs].reverse()) {
      const settings = Object.entries(fields).map(([name, text]) => `${name}: ${text}`);
      const button = makeButton(
        "fluxnb-run",
        fields.prompt,
        `${settings.join("\n")}\n${done} of ${total}, ${state}`,
        () => requests.send({ kind: "show", run }),
      );
      button.setAttribute("aria-pressed", String(run === current));
      history.append(button);
    }
  }

  function draw() {
    const state = model.get("state");
    const { phase, total } = state;
    const done = running() ? Math.max(counts.done, state.done) : state.done;
    const remaining = counts.remaining ?? state.remaining;
    root.dataset.phase = phase;
    form.button.disabled = false;
    form.button.textContent = running() ? "stop" : "generate";
    form.button.title = running() ? "stop after this step (Escape)" : "generate (Ctrl-Enter)";
    progress.hidden = !running();
    Object.assign(progress, { max: 1, value: counts.fraction });
    problem.hidden = phase !== "failed";
    problemText.textContent = state.message;
    remedy.textContent = state.remedy;
    notices.replaceChildren(...(state.notices ?? []).map((text) => make("li", "", text)));
    gridRoot.hidden = model.get("data").state === "empty";
    const pictures = `${total} picture${total === 1 ? "" : "s"}`;
    if (phase === "running") {
      const unknown = remaining === null || remaining === undefined;
      const suffix = unknown ? "" : ` · about ${formatDuration(remaining)} left`;
      statusText.textContent = `${done} of ${pictures}${suffix}`;
    } else if (phase === "finished") statusText.textContent = `${pictures} in ${formatDuration(state.elapsed)}`;
    else if (phase === "stopped") statusText.textContent = `stopped; ${done} of ${pictures}`;
    else if (phase === "failed") statusText.textContent = total ? `${done} of ${pictures}` : "";
    else statusText.textContent = "";
    drawHistory();
    drawStale();
  }

  function onMessage({ kind, ...values }) {
    if (kind === "cell" && root.dataset.first === undefined) root.dataset.first = String(performance.now());
    if (kind !== "progress") return;
    counts = /** @type {any} */ (values);
    draw();
  }
  function onState() {
    if (!running() || !model.get("state").done) counts = { done: 0, remaining: null, fraction: 0 };
    draw();
  }
  function onFields() {
    form.update(model.get("fields"));
    drawStale();
  }

  on(root, "keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
    else if (event.key === "Escape" && running() && form.node.contains(event.target)) stop();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  // A PNG that is dropped here fills in the form from the recipe inside.
  on(root, "dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    root.classList.add("fluxnb-drop");
  });
  on(root, "dragleave", () => root.classList.remove("fluxnb-drop"));
  on(root, "drop", async (event) => {
    const [file] = event.dataTransfer?.files ?? [];
    root.classList.remove("fluxnb-drop");
    if (!file) return;
    event.preventDefault();
    event.stopPropagation();
    const text = `reading the settings of ${file.name} …`;
    requests.send({ kind: "recipe" }, { text, buffers: [await file.arrayBuffer()] });
  });

  const handlers = {
    "msg:custom": onMessage,
    "change:state": onState,
    "change:data": draw,
    "change:history": draw,
    "change:fields": onFields,
  };
  for (const [name, handler] of Object.entries(handlers)) model.on(name, handler);
  draw();
  grid.refresh();
  const endTheme = followGround(root);
  return () => {
    endTheme();
    for (const [name, handler] of Object.entries(handlers)) model.off(name, handler);
    listeners.abort();
    close();
  };
}

function initialize({ model }) {
  receiveCells(model);
  return register(model);
}

function render({ model, el }) {
  const root = make("div");
  el.append(root);
  return labView(root, model);
}

export const mountPage = pageMounter(() => null, render);
export default { initialize, render };
