// @ts-check
// A grid of cells: selectable rows, columns and pages, all cells at one noise level, choices, stars, and the viewer.

import { makeAxes, severalValues } from "./axes.js";
import { commonFacts, factNodes } from "./compare.js";
import { make, makeButton, makeTitle } from "./dom.js";
import { download } from "./download.js";
import { makeKeyList, pressKey } from "./keys.js";
import { frameAt, levels } from "./levels.js";
import { makePlayback } from "./playback.js";
import { makeTable } from "./table.js";
import { followGround } from "./theme.js";
import { makeViewer } from "./viewer.js";

const MIN_SIDE = 48; // pixels, of a cell
const MAX_SIDE = 512;
const NARROW = 560; // pixels of width below which row names are placed above their row

/**
 * @param {HTMLElement} root
 * @param {import("./source.js").Source} source read again by every `refresh`
 * @param {any} kernel `stop`, `save`, `stars(ids)`, `choices(ids)`, `sigma(value)`; null in a page. A lab has `hasForm`
 *   and `useRecipe(cell)`
 */
export function makeGrid(root, source, kernel) {
  const state = { /** @type {number[]} */ selected: [], starred: new Set(), side: 0, shape: "", run: undefined };
  let byPosition = new Map(); // position on the axes, joined by commas, to the number of the cell

  root.classList.add("fluxnb", "fluxnb-explore");
  const title = makeTitle(root, "");
  const shared = make("div", "fluxnb-shared");
  const status = make("div", "fluxnb-status");
  const progress = make("progress");
  const countText = make("span");
  const stopButton = makeButton("fluxnb-stop", "stop", "stop after the current cell", () => kernel?.stop());
  const isConnected = () => root.isConnected;
  const moved = (sigma) => kernel?.sigma(sigma);
  const playback = makePlayback({ shows: source.data.shows, playKey: "p", isConnected, changed: draw, moved });
  const axes = makeAxes(buildTable);
  const table = makeTable({
    open: (id) => viewer.open([id]),
    select,
    star: (id) => star([id]),
    url: source.url,
    label: (id) => label(id),
    cell: (id) => source.cells[id],
    preview: (row, column) => source.previews.get(axes.positionOf(row, column).join()),
  });
  const smaller = makeButton("fluxnb-smaller", "−", "smaller cells (−)", () => resize(1 / 1.25));
  const larger = makeButton("fluxnb-larger", "+", "larger cells (+)", () => resize(1.25));
  const sizes = make("span", "fluxnb-sizes", "size ");
  const controls = make("div", "fluxnb-controls");
  const playbackRow = make("div", "fluxnb-playback");
  const barSlot = make("div", "fluxnb-bar-slot");
  const scrubNote = make("div", "fluxnb-scrub-note");
  const actions = make("div", "fluxnb-actions");
  const selectionBar = make("div", "fluxnb-selected");
  const starBar = make("div", "fluxnb-starred");
  const message = make("div", "fluxnb-message");
  const foot = make("div", "fluxnb-foot");
  const note = make("span", "fluxnb-note");
  const keyList = makeKeyList(() => [...cellKeys(), ...gridKeys()]);
  message.setAttribute("role", "status");
  progress.setAttribute("aria-label", "finished cells");
  controls.setAttribute("role", "group");
  controls.setAttribute("aria-label", "controls");
  smaller.setAttribute("aria-label", "smaller cells");
  larger.setAttribute("aria-label", "larger cells");
  status.append(progress, countText, stopButton);
  sizes.append(smaller, larger);
  axes.bar.append(sizes);
  barSlot.append(playback.bar);
  playbackRow.append(barSlot);
  if (source.data.shows.length > 1) playbackRow.append(playback.choice);
  actions.append(selectionBar, starBar, message);
  controls.append(playbackRow, scrubNote, actions);
  foot.append(note, keyList.node);
  root.replaceChildren(title, shared, status, axes.bar, axes.pager, table.node, controls, foot);

  const viewer = makeViewer(root, playback, {
    cell: (id) => source.cells[id],
    label,
    url: (id) => source.url(frameOf(id)),
    picture,
    // Whether the displayed image does not have the original pixels of the cell.
    preview: (id) => frameOf(id) !== source.cells[id].final || source.cells[id].preview > 0,
    // What is copied of a cell: its picture, or the displayed frame of a step.
    displayedPicture(id) {
      const frame = frameOf(id);
      if (frame === source.cells[id].final) return picture(id);
      return { name: "step", recipe: "", preview: 0, original: null, url: source.url(frame) };
    },
    original: kernel?.original && ((id) => (frameOf(id) === source.cells[id].final ? kernel.original(id) : null)),
    starred: (id) => state.starred.has(id),
    star,
    select,
    selected: (id) => state.selected.includes(id),
    useRecipe: kernel?.useRecipe && ((id) => kernel.useRecipe(source.cells[id])),
    neighbor(right, down) {
      const id = table.neighbor(right, down);
      if (id !== undefined) table.moveTo(id);
      return id;
    },
    // Return to the cell that was displayed last. After a comparison the browser restores the focus.
    onClose([id, ...others]) {
      barSlot.append(playback.bar);
      if (others.length) return;
      table.moveTo(id);
      table.takeFocus();
    },
  });

  // --------------------------------------------------------------------------------------------------------- drawing
  function frameOf(id) {
    return frameAt(source.cells[id], playback.show, playback.sigma).frame;
  }

  // What a download needs of a cell.
  function picture(id) {
    const { name, recipe, final, preview } = source.cells[id];
    const original = kernel?.original ? () => kernel.original(id) : null;
    return { name, recipe, preview, original, url: source.url(final) };
  }

  // The axis values in which a cell differs from the others, or from the rest of the grid.
  function label(id, others = []) {
    const { axes } = source.data;
    const { position, caption } = source.cells[id];
    const valuesOf = (axis) => new Set(others.map((other) => source.cells[other].position[axis]));
    const differing = severalValues(axes).filter((axis) => others.length < 2 || valuesOf(axis).size > 1);
    return differing.map((axis) => axes[axis].values[position[axis]]).join(", ") || caption;
  }

  function buildTable() {
    table.build(axes.rows, axes.columns);
    [root.dataset.rows, root.dataset.columns] = axes.axisNames;
    resizeCells();
    draw();
    mark();
  }

  function draw() {
    table.fill((row, column) => byPosition.get(axes.positionOf(row, column).join()), frameOf);
    root.dataset.sigma = String(playback.sigma);
    root.dataset.show = playback.show ?? "";
    viewer.draw();
  }

  // Show the selection, the stars and the buttons that act on them.
  function mark() {
    const { selected, starred } = state;
    table.mark(selected, starred);
    selectionBar.hidden = !selected.length;
    starBar.hidden = !starred.size;
    const comparable = selected.length > 1;
    const text = comparable ? `${selected.length} chosen` : "1 chosen, choose another to compare";
    const compare = makeButton("fluxnb-main", "compare", "compare (enter)", () => viewer.open(selected));
    const starAll = makeButton("", "star", "star all chosen cells", () => star(selected));
    selectionBar.replaceChildren(
      make("span", "", text),
      ...(comparable ? [compare] : []),
      starAll,
      makeButton("", "clear", "clear the choice (esc)", clearSelection),
    );
    const saveTitle = `save as PNG with recipes into ${source.data.folder}`;
    starBar.replaceChildren(
      make("span", "", `★ ${starred.size} starred`),
      ...(kernel ? [makeButton("fluxnb-save", "save to folder", saveTitle, save)] : []),
      makeButton("fluxnb-download", "download", "as PNG with recipes; several in a ZIP archive", downloadStarred),
      makeButton("", "unstar all", "", () => star([...starred])),
    );
  }

  // Update the text around the table: common facts, progress and keyboard help.
  function updateText() {
    const { data, cells } = source;
    const finished = cells.flatMap((cell, id) => (cell ? [id] : []));
    const facts = new Map(finished.length ? commonFacts(finished.map((id) => cells[id])) : []);
    title.textContent = kernel?.hasForm && !finished.length ? "" : (facts.get("prompt") ?? data.title);
    title.hidden = !title.textContent;
    facts.delete("prompt");
    shared.replaceChildren(...factNodes(facts));
    const suffixes = { running: "", stopped: ", stopped", failed: ", failed" };
    const running = data.state === "running";
    status.hidden = kernel?.hasForm || (!running && finished.length >= data.total);
    countText.textContent = `${finished.length} of ${data.total} cells${suffixes[data.state] ?? ", unfinished"}`;
    Object.assign(progress, { max: data.total, value: finished.length, hidden: !running });
    stopButton.hidden = !running;
    if (data.message) showMessage(data.message);
    note.textContent = data.note;
    const canScrub = playback.levels.length > 1;
    playbackRow.hidden = !canScrub;
    scrubNote.textContent = canScrub || !finished.length || !kernel ? "" : data.scrub_note;
    root.dataset.state = data.state;
    root.dataset.cells = String(finished.length);
  }

  function showMessage(text) {
    message.textContent = text;
  }

  // ---------------------------------------------------------------------------------------------------------- actions
  // Add a cell to the selection or remove it.
  function select(id) {
    if (id === undefined) return;
    const index = state.selected.indexOf(id);
    if (index >= 0) state.selected.splice(index, 1);
    else state.selected.push(id);
    mark();
    kernel?.choices([...state.selected]);
    showMessage(index >= 0 ? `${state.selected.length} chosen` : `chosen: ${label(id)}`);
  }
  function clearSelection() {
    state.selected = [];
    mark();
    kernel?.choices([]);
  }
  // Star cells, or remove their stars if all of them have one.
  function star(ids) {
    const finished = ids.filter((id) => id !== undefined);
    const remove = finished.every((id) => state.starred.has(id));
    for (const id of finished) state.starred[remove ? "delete" : "add"](id);
    mark();
    kernel?.stars(starredInOrder());
  }
  function starredInOrder() {
    return [...state.starred].sort((a, b) => a - b);
  }
  function save() {
    kernel.save();
  }
  async function downloadStarred() {
    const cells = starredInOrder().map((id) => source.cells[id]);
    showMessage(`preparing ${cells.length} …`);
    const names = await download(starredInOrder().map(picture));
    const previews = names.filter((name) => /-preview-\d+px\.png$/.test(name)).length;
    const kind = previews ? ` (${previews === names.length ? "" : `${previews} of them `}previews)` : "";
    const text = `downloaded starred.zip with ${cells.length} images`;
    showMessage((cells.length > 1 ? text : "downloaded the starred image") + kind);
  }
  // The default side of a cell: as large as fits, within limits.
  function defaultSide() {
    const namesWidth = axes.rows && !root.classList.contains("fluxnb-narrow") ? 140 : 0;
    return Math.max(64, Math.min(160, Math.floor((root.clientWidth - namesWidth - 24) / table.columns - 6)));
  }
  function resize(factor) {
    state.side = Math.max(MIN_SIDE, Math.min(MAX_SIDE, (state.side || defaultSide()) * factor));
    resizeCells();
  }
  function resizeCells() {
    root.classList.toggle("fluxnb-narrow", root.clientWidth > 0 && root.clientWidth < NARROW);
    table.side = state.side || defaultSide();
  }

  // ------------------------------------------------------------------------------------------------------------- keys
  function openFocused() {
    if (state.selected.length > 1) viewer.open(state.selected);
    else if (table.focusedCell() !== undefined) viewer.open([table.focusedCell()]);
  }
  /**
   * The keys of the focused cell.
   * @returns {import("./keys.js").Keys[]}
   */
  function cellKeys() {
    return [
      {
        keys: "← → ↑ ↓",
        text: "move",
        on: {
          ArrowRight: () => table.move(1, 0),
          ArrowLeft: () => table.move(-1, 0),
          ArrowDown: () => table.move(0, 1),
          ArrowUp: () => table.move(0, -1),
        },
      },
      { keys: "home end", text: "start and end of the row", on: { Home: table.toStart, End: table.toEnd } },
      { keys: "enter", text: "enlarge the cell, or compare the chosen ones", on: { Enter: openFocused } },
      { keys: "space", text: "choose for a comparison", on: { " ": () => select(table.focusedCell()) } },
      { keys: "s", text: "star", on: { s: () => star([table.focusedCell()]) } },
      ...(axes.hasPages ? [pageKeys] : []),
      { keys: "esc", text: "clear the choice", on: { Escape: clearSelection } },
    ];
  }
  const pageKeys = {
    keys: "page up, page down",
    text: "other pages",
    on: { PageUp: () => axes.turn(-1), PageDown: () => axes.turn(1) },
  };
  /**
   * The keys that act on the grid wherever the focus is in it.
   * @returns {import("./keys.js").Keys[]}
   */
  function gridKeys() {
    const larger = () => resize(1.25);
    return [
      ...playback.keys(),
      { keys: "+ −", text: "size of the cells", on: { "+": larger, "=": larger, "-": () => resize(1 / 1.25) } },
      ...(severalValues(source.data.axes).length > 1
        ? [{ keys: "t", text: "swap rows and columns", on: { t: axes.swap } }]
        : []),
      keyList.entry,
    ];
  }
  root.addEventListener("keydown", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (target.tagName !== "SELECT") pressKey([...(table.contains(target) ? cellKeys() : []), ...gridKeys()], event);
  });
  const observer = new ResizeObserver(resizeCells);
  observer.observe(root);
  const endTheme = followGround(root);

  // Update everything after new cells or a change of state.
  function refresh() {
    byPosition = new Map(source.cells.flatMap((cell, id) => (cell ? [[cell.position.join(), id]] : [])));
    const { data } = source;
    if (data.run !== state.run) {
      // Another run: nothing of the displayed cells is left.
      Object.assign(state, { run: data.run, selected: [], starred: new Set() });
      viewer.dismiss();
      showMessage("");
    }
    const shape = JSON.stringify([data.axes, data.run]);
    const found = levels(source.cells.filter(Boolean));
    if (shape !== state.shape) {
      state.shape = shape;
      axes.set(data.axes);
    }
    if (found.join() !== playback.levels.join()) playback.levels = found.length ? found : [0];
    draw();
    mark();
    updateText();
  }
  refresh();

  return {
    refresh,
    draw,
    showMessage,
    goToSigma: playback.goToSigma,
    stars(ids) {
      state.starred = new Set(ids);
      mark();
    },
    choices(ids) {
      state.selected = ids.filter((id) => source.cells[id]);
      mark();
    },
    close() {
      playback.stop();
      viewer.close();
      table.close();
      observer.disconnect();
      endTheme();
    },
  };
}
