// The grid: rows, columns and pages chosen among its axes, every cell at one noise level, stars, and the viewer over it.
//
// In a notebook anywidget calls `initialize` once and `render` for each view; cells arrive as messages while they are
// made. In a page that stands alone `mount` is called with data: addresses. Text only ever becomes textContent or an
// attribute, never markup.

const SMALLEST = 48; // pixels, the side of a cell
const LARGEST = 512;
const NARROW = 560; // pixels of width below which the name of a row stands above it

function several(axes) {
  return axes.flatMap((axis, i) => (axis.values.length > 1 ? [i] : []));
}

function explorer(root, source, door) {
  const listeners = new AbortController();
  const on = (node, name, act, options = {}) =>
    node.addEventListener(name, act, { ...options, signal: listeners.signal });
  const state = { rows: -1, columns: -1, pages: [], row: 0, column: 0, chosen: [], starred: new Set(), side: 0 };
  let byPlace = new Map(); // "axis,axis,axis" to the number of the cell
  let squares = []; // rows of { node, image, id }

  root.classList.add("fluxnb", "fluxnb-explore");
  root.replaceChildren();
  const title = make("div", "fluxnb-title");
  const shared = make("div", "fluxnb-shared");
  const status = make("div", "fluxnb-status");
  const progress = make("progress");
  const counted = make("span");
  const halt = makeButton("fluxnb-stop", "stop", "stop after the cell that is being made", () => door?.stop());
  const axesBar = make("div", "fluxnb-axes");
  const pager = make("div", "fluxnb-pager");
  const frame = make("div", "fluxnb-frame");
  const table = make("div", "fluxnb-grid");
  const controls = make("div", "fluxnb-controls");
  const alive = () => root.isConnected;
  const film = transport({ shows: source.data.shows, playKey: "p", alive, changed: draw });
  const filmBar = make("div", "fluxnb-film");
  const barPlace = make("div", "fluxnb-bar-place");
  const bothBars = make("div", "fluxnb-bars");
  const why = make("div", "fluxnb-why");
  const chosenBar = make("div", "fluxnb-chosen");
  const starBar = make("div", "fluxnb-starred");
  const foot = make("div", "fluxnb-foot");
  const note = make("span", "fluxnb-note");
  const help = make("span", "fluxnb-help");
  const heard = make("div", "fluxnb-heard");
  heard.setAttribute("role", "status");
  status.append(progress, counted, halt);
  table.setAttribute("role", "grid");
  table.setAttribute("aria-multiselectable", "true");
  frame.append(table);
  barPlace.append(film.bar);
  filmBar.append(barPlace);
  if (source.data.shows.length > 1) filmBar.append(film.choice);
  bothBars.append(chosenBar, starBar, heard);
  controls.append(filmBar, why, bothBars);
  foot.append(note, help);
  root.append(title, shared, status, axesBar, pager, frame, controls, foot);

  const rowsChoice = choice("rows", (axis) => arrange(axis, axis === state.columns ? state.rows : state.columns));
  const columnsChoice = choice("columns", (axis) => arrange(axis === state.rows ? state.columns : state.rows, axis));
  const swap = makeButton("fluxnb-swap", "⇄", "swap rows and columns (t)", () => arrange(state.columns, state.rows));
  const smaller = makeButton("fluxnb-smaller", "−", "smaller cells (−)", () => resize(1 / 1.25));
  const larger = makeButton("fluxnb-larger", "+", "larger cells (+)", () => resize(1.25));
  swap.setAttribute("aria-label", "swap rows and columns");
  smaller.setAttribute("aria-label", "smaller cells");
  larger.setAttribute("aria-label", "larger cells");
  const sizes = make("span", "fluxnb-sizes");
  sizes.append("size ", smaller, larger);
  axesBar.append(rowsChoice.label, swap, columnsChoice.label, sizes);

  const viewer = makeViewer(root, film, {
    cell: (id) => source.cells[id],
    label,
    url: urlOf,
    starred: (id) => state.starred.has(id),
    star,
    choose: (id) => choose(id),
    neighbour(id, right, down) {
      const [row, column] = [state.row + down, state.column + right];
      const there = squares[row]?.[column];
      if (!there || there.id === undefined) return id;
      focus(row, column, false);
      return there.id;
    },
    // Back to the cell that was looked at last; where several were compared the browser knows where one was.
    onClose([id, ...more]) {
      barPlace.append(film.bar);
      if (more.length) return;
      const row = squares.findIndex((line) => line.some((square) => square.id === id));
      const column = row < 0 ? -1 : squares[row].findIndex((square) => square.id === id);
      if (row >= 0) focus(row, column);
    },
  });

  // ------------------------------------------------------------------------------------------------ which cell where
  function choice(name, act) {
    const label = make("label", "fluxnb-axis", name);
    const select = keysAreOurs(make("select"));
    on(select, "change", () => act(Number(select.value)));
    label.append(select);
    return { label, select };
  }

  function fill(select, options, value) {
    select.replaceChildren(
      ...options.map(([value, text, whole = text]) => {
        const option = make("option", "", text.length > 48 ? `${text.slice(0, 47)}…` : text);
        option.value = String(value);
        option.title = whole;
        return option;
      }),
    );
    select.value = String(value);
  }

  // Rows and columns become these axes; each of the rest is turned page by page.
  function arrange(rows, columns) {
    Object.assign(state, { rows, columns: columns === rows ? -1 : columns, row: 0, column: 0 });
    lay();
  }

  // The values of an axis, short as they stand there and whole as they are told on asking.
  function namesOf(axis) {
    if (axis < 0) return [["", ""]];
    const { values, whole } = source.data.axes[axis];
    return values.map((value, i) => [value, whole[i]]);
  }

  function placeOf(row, column) {
    const at = [...state.pages];
    if (state.rows >= 0) at[state.rows] = row;
    if (state.columns >= 0) at[state.columns] = column;
    return at;
  }

  // What tells this cell from those others, or from all of the grid.
  function label(id, others = []) {
    const { axes } = source.data;
    const differ = (axis) => others.length < 2 || new Set(others.map((other) => source.cells[other].at[axis])).size > 1;
    const words = several(axes).filter(differ).map((axis) => axes[axis].values[source.cells[id].at[axis]]); // prettier-ignore
    return words.join(", ") || source.cells[id].caption;
  }

  function urlOf(id) {
    const cell = source.cells[id];
    const { frame } = frameAt(cell, film.show, film.sigma);
    return frame === null ? undefined : source.url(frame);
  }

  // The grid made anew: after other axes, another page, another size of the grid.
  function lay() {
    const { axes } = source.data;
    const many = several(axes);
    const held = table.contains(document.activeElement);
    const options = many.map((axis) => [axis, axes[axis].name]);
    fill(rowsChoice.select, [[-1, "–"], ...options], state.rows);
    fill(columnsChoice.select, [[-1, "–"], ...options], state.columns);
    axesBar.classList.toggle("fluxnb-single", many.length < 2);
    pager.replaceChildren(...many.filter((axis) => axis !== state.rows && axis !== state.columns).map(pageChoice));
    const rowNames = namesOf(state.rows);
    const columnNames = namesOf(state.columns);
    const named = state.rows >= 0;
    table.replaceChildren();
    table.classList.toggle("fluxnb-named", named);
    table.style.setProperty("--fluxnb-columns", columnNames.length);
    table.setAttribute("aria-rowcount", String(rowNames.length + 1));
    table.setAttribute("aria-colcount", String(columnNames.length + named));
    if (state.columns >= 0) {
      const row = make("div", "fluxnb-row fluxnb-names");
      row.setAttribute("role", "row");
      if (named) row.append(nameOf("columnheader", "fluxnb-corner", ["", ""]));
      row.append(...columnNames.map((name) => nameOf("columnheader", "fluxnb-column-name", name)));
      table.append(row);
    }
    squares = rowNames.map((name, r) => {
      const row = make("div", "fluxnb-row");
      row.setAttribute("role", "row");
      if (named) row.append(nameOf("rowheader", "fluxnb-row-name", name));
      const line = columnNames.map((_, c) => square(r, c));
      row.append(...line.map(({ node }) => node));
      table.append(row);
      return line;
    });
    state.row = Math.min(state.row, squares.length - 1);
    state.column = Math.min(state.column, squares[0].length - 1);
    root.dataset.rows = axes[state.rows]?.name ?? "";
    root.dataset.columns = axes[state.columns]?.name ?? "";
    scale();
    draw();
    if (held) focus(state.row, state.column);
  }

  function nameOf(role, className, [text, whole]) {
    const node = make("div", className);
    const words = make("span", "", text);
    node.setAttribute("role", role);
    node.title = whole;
    node.append(words);
    return node;
  }

  function pageChoice(axis) {
    const { name, values, whole } = source.data.axes[axis];
    const label = make("label", "fluxnb-page", `${name} `);
    const select = keysAreOurs(make("select"));
    fill(select, values.map((value, i) => [i, value, whole[i]]), state.pages[axis]); // prettier-ignore
    on(select, "change", () => turn(axis, Number(select.value) - state.pages[axis]));
    label.append(select);
    const place = make("span", "fluxnb-page-place", `${state.pages[axis] + 1} of ${values.length}`);
    const before = makeButton("", "‹", "the page before (page up)", () => turn(axis, -1));
    const after = makeButton("", "›", "the next page (page down)", () => turn(axis, 1));
    before.setAttribute("aria-label", `${name} before`);
    after.setAttribute("aria-label", `next ${name}`);
    const group = make("div", "fluxnb-page-group");
    group.append(before, label, after, place);
    return group;
  }

  function turn(axis, by) {
    if (axis === undefined) return;
    const count = source.data.axes[axis].values.length;
    const held = pager.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    state.pages[axis] = (state.pages[axis] + by + count) % count;
    lay();
    if (held) pager.querySelector(`[aria-label="${CSS.escape(held)}"]`)?.focus();
  }

  function square(row, column) {
    const node = keysAreOurs(make("div", "fluxnb-square"));
    const image = make("img");
    const badge = make("span", "fluxnb-badge");
    const mark = makeButton("fluxnb-mark", "☆", "star (s)", () => star([line.id]));
    node.setAttribute("role", "gridcell");
    node.tabIndex = -1;
    image.draggable = false;
    image.decoding = "sync"; // all cells change together
    mark.tabIndex = -1; // reached by its key; tab goes through the grid as one thing
    badge.setAttribute("aria-hidden", "true");
    node.append(image, badge, mark);
    const line = { node, image, badge, mark, id: undefined };
    on(node, "click", (event) => {
      if (event.target === mark) return;
      focus(row, column);
      if (line.id === undefined) return;
      if (event.shiftKey || event.ctrlKey || event.metaKey) choose(line.id);
      else viewer.open([line.id]);
    });
    on(node, "focus", () => focus(row, column, false));
    return line;
  }

  // --------------------------------------------------------------------------------------------------------- drawing
  function draw() {
    const starting = !source.cells.length;
    squares.forEach((line, row) =>
      line.forEach((square, column) => {
        const id = byPlace.get(placeOf(row, column).join());
        const url = id === undefined ? undefined : urlOf(id);
        square.id = id;
        square.node.classList.toggle("fluxnb-empty", url === undefined);
        square.image.hidden = url === undefined;
        if (url !== undefined && square.image.getAttribute("src") !== url) square.image.src = url;
        if (id !== undefined && square.named !== id) {
          square.named = id;
          square.image.alt = label(id);
          square.node.title = source.cells[id].caption;
          square.node.style.aspectRatio = `${source.cells[id].width} / ${source.cells[id].height}`;
        }
      }),
    );
    if (!starting) root.dataset.sigma = String(film.sigma);
    root.dataset.show = film.show ?? "";
    mark();
    viewer?.draw();
  }

  function mark() {
    squares.forEach((line, row) =>
      line.forEach(({ node, badge, mark, id }, column) => {
        const place = state.chosen.indexOf(id);
        const starred = state.starred.has(id);
        node.setAttribute("aria-selected", String(place >= 0));
        node.classList.toggle("fluxnb-is-starred", starred);
        node.tabIndex = row === state.row && column === state.column ? 0 : -1;
        badge.textContent = place >= 0 ? String(place + 1) : "";
        mark.textContent = starred ? "★" : "☆";
        mark.hidden = id === undefined;
        mark.setAttribute("aria-label", starred ? "starred" : "star");
        const words = id === undefined ? "not made" : `${label(id)}${starred ? ", starred" : ""}`;
        node.setAttribute("aria-label", words);
      }),
    );
    bars();
  }

  function bars() {
    const { chosen, starred } = state;
    chosenBar.hidden = !chosen.length;
    starBar.hidden = !starred.size;
    if (chosen.length) {
      const words = chosen.length === 1 ? "1 chosen, choose another to compare" : `${chosen.length} chosen`;
      chosenBar.replaceChildren(make("span", "", words));
      if (chosen.length > 1) chosenBar.append(makeButton("fluxnb-main", "compare", "compare (enter)", compare));
      chosenBar.append(makeButton("", "star", "star all of them", () => star(chosen)));
      chosenBar.append(makeButton("", "clear", "choose none (esc)", () => clear()));
    }
    if (starred.size) {
      starBar.replaceChildren(make("span", "", `★ ${starred.size} starred`));
      if (door) {
        const where = `write them as PNG with their recipes, into ${source.data.folder}`;
        starBar.append(makeButton("fluxnb-save", "save to folder", where, save));
      }
      starBar.append(makeButton("fluxnb-download", "download", "as PNG with their recipes; several in a ZIP", fetchStarred));
      starBar.append(makeButton("", "unstar all", "", () => star([...starred])));
    }
  }

  function heads() {
    const { data, cells } = source;
    const known = cells.filter(Boolean);
    const all = known.map((cell) => new Map(cell.facts));
    const same = (name) => (new Set(all.map((facts) => facts.get(name))).size === 1 ? all[0].get(name) : undefined);
    title.textContent = same("prompt") ?? data.title;
    const names = all.length ? [...all[0].keys()] : [];
    const common = names.filter((name) => name !== "prompt" && same(name) !== undefined);
    shared.replaceChildren(
      ...common.map((name) => {
        const fact = make("span", "fluxnb-fact");
        fact.append(make("i", "", name), ` ${same(name)}`);
        return fact;
      }),
    );
    const missing = data.total - known.length;
    const words = { running: "", stopped: ", stopped", failed: ", broken off" };
    status.hidden = data.state !== "running" && missing <= 0;
    counted.textContent = `${known.length} of ${data.total} cells${words[data.state] ?? ", unfinished"}`;
    progress.max = data.total;
    progress.value = known.length;
    progress.setAttribute("aria-label", "cells made");
    progress.hidden = halt.hidden = data.state !== "running";
    root.dataset.state = data.state;
    root.dataset.cells = String(known.length);
    if (data.said) say(data.said);
    note.textContent = data.note;
    const scrubs = film.stops.length > 1;
    filmBar.hidden = !scrubs;
    why.textContent = scrubs || !known.length ? "" : data.why;
    help.textContent = [
      "← → ↑ ↓ move", "enter look closer, or compare the chosen", "space choose", "s star", scrubs && ", . noise level, p play",
      several(data.axes).length > 2 && "page up, page down turn", "+ − size", several(data.axes).length > 1 && "t swap",
    ].filter(Boolean).join(" · "); // prettier-ignore
  }

  function say(text) {
    heard.textContent = text;
  }

  // ---------------------------------------------------------------------------------------------------------- acting
  function focus(row, column, take = true) {
    state.row = Math.max(0, Math.min(squares.length - 1, row));
    state.column = Math.max(0, Math.min(squares[0].length - 1, column));
    squares.forEach((line, r) =>
      line.forEach(({ node }, c) => (node.tabIndex = r === state.row && c === state.column ? 0 : -1)),
    );
    if (take) squares[state.row][state.column].node.focus();
  }
  function choose(id) {
    if (id === undefined) return;
    const at = state.chosen.indexOf(id);
    if (at >= 0) state.chosen.splice(at, 1);
    else state.chosen.push(id);
    mark();
    say(at >= 0 ? `${state.chosen.length} chosen` : `chosen: ${label(id)}, ${state.chosen.length} in all`);
  }
  function clear() {
    state.chosen = [];
    mark();
  }
  function compare() {
    viewer.open(state.chosen);
  }
  // Stars them; takes the stars away where all had one.
  function star(ids) {
    const known = ids.filter((id) => id !== undefined);
    const away = known.every((id) => state.starred.has(id));
    for (const id of known) {
      if (away) state.starred.delete(id);
      else state.starred.add(id);
    }
    mark();
    door?.stars([...state.starred].sort((a, b) => a - b));
  }
  function save() {
    say(`asked the kernel to write to ${source.data.folder} …`);
    door.save();
  }
  async function fetchStarred() {
    const ids = [...state.starred].sort((a, b) => a - b);
    const whole = (cell) => source.url(cell.final ?? frameAt(cell, film.show, 0).frame);
    say(`preparing ${ids.length} …`);
    await download(
      ids.map((id) => ({ name: source.cells[id].name, url: whole(source.cells[id]), recipe: source.cells[id].recipe })),
    );
    say(ids.length > 1 ? `downloaded starred.zip with ${ids.length} pictures` : "downloaded the starred picture");
  }
  function resize(by) {
    state.side = Math.max(SMALLEST, Math.min(LARGEST, (state.side || sideNow()) * by));
    scale();
  }
  // The cells as large as they fit, until somebody says otherwise.
  function sideNow() {
    const names = state.rows >= 0 && !root.classList.contains("fluxnb-narrow") ? 140 : 0;
    const columns = squares[0]?.length ?? 1;
    return Math.max(64, Math.min(160, Math.floor((root.clientWidth - names - 24) / columns - 6)));
  }
  function scale() {
    root.classList.toggle("fluxnb-narrow", root.clientWidth > 0 && root.clientWidth < NARROW);
    table.style.setProperty("--fluxnb-side", `${Math.round(state.side || sideNow())}px`);
  }

  const turned = (by) => {
    const pages = several(source.data.axes).filter((axis) => axis !== state.rows && axis !== state.columns);
    turn(pages[pages.length - 1], by);
  };
  const here = () => squares[state.row]?.[state.column]?.id;
  const KEYED = {
    ArrowRight: () => focus(state.row, state.column + 1),
    ArrowLeft: () => focus(state.row, state.column - 1),
    ArrowDown: () => focus(state.row + 1, state.column),
    ArrowUp: () => focus(state.row - 1, state.column),
    Home: () => focus(state.row, 0),
    End: () => focus(state.row, squares[0].length - 1),
    PageDown: () => turned(1),
    PageUp: () => turned(-1),
    Enter: () => (state.chosen.length > 1 ? compare() : here() !== undefined && viewer.open([here()])),
    " ": () => choose(here()),
    s: () => star([here()]),
    Escape: clear,
  };
  const ANYWHERE = {
    ",": () => film.move(-1),
    ".": () => film.move(1),
    p: () => film.toggle(),
    "+": () => resize(1.25),
    "=": () => resize(1.25),
    "-": () => resize(1 / 1.25),
    t: () => arrange(state.columns, state.rows),
    ...Object.fromEntries(Object.entries(KEYS).map(([letter, show]) => [letter, () => film.display(show)])),
  };
  on(root, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const act = (table.contains(event.target) && KEYED[event.key]) || ANYWHERE[event.key];
    if (!act) return;
    act();
    event.preventDefault();
    event.stopPropagation();
  });

  const watcher = new ResizeObserver(scale);
  watcher.observe(root);

  // New cells, or another state of the making.
  function refresh() {
    const { axes } = source.data;
    const shape = JSON.stringify(axes.map(({ values }) => values.length));
    byPlace = new Map(source.cells.flatMap((cell, id) => (cell ? [[cell.at.join(), id]] : [])));
    const stops = levels(source.cells.filter(Boolean));
    if (stops.join() !== film.stops.join()) film.stops = stops.length ? stops : [0];
    if (shape !== refresh.shape) {
      refresh.shape = shape;
      const many = several(axes);
      state.pages = axes.map((_, i) => state.pages[i] ?? 0);
      if (state.rows < 0 && state.columns < 0) {
        state.columns = many[many.length - 1] ?? -1;
        state.rows = many[many.length - 2] ?? -1;
      }
      lay();
    } else draw();
    heads();
  }
  refresh();

  return {
    refresh,
    say,
    film,
    stars(ids) {
      state.starred = new Set(ids);
      mark();
    },
    end() {
      film.stop();
      viewer.end();
      watcher.disconnect();
      listeners.abort();
    },
  };
}

