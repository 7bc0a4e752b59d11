// @ts-check
// The table of cells: names along two sides, a single tab stop, arrow keys inside.

import { make, makeButton, suppressShortcuts } from "./dom.js";

const GAP = 6; // pixels between cells, as in explore.css

/** How many cells of a side fit beside each other. */
export function cellsPerLine(width, side) {
  return Math.max(1, Math.floor((width + GAP) / (side + GAP)));
}

// Actions of a click: open(id), select(id), star(id). Lookups: url(frame), label(id), cell(id), preview(row, column).
export function makeTable({ open, select, star, url, label, cell, preview }) {
  const state = { row: 0, column: 0, side: 0, wraps: false };
  const node = make("div", "fluxnb-frame");
  const table = make("div", "fluxnb-grid");
  table.setAttribute("aria-label", "pictures");
  let tiles = []; // rows of { node, image, badge, mark, id, frame, row, column, away }
  let latest = null; // the arguments of the latest `fill`
  // Tiles that are scrolled far out of the frame take their current image when they come near.
  const observer = new IntersectionObserver(
    (entries) => {
      const all = new Map(tiles.flat().map((tile) => [tile.node, tile]));
      for (const { target, isIntersecting } of entries) {
        const tile = all.get(target);
        if (!tile) continue;
        tile.away = !isIntersecting;
        if (isIntersecting && latest) fillTile(tile, ...latest);
      }
    },
    { root: node, rootMargin: "25%" },
  );
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
    const tile = {
      row,
      column,
      node: suppressShortcuts(make("div", "fluxnb-tile")),
      image: make("img"),
      id: undefined,
    };
    tile.step = make("span", "fluxnb-step");
    tile.badge = makeButton("fluxnb-badge", "", "choose for a comparison (space)", () => select(tile.id));
    tile.badge.tabIndex = -1;
    tile.mark = makeButton("fluxnb-star", "☆", "star (s)", () => star(tile.id));
    tile.mark.tabIndex = -1; // the s key reaches it; the table is a single tab stop
    tile.image.draggable = false;
    tile.image.decoding = "sync"; // all cells change at the same time
    tile.node.setAttribute("role", "gridcell");
    tile.node.append(tile.image, tile.badge, tile.mark, tile.step);
    tile.node.addEventListener("click", (event) => {
      if (event.target === tile.mark || event.target === tile.badge) return;
      focus(row, column);
      if (tile.id === undefined) return;
      if (event.shiftKey || event.ctrlKey || event.metaKey) select(tile.id);
      else open(tile.id);
    });
    tile.node.addEventListener("focus", () => focus(row, column, false));
    return tile;
  }

  // Rebuild the table. Rows and columns are names, or null for a single one without a name. A single row wraps, and each
  // of its cells has its own name.
  function build(rows, columns) {
    const focused = table.contains(document.activeElement);
    const columnNames = columns ?? [null];
    state.wraps = rows === null && columns !== null;
    table.classList.toggle("fluxnb-wraps", state.wraps);
    table.classList.toggle("fluxnb-has-row-names", rows !== null);
    table.style.setProperty("--fluxnb-columns", columnNames.length);
    tiles = (rows ?? [null]).map((_, row) => columnNames.map((_, column) => makeTile(row, column)));
    const rowNodes = tiles.map((cells, row) => {
      const nodes = cells.map((tile, column) => {
        if (!state.wraps) return tile.node;
        const item = make("div", "fluxnb-item");
        const name = make("div", "fluxnb-column-name", columnNames[column][0]);
        item.setAttribute("role", "presentation");
        name.setAttribute("aria-hidden", "true"); // it is part of the name of the cell
        name.title = columnNames[column][1];
        item.append(name, tile.node);
        return item;
      });
      return rows ? makeRow(makeHeader("rowheader", "fluxnb-row-name", rows[row]), ...nodes) : makeRow(...nodes);
    });
    if (columns && !state.wraps) {
      const headers = columns.map((each) => makeHeader("columnheader", "fluxnb-column-name", each));
      if (rows) headers.unshift(makeHeader("columnheader", "fluxnb-corner", ["", ""]));
      rowNodes.unshift(makeRow(...headers));
    }
    table.replaceChildren(...rowNodes);
    observer.disconnect();
    each((tile) => observer.observe(tile.node));
    focus(state.row, state.column, focused);
  }

  // Show the current frames. cellAt(row, column) is the number of a cell, undefined if it is not finished; frame(id) is
  // the number of its current frame. Called up to sixty times a second, so only what changed is touched.
  function fill(cellAt, frame) {
    latest = [cellAt, frame];
    each((tile) => fillTile(tile, cellAt, frame));
  }
  function fillTile(tile, cellAt, frame) {
    const id = cellAt(tile.row, tile.column);
    if (tile.away && tile.id === id && tile.frame !== undefined) return;
    const number = id === undefined ? undefined : frame(id);
    if (id !== undefined && tile.id !== id) describe(tile, id);
    if (id === undefined) fillPreview(tile, preview(tile.row, tile.column));
    else if (number !== tile.frame) {
      const source = url(number);
      if (source === undefined) return;
      tile.frame = number;
      tile.image.src = source;
      tile.step.textContent = "";
    }
    const isEmpty = tile.frame === undefined;
    tile.node.classList.toggle("fluxnb-empty", isEmpty);
    tile.image.hidden = isEmpty;
    tile.mark.hidden = tile.badge.hidden = id === undefined;
  }
  // Show the preview of an unfinished cell.
  function fillPreview(tile, latest) {
    if (!latest || tile.frame === latest.url) return;
    tile.frame = tile.image.src = latest.url;
    tile.image.alt = `preview after step ${latest.step} of ${latest.steps}`;
    tile.step.textContent = `${latest.step} of ${latest.steps}`;
    tile.node.style.aspectRatio = `${latest.width} / ${latest.height}`;
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
      tile.badge.setAttribute("aria-label", order >= 0 ? `chosen, number ${order + 1}` : "choose for a comparison");
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
    move(right, down) {
      if (!state.wraps) return focus(state.row + down, state.column + right);
      const column = state.column + right + down * cellsPerLine(node.clientWidth, state.side);
      if (column >= 0 && column < tiles[0].length) focus(0, column);
    },
    toStart: () => focus(state.row, 0),
    toEnd: () => focus(state.row, tiles[0].length - 1),
    focusedCell: () => tiles[state.row][state.column].id,
    contains: (other) => table.contains(other),
    neighbor(right, down) {
      if (!state.wraps) return tiles[state.row + down]?.[state.column + right]?.id;
      return tiles[0][state.column + right + down * cellsPerLine(node.clientWidth, state.side)]?.id;
    },
    moveTo(id) {
      each((tile, row, column) => tile.id === id && focus(row, column, false));
    },
    takeFocus: () => focus(state.row, state.column),
    close: () => observer.disconnect(),
    // The number of cells that should fit beside each other.
    get columns() {
      return Math.min(tiles[0]?.length ?? 1, state.wraps ? 4 : Number.POSITIVE_INFINITY);
    },
    set side(pixels) {
      state.side = Math.round(pixels);
      table.style.setProperty("--fluxnb-side", `${Math.round(pixels)}px`);
    },
  };
}
