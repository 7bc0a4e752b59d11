// The explorer of a grid: rows, columns and pages of one's choice, every cell at one noise level, stars, and the viewer.
//
// In a notebook anywidget calls `initialize` once and `render` for each view; cells arrive as messages while they are
// made. In a page that stands alone `mount` is called with data: addresses. Text only ever becomes textContent or an
// attribute, never markup.

const SMALLEST = 48; // pixels, the side of a cell
const LARGEST = 512;
const NARROW = 560; // pixels of width below which the name of a row stands above it
const PATIENCE = 4000; // milliseconds that a kernel may take to answer

// source: { data, cells, url(number) }, read again whenever `refresh` is called; door: to the kernel, null without one.
function explorer(root, source, door) {
  const state = { chosen: [], starred: new Set(), side: 0, shape: "" };
  let byPlace = new Map(); // "axis,axis,axis" to the number of the cell

  root.classList.add("fluxnb", "fluxnb-explore");
  const title = make("div", "fluxnb-title");
  const shared = make("div", "fluxnb-shared");
  const status = make("div", "fluxnb-status");
  const progress = make("progress");
  const counted = make("span");
  const halt = makeButton("fluxnb-stop", "stop", "stop after the cell that is being made", () => door?.stop());
  const film = transport({ shows: source.data.shows, playKey: "p", alive: () => root.isConnected, changed: draw });
  const axes = makeAxes(lay);
  const table = makeTable({
    open: (id) => viewer.open([id]),
    choose,
    star: (id) => star([id]),
    url: source.url,
    label: (id) => label(id),
    cell: (id) => source.cells[id],
  });
  const smaller = makeButton("fluxnb-smaller", "−", "smaller cells (−)", () => resize(1 / 1.25));
  const larger = makeButton("fluxnb-larger", "+", "larger cells (+)", () => resize(1.25));
  const sizes = make("span", "fluxnb-sizes", "size ");
  const controls = make("div", "fluxnb-controls");
  const filmBar = make("div", "fluxnb-film");
  const barPlace = make("div", "fluxnb-bar-place");
  const why = make("div", "fluxnb-why");
  const bars = make("div", "fluxnb-bars");
  const chosenBar = make("div", "fluxnb-chosen");
  const starBar = make("div", "fluxnb-starred");
  const heard = make("div", "fluxnb-heard");
  const foot = make("div", "fluxnb-foot");
  const note = make("span", "fluxnb-note");
  const help = make("span", "fluxnb-help");
  heard.setAttribute("role", "status");
  progress.setAttribute("aria-label", "cells made");
  smaller.setAttribute("aria-label", "smaller cells");
  larger.setAttribute("aria-label", "larger cells");
  status.append(progress, counted, halt);
  sizes.append(smaller, larger);
  axes.bar.append(sizes);
  barPlace.append(film.bar);
  filmBar.append(barPlace);
  if (source.data.shows.length > 1) filmBar.append(film.choice);
  bars.append(chosenBar, starBar, heard);
  controls.append(filmBar, why, bars);
  foot.append(note, help);
  root.replaceChildren(title, shared, status, axes.bar, axes.pager, table.node, controls, foot);

  const viewer = makeViewer(root, film, {
    cell: (id) => source.cells[id],
    label,
    url: (id) => source.url(frameOf(id)),
    starred: (id) => state.starred.has(id),
    star,
    choose,
    neighbour(right, down) {
      const id = table.neighbour(right, down);
      if (id !== undefined) table.at(id);
      return id;
    },
    // Back to the cell that was looked at last; where several were compared the browser knows where one was.
    onClose([id, ...more]) {
      barPlace.append(film.bar);
      if (more.length) return;
      table.at(id);
      table.takeFocus();
    },
  });

  // --------------------------------------------------------------------------------------------------------- drawing
  function frameOf(id) {
    return frameAt(source.cells[id], film.show, film.sigma).frame;
  }

  // What tells this cell from those others, or from all of the grid.
  function label(id, others = []) {
    const { axes } = source.data;
    const differs = (axis) => others.length < 2 || new Set(others.map((other) => source.cells[other].at[axis])).size > 1;
    const telling = several(axes).filter(differs);
    return telling.map((axis) => axes[axis].values[source.cells[id].at[axis]]).join(", ") || source.cells[id].caption;
  }

  function lay() {
    table.lay(axes.rows, axes.columns);
    [root.dataset.rows, root.dataset.columns] = axes.called;
    scale();
    draw();
    mark();
  }

  function draw() {
    table.fill((row, column) => byPlace.get(axes.at(row, column).join()), frameOf);
    root.dataset.sigma = String(film.sigma);
    root.dataset.show = film.show ?? "";
    viewer.draw();
  }

  function mark() {
    const { chosen, starred } = state;
    table.mark(chosen, starred);
    chosenBar.hidden = !chosen.length;
    starBar.hidden = !starred.size;
    const many = chosen.length > 1;
    const words = many ? `${chosen.length} chosen` : "1 chosen, choose another to compare";
    const compare = makeButton("fluxnb-main", "compare", "compare (enter)", () => viewer.open(chosen));
    const starAll = makeButton("", "star", "star all of them", () => star(chosen));
    chosenBar.replaceChildren(make("span", "", words), ...(many ? [compare] : []), starAll,
      makeButton("", "clear", "choose none (esc)", clear)); // prettier-ignore
    const where = `write them as PNG with their recipes, into ${source.data.folder}`;
    starBar.replaceChildren(make("span", "", `★ ${starred.size} starred`),
      ...(door ? [makeButton("fluxnb-save", "save to folder", where, save)] : []),
      makeButton("fluxnb-download", "download", "as PNG with their recipes; several in a ZIP", fetchStarred),
      makeButton("", "unstar all", "", () => star([...starred]))); // prettier-ignore
  }

  // The words around the grid: what all cells share, how far the making is, what can be pressed.
  function tell() {
    const { data, cells } = source;
    const known = cells.flatMap((cell, id) => (cell ? [id] : []));
    const facts = new Map(known.length ? shares(known.map((id) => cells[id])) : []);
    title.textContent = facts.get("prompt") ?? data.title;
    facts.delete("prompt");
    shared.replaceChildren(...factLine(facts));
    const words = { running: "", stopped: ", stopped", failed: ", broken off" };
    const running = data.state === "running";
    status.hidden = !running && known.length >= data.total;
    counted.textContent = `${known.length} of ${data.total} cells${words[data.state] ?? ", unfinished"}`;
    Object.assign(progress, { max: data.total, value: known.length, hidden: !running });
    halt.hidden = !running;
    if (data.said) say(data.said);
    note.textContent = data.note;
    const scrubs = film.stops.length > 1;
    filmBar.hidden = !scrubs;
    why.textContent = scrubs || !known.length ? "" : data.why;
    const many = several(data.axes).length;
    const keys = ["← → ↑ ↓ move", "enter look closer, or compare the chosen", "space choose", "s star",
      scrubs && ", . noise level, p play", many > 2 && "page up, page down turn", "+ − size", many > 1 && "t swap"]; // prettier-ignore
    help.textContent = keys.filter(Boolean).join(" · ");
    root.dataset.state = data.state;
    root.dataset.cells = String(known.length);
  }

  function say(text) {
    heard.textContent = text;
  }

  // ---------------------------------------------------------------------------------------------------------- acting
  function choose(id) {
    if (id === undefined) return;
    const at = state.chosen.indexOf(id);
    if (at >= 0) state.chosen.splice(at, 1);
    else state.chosen.push(id);
    mark();
    say(at >= 0 ? `${state.chosen.length} chosen` : `chosen: ${label(id)}`);
  }
  function clear() {
    state.chosen = [];
    mark();
  }
  // Stars them; takes the stars away where all had one.
  function star(ids) {
    const known = ids.filter((id) => id !== undefined);
    const away = known.every((id) => state.starred.has(id));
    for (const id of known) state.starred[away ? "delete" : "add"](id);
    mark();
    door?.stars(starredInOrder());
  }
  function starredInOrder() {
    return [...state.starred].sort((a, b) => a - b);
  }
  function save() {
    say(`asked the kernel to write to ${source.data.folder} …`);
    door.save();
  }
  async function fetchStarred() {
    const cells = starredInOrder().map((id) => source.cells[id]);
    say(`preparing ${cells.length} …`);
    await download(cells.map(({ name, recipe, final }) => ({ name, recipe, url: source.url(final) })));
    say(cells.length > 1 ? `downloaded starred.zip with ${cells.length} pictures` : "downloaded the starred picture");
  }
  // The cells as large as they fit, until somebody says otherwise.
  function fitting() {
    const names = axes.rows && !root.classList.contains("fluxnb-narrow") ? 140 : 0;
    return Math.max(64, Math.min(160, Math.floor((root.clientWidth - names - 24) / table.columns - 6)));
  }
  function resize(by) {
    state.side = Math.max(SMALLEST, Math.min(LARGEST, (state.side || fitting()) * by));
    scale();
  }
  function scale() {
    root.classList.toggle("fluxnb-narrow", root.clientWidth > 0 && root.clientWidth < NARROW);
    table.side = state.side || fitting();
  }

  const IN_THE_TABLE = {
    ArrowRight: () => table.move(1, 0),
    ArrowLeft: () => table.move(-1, 0),
    ArrowDown: () => table.move(0, 1),
    ArrowUp: () => table.move(0, -1),
    Home: table.toStart,
    End: table.toEnd,
    PageDown: () => axes.turn(1),
    PageUp: () => axes.turn(-1),
    Enter() {
      if (state.chosen.length > 1) viewer.open(state.chosen);
      else if (table.here() !== undefined) viewer.open([table.here()]);
    },
    " ": () => choose(table.here()),
    s: () => star([table.here()]),
    Escape: clear,
  };
  const ANYWHERE = {
    ",": () => film.move(-1),
    ".": () => film.move(1),
    p: film.toggle,
    "+": () => resize(1.25),
    "=": () => resize(1.25),
    "-": () => resize(1 / 1.25),
    t: axes.swap,
    ...Object.fromEntries(Object.entries(KEYS).map(([letter, show]) => [letter, () => film.display(show)])),
  };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const act = (table.contains(event.target) && IN_THE_TABLE[event.key]) || ANYWHERE[event.key];
    if (!act) return;
    act();
    event.preventDefault();
    event.stopPropagation();
  });
  const watcher = new ResizeObserver(scale);
  watcher.observe(root);

  // New cells, or another state of the making.
  function refresh() {
    byPlace = new Map(source.cells.flatMap((cell, id) => (cell ? [[cell.at.join(), id]] : [])));
    const shape = JSON.stringify(source.data.axes);
    const stops = levels(source.cells.filter(Boolean));
    if (shape !== state.shape) {
      state.shape = shape;
      axes.set(source.data.axes);
    }
    if (stops.join() !== film.stops.join()) film.stops = stops.length ? stops : [0];
    draw();
    mark();
    tell();
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
  const source = {
    get data() {
      return model.get("data");
    },
    get cells() {
      return model.get("cells");
    },
    url(number) {
      const frame = model.get("frames")[number];
      if (urls[number] === undefined && frame !== undefined) urls[number] = address(frame);
      return urls[number];
    },
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
      const words = "the kernel has not answered: it is busy or gone. Download needs no kernel.";
      waits = setTimeout(() => view.say(words), PATIENCE);
    },
  });
  const doors = {
    "msg:custom"({ kind, text }) {
      if (kind === "cell") return view.refresh();
      clearTimeout(waits);
      view.say(text);
    },
    "change:data": view.refresh,
    "change:cells": view.refresh,
    "change:frames": view.refresh,
    "change:stars": () => view.stars(model.get("stars")),
    "change:sigma": () => view.film.nearest(model.get("sigma")),
  };
  for (const [name, act] of Object.entries(doors)) model.on(name, act);
  doors["change:stars"]();
  doors["change:sigma"]();
  return () => {
    for (const [name, act] of Object.entries(doors)) model.off(name, act);
    clearTimeout(waits);
    view.end();
    urls.forEach((each) => URL.revokeObjectURL(each));
  };
}

export default { initialize, render };