export function mount(root, data, urls) {
  // Held so that the browser keeps them decoded: a scrub then only swaps pictures it already has.
  const held = urls.map((url) => Object.assign(new Image(), { src: url }));
  return explorer(root, { data, cells: data.cells, url: (number) => held[number]?.src }, null);
}

// anywidget's door. What arrives while the grid is made is put where the whole would be, so that a view that is opened
// later finds it; a message that came before this script is made good by the next whole that the kernel sends.
function initialize({ model }) {
  model.on("msg:custom", ({ kind, number, cell, first }, buffers) => {
    if (kind !== "cell") return;
    model.get("cells")[number] = cell;
    buffers.forEach((buffer, i) => (model.get("frames")[first + i] = buffer));
  });
}

function render({ model, el }) {
  const root = make("div");
  el.append(root);
  const urls = [];
  const url = (number) => {
    const frame = model.get("frames")[number];
    if (urls[number] === undefined && frame !== undefined) urls[number] = address(frame);
    return urls[number];
  };
  const source = {
    get data() {
      return model.get("data");
    },
    get cells() {
      return model.get("cells");
    },
    url,
  };
  let waits = null;
  const view = explorer(root, source, {
    stars(ids) {
      model.set("stars", ids);
      model.save_changes();
    },
    stop: () => model.send({ kind: "stop" }),
    save() {
      model.send({ kind: "save" });
      waits = setTimeout(() => view.say("the kernel has not answered: it is busy or gone. Download needs no kernel."), 4000);
    },
  });
  const hear = ({ kind, text }) => {
    if (kind === "cell") return view.refresh();
    clearTimeout(waits);
    view.say(text);
  };
  const stars = () => view.stars(model.get("stars"));
  const move = () => view.film.nearest(model.get("sigma"));
  const doors = { "msg:custom": hear, "change:data": view.refresh, "change:cells": view.refresh,
    "change:frames": view.refresh, "change:stars": stars, "change:sigma": move }; // prettier-ignore
  for (const [name, act] of Object.entries(doors)) model.on(name, act);
  stars();
  move();
  return () => {
    for (const [name, act] of Object.entries(doors)) model.off(name, act);
    clearTimeout(waits);
    view.end();
    urls.forEach((each) => URL.revokeObjectURL(each));
  };
}

export default { initialize, render };
