// @ts-check
// The table of cells: names along two sides, a single tab stop, arrow keys inside.

import { make, makeButton, suppressShortcuts } from "./dom.js";

// Actions of a click: open(id), select(id), star(id). Lookups: url(frame), label(id), cell(id).
export function makeTable({ open, select, star, url, label, cell }) {
  const state = { row: 0, column: 0 };
  const node = make("div", "fluxnb-frame");
  const table = make("div", "fluxnb-grid");
  let tiles = []; // rows of { node, image, badge, mark, id, frame }
  table.setAttribute("role", "grid");
  table.setAttribute("aria-multiselectable", "true");
  node.append(table);

  function makeHeader(role, className, [text, full]) {
    const header = make("div", className);
    header.setAttribute("role", role);
    header.title = full;
    header.append(make("span", "", text));
    return header;
  }
  function makeRow(...cells) {
    const row = make("div", "fluxnb-row");
    row.setAttribute("role", "row");
    row.append(...cells);
    return row;
  }
  function makeTile(row, column) {
    const tile = { node: suppressShortcuts(make("div", "fluxnb-tile")), image: make("img"), id: undefined };
    tile.badge = make("span", "fluxnb-badge");
    tile.mark = makeButton("fluxnb-star", "☆", "star (s)", () => star(tile.id));
    tile.mark.tabIndex = -1; // the s key reaches it; the table is a single tab stop
    tile.badge.setAttribute("aria-hidden", "true");
    tile.image.draggable = false;
    tile.image.decoding = "sync"; // all cells change at the same time
    tile.node.setAttribute("role", "gridcell");
    tile.node.append(tile.image, tile.badge, tile.mark);
    tile.node.addEventListener("click", (event) => {
      if (event.target === tile.mark) return;
      focus(row, column);
      if (tile.id === undefined) return;
      if (event.shiftKey || event.ctrlKey || event.metaKey) select(tile.id);
      else open(tile.id);
    });
    tile.node.addEventListener("focus", () => focus(row, column, false));
    return tile;
  }

  // Rebuild the table. Rows and columns are names, or null for a single one without a name.
  function build(rows, columns) {
    const focused = table.contains(document.activeElement);
    const columnNames = columns ?? [null];
    table.classList.toggle("fluxnb-has-row-names", rows !== null);
    table.style.setProperty("--fluxnb-columns", columnNames.length);
    tiles = (rows ?? [null]).map((_, row) => columnNames.map((_, column) => makeTile(row, column)));
    const rowNodes = tiles.map((cells, row) => {
      const nodes = cells.map((tile) => tile.node);
      return rows ? makeRow(makeHeader("rowheader", "fluxnb-row-name", rows[row]), ...nodes) : makeRow(...nodes);
    });
    if (columns) {
      const headers = columns.map((each) => makeHeader("columnheader", "fluxnb-column-name", each));
      if (rows) headers.unshift(makeHeader("columnheader", "fluxnb-corner", ["", ""]));
      rowNodes.unshift(makeRow(...headers));
    }
    table.replaceChildren(...rowNodes);
    focus(state.row, state.column, focused);
  }

  // Show the current frames. cellAt(row, column) is the number of a cell, undefined if it is not finished; frame(id) is
  // the number of its current frame. Called up to sixty times a second, so only what changed is touched.
  function fill(cellAt, frame) {
    each((tile, row, column) => {
      const id = cellAt(row, column);
      const number = id === undefined ? undefined : frame(id);
      const source = number === undefined || number === tile.frame ? undefined : url(number);
      if (id !== undefined && tile.id !== id) describe(tile, id);
      if (source !== undefined) {
        tile.frame = number;
        tile.image.src = source;
      }
      tile.node.classList.toggle("fluxnb-empty", tile.frame === undefined);
      tile.image.hidden = tile.mark.hidden = tile.frame === undefined;
    });
  }
  function describe(tile, id) {
    const { caption, width, height } = cell(id);
    Object.assign(tile, { id, name: label(id) });
    tile.image.alt = tile.name;
    tile.node.title = caption;
    tile.node.style.aspectRatio = `${width} / ${height}`;
  }

  // Show which cells are selected and starred.
  function mark(selected, starred) {
    each((tile) => {
      const order = selected.indexOf(tile.id);
      const isStarred = starred.has(tile.id);
      tile.node.setAttribute("aria-selected", String(order >= 0));
      tile.node.classList.toggle("fluxnb-is-starred", isStarred);
      tile.badge.textContent = order >= 0 ? String(order + 1) : "";
      tile.mark.textContent = isStarred ? "★" : "☆";
      tile.mark.setAttribute("aria-label", isStarred ? "starred" : "star");
      const words = tile.id === undefined ? "not finished" : `${tile.name}${isStarred ? ", starred" : ""}`;
      tile.node.setAttribute("aria-label", words);
    });
  }

  function each(action) {
    tiles.forEach((cells, row) => cells.forEach((tile, column) => action(tile, row, column)));
  }
  function focus(row, column, takeFocus = true) {
    state.row = Math.max(0, Math.min(tiles.length - 1, row));
    state.column = Math.max(0, Math.min(tiles[0].length - 1, column));
    each((tile, r, c) => (tile.node.tabIndex = r === state.row && c === state.column ? 0 : -1));
    if (takeFocus) tiles[state.row][state.column].node.focus();
  }

  return {
    node,
    build,
    fill,
    mark,
    focus,
    move: (right, down) => focus(state.row + down, state.column + right),
    toStart: () => focus(state.row, 0),
    toEnd: () => focus(state.row, tiles[0].length - 1),
    focusedCell: () => tiles[state.row][state.column].id,
    contains: (other) => table.contains(other),
    neighbor: (right, down) => tiles[state.row + down]?.[state.column + right]?.id,
    moveTo(id) {
      each((tile, row, column) => tile.id === id && focus(row, column, false));
    },
    takeFocus: () => focus(state.row, state.column),
    get columns() {
      return tiles[0]?.length ?? 1;
    },
    set side(pixels) {
      table.style.setProperty("--fluxnb-side", `${Math.round(pixels)}px`);
    },
  };
}
