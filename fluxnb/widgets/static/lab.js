// The lab: ask for pictures, watch them come, stop them. It needs a kernel, so it lives in a notebook alone.
//
// Numbers stay text all the way to Python: JavaScript would round a large seed. Text only ever becomes textContent,
// an attribute or a field's value, never markup.

const FIELDS = [
  ["prompt", "prompt", "what to draw"],
  ["negative", "negative prompt", "what to steer away from"],
  ["seeds", "seeds", "0-3, or 1, 5, 9"],
  ["steps", "steps", "1, 2, 4"],
  ["width", "width", "pixels, a multiple of 16"],
  ["height", "height", "pixels, a multiple of 16"],
  ["guidance", "guidance", "strength"],
];
const LONG = new Set(["prompt", "negative"]);

function lasting(seconds) {
  if (seconds < 90) return `${seconds < 9.95 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} min`;
}

function bench(root, model) {
  const listeners = new AbortController();
  const on = (node, name, act) => node.addEventListener(name, act, { signal: listeners.signal });
  const urls = [];
  let squares = [];
  let count = { done: 0, left: null, share: 0 };

  root.classList.add("fluxnb", "fluxnb-lab");
  root.replaceChildren();
  const form = make("div", "fluxnb-form");
  const short = make("div", "fluxnb-fields");
  const inputs = {};
  for (const [name, label, hint] of FIELDS) {
    const text = model.get("form").fields[name];
    if (text === undefined) continue;
    const field = make("label", `fluxnb-field fluxnb-${name}`, label);
    const input = keysAreOurs(make(LONG.has(name) ? "textarea" : "input"));
    if (LONG.has(name)) input.rows = 2;
    else Object.assign(input, { type: "text", autocomplete: "off", spellcheck: false });
    input.placeholder = hint;
    input.value = text;
    inputs[name] = input;
    field.append(input);
    (LONG.has(name) ? form : short).append(field);
  }
  const button = makeButton("fluxnb-main", "generate", "generate (Ctrl-Enter)", press);
  short.append(button);
  form.append(short);
  const status = make("div", "fluxnb-status");
  const progress = make("progress");
  const said = make("span", "fluxnb-said");
  status.append(progress, said);
  said.setAttribute("role", "status");
  const problem = make("div", "fluxnb-problem");
  problem.setAttribute("role", "alert");
  const what = make("div", "fluxnb-what");
  const remedy = make("div", "fluxnb-remedy");
  problem.append(what, remedy);
  const frame = make("div", "fluxnb-frame");
  const table = make("div", "fluxnb-grid");
  frame.append(table);
  const foot = make("div", "fluxnb-foot");
  foot.append(make("span", "fluxnb-help", "Ctrl-Enter generates · Escape stops · fnb.explore(lab.grid) looks closer"));
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

  function fill() {
    const texts = model.get("form").fields;
    for (const [name, input] of Object.entries(inputs)) {
      if (texts[name] !== undefined && input !== document.activeElement) input.value = texts[name];
    }
  }

  // One square for each picture that will come.
  function lay() {
    const { rows = [], columns = [], squares: told = [], width = 1, height = 1 } = model.get("board");
    urls.splice(0).forEach((url) => url && URL.revokeObjectURL(url));
    const side = columns.length > 6 ? 112 : columns.length > 3 ? 160 : 224;
    // Seeds of one step count need no rows: they flow, each with its name above it.
    const flows = columns.length === 1;
    table.classList.toggle("fluxnb-flow", flows);
    table.style.setProperty("--fluxnb-columns", String(Math.max(columns.length, 1)));
    table.style.setProperty("--fluxnb-side", `${Math.min(side, Math.max(width, 96) * 2)}px`);
    table.style.setProperty("--fluxnb-ratio", `${width} / ${height}`);
    table.replaceChildren();
    const place = (node, row, column) => {
      Object.assign(node.style, { gridRow: String(row), gridColumn: String(column) });
      table.append(node);
    };
    if (told.length > 1 && !flows) {
      columns.forEach((name, i) => place(make("div", "fluxnb-head", name), 1, i + 2));
      rows.forEach((name, i) => place(make("div", "fluxnb-row-head", name), i + 2, 1));
    }
    squares = told.map(({ row, column, name, steps }) => {
      const node = make("div", "fluxnb-square fluxnb-empty");
      const step = make("span", "fluxnb-step");
      node.append(step);
      node.title = name;
      if (flows) {
        const item = make("div", "fluxnb-item");
        item.append(make("div", "fluxnb-head fluxnb-row-head", rows[row]), node);
        table.append(item);
      } else place(node, row + 2, column + 2);
      return { node, step, steps, name, image: null };
    });
    count = { done: 0, left: null, share: 0 };
    model.get("frames").forEach((data, i) => (data.byteLength ?? data.length) && put(i, data, 0));
  }

  function put(place, data, step) {
    const square = squares[place];
    if (!square) return;
    if (square.image === null) {
      square.image = make("img");
      square.node.prepend(square.image);
      square.node.classList.remove("fluxnb-empty");
    }
    const before = urls[place];
    urls[place] = address(data);
    square.image.src = urls[place];
    if (before) URL.revokeObjectURL(before);
    square.image.alt = step ? `${square.name}: the estimate after ${step} of ${square.steps}` : square.name;
    square.step.textContent = step ? `${step} of ${square.steps}` : "";
    if (!step && root.dataset.first === undefined) root.dataset.first = String(performance.now());
  }

  function draw() {
    const state = model.get("state");
    const { phase, total } = state;
    const done = running() ? Math.max(count.done, state.done) : state.done;
    const left = count.left ?? state.left;
    root.dataset.phase = phase;
    button.disabled = false;
    button.textContent = running() ? "stop" : "generate";
    button.title = running() ? "stop after this step (Escape)" : "generate (Ctrl-Enter)";
    progress.hidden = !running();
    Object.assign(progress, { max: 1, value: count.share });
    problem.hidden = phase !== "failed";
    what.textContent = state.what;
    remedy.textContent = state.remedy;
    const pictures = `${total} picture${total === 1 ? "" : "s"}`;
    if (phase === "running") {
      const rest = left === null || left === undefined ? "" : ` · about ${lasting(left)} left`;
      said.textContent = `${done} of ${pictures}${rest}`;
    } else if (phase === "finished") said.textContent = `${pictures} in ${lasting(state.spent)}`;
    else if (phase === "stopped") said.textContent = `stopped; ${done} of ${pictures}`;
    else if (phase === "failed") said.textContent = total ? `${done} of ${pictures}` : "";
    else said.textContent = "";
  }

  function begin() {
    delete root.dataset.first;
    lay();
    draw();
  }

  function hear({ kind, place, step, done, left, share }, buffers) {
    if (kind !== "frame") return;
    count = { done, left, share };
    put(place, buffers[0], step);
    draw();
  }

  on(root, "keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running()) press();
    else if (event.key === "Escape" && running()) press();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const doors = { "msg:custom": hear, "change:board": begin, "change:state": draw, "change:form": fill };
  for (const [name, act] of Object.entries(doors)) model.on(name, act);
  begin();
  return () => {
    for (const [name, act] of Object.entries(doors)) model.off(name, act);
    listeners.abort();
    urls.forEach((url) => url && URL.revokeObjectURL(url));
  };
}

// Pictures are put where the whole would be, so that a view that is opened later finds them.
function initialize({ model }) {
  model.on("msg:custom", ({ kind, place, step }, buffers) => {
    if (kind === "frame" && !step) model.get("frames")[place] = buffers[0];
  });
}

function render({ model, el }) {
  const root = make("div");
  el.append(root);
  return bench(root, model);
}

export default { initialize, render };
