// The table of pictures: names along two sides, one stop of the tab key, arrows inside.

// What a click does: open(id), choose(id), star(id); what a picture is: url(frame), label(id), cell(id).
function makeTable({ open, choose, star, url, label, cell }) {
  const state = { row: 0, column: 0 };
  const node = make("div", "fluxnb-frame");
  const table = make("div", "fluxnb-grid");
  let squares = []; // rows of { node, image, badge, mark, id, frame }
  table.setAttribute("role", "grid");
  table.setAttribute("aria-multiselectable", "true");
  node.append(table);

  function name(role, className, [text, whole]) {
    const header = make("div", className);
    header.setAttribute("role", role);
    header.title = whole;
    header.append(make("span", "", text));
    return header;
  }
  function line(...cells) {
    const row = make("div", "fluxnb-row");
    row.setAttribute("role", "row");
    row.append(...cells);
    return row;
  }
  function makeSquare(row, column) {
    const square = { node: keysAreOurs(make("div", "fluxnb-square")), image: make("img"), id: undefined };
    square.badge = make("span", "fluxnb-badge");
    square.mark = makeButton("fluxnb-mark", "☆", "star (s)", () => star(square.id));
    square.mark.tabIndex = -1; // reached by its key; tab goes through the grid as one thing
    square.badge.setAttribute("aria-hidden", "true");
    square.image.draggable = false;
    square.image.decoding = "sync"; // all cells change together
    square.node.setAttribute("role", "gridcell");
    square.node.append(square.image, square.badge, square.mark);
    square.node.addEventListener("click", (event) => {
      if (event.target === square.mark) return;
      focus(row, column);
      if (square.id === undefined) return;
      if (event.shiftKey || event.ctrlKey || event.metaKey) choose(square.id);
      else open(square.id);
    });
    square.node.addEventListener("focus", () => focus(row, column, false));
    return square;
  }

  // The table made anew; rows and columns are names, null where there is but one without a name.
  function lay(rows, columns) {
    const held = table.contains(document.activeElement);
    const across = columns ?? [null];
    table.classList.toggle("fluxnb-named", rows !== null);
    table.style.setProperty("--fluxnb-columns", across.length);
    squares = (rows ?? [null]).map((_, row) => across.map((_, column) => makeSquare(row, column)));
    const lines = squares.map((cells, row) => {
      const nodes = cells.map((square) => square.node);
      return rows ? line(name("rowheader", "fluxnb-row-name", rows[row]), ...nodes) : line(...nodes);
    });
    if (columns) {
      const heads = columns.map((each) => name("columnheader", "fluxnb-column-name", each));
      if (rows) heads.unshift(name("columnheader", "fluxnb-corner", ["", ""]));
      lines.unshift(line(...heads));
    }
    table.replaceChildren(...lines);
    focus(state.row, state.column, held);
  }

  // What stands where: there(row, column) is the number of a cell, undefined for one that is not made; frame(id) that
  // of its picture now. Sixty times a second, so only what changes is touched.
  function fill(there, frame) {
    each((square, row, column) => {
      const id = there(row, column);
      const number = id === undefined ? undefined : frame(id);
      const address = number === undefined || number === square.frame ? undefined : url(number);
      if (id !== undefined && square.id !== id) describe(square, id);
      if (address !== undefined) {
        square.frame = number;
        square.image.src = address;
      }
      square.node.classList.toggle("fluxnb-empty", square.frame === undefined);
      square.image.hidden = square.mark.hidden = square.frame === undefined;
    });
  }
  function describe(square, id) {
    const { caption, width, height } = cell(id);
    Object.assign(square, { id, name: label(id) });
    square.image.alt = square.name;
    square.node.title = caption;
    square.node.style.aspectRatio = `${width} / ${height}`;
  }

  function mark(chosen, starred) {
    each((square) => {
      const place = chosen.indexOf(square.id);
      const isStarred = starred.has(square.id);
      square.node.setAttribute("aria-selected", String(place >= 0));
      square.node.classList.toggle("fluxnb-is-starred", isStarred);
      square.badge.textContent = place >= 0 ? String(place + 1) : "";
      square.mark.textContent = isStarred ? "★" : "☆";
      square.mark.setAttribute("aria-label", isStarred ? "starred" : "star");
      const words = square.id === undefined ? "not made" : `${square.name}${isStarred ? ", starred" : ""}`;
      square.node.setAttribute("aria-label", words);
    });
  }

  function each(act) {
    squares.forEach((line, row) => line.forEach((square, column) => act(square, row, column)));
  }
  function focus(row, column, take = true) {
    state.row = Math.max(0, Math.min(squares.length - 1, row));
    state.column = Math.max(0, Math.min(squares[0].length - 1, column));
    each((square, r, c) => (square.node.tabIndex = r === state.row && c === state.column ? 0 : -1));
    if (take) squares[state.row][state.column].node.focus();
  }

  return {
    node,
    lay,
    fill,
    mark,
    focus,
    move: (right, down) => focus(state.row + down, state.column + right),
    toStart: () => focus(state.row, 0),
    toEnd: () => focus(state.row, squares[0].length - 1),
    here: () => squares[state.row][state.column].id,
    contains: (other) => table.contains(other),
    neighbour: (right, down) => squares[state.row + down]?.[state.column + right]?.id,
    at(id) {
      each((square, row, column) => square.id === id && focus(row, column, false));
    },
    takeFocus: () => focus(state.row, state.column),
    get columns() {
      return squares[0]?.length ?? 1;
    },
    set side(pixels) {
      table.style.setProperty("--fluxnb-side", `${Math.round(pixels)}px`);
    },
  };
}
