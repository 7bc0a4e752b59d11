// Which cell stands where: rows and columns are axes of the grid, and every further axis is turned page by page.

const LONGEST_OPTION = 48; // letters

function several(axes) {
  return axes.flatMap((axis, i) => (axis.values.length > 1 ? [i] : []));
}

// The choice of rows and columns, and the pages; `changed` is called when the grid has to be laid anew.
function makeAxes(changed) {
  const state = { axes: [], rows: -1, columns: -1, pages: [] };
  const bar = make("div", "fluxnb-axes");
  const pager = make("div", "fluxnb-pager");
  const rows = choice("rows", (axis) => arrange(axis, axis === state.columns ? state.rows : state.columns));
  const columns = choice("columns", (axis) => arrange(axis === state.rows ? state.columns : state.rows, axis));
  const swapper = makeButton("fluxnb-swap", "⇄", "swap rows and columns (t)", swap);
  swapper.setAttribute("aria-label", "swap rows and columns");
  bar.append(rows.label, swapper, columns.label);

  function choice(name, act) {
    const label = make("label", "fluxnb-axis", name);
    const select = keysAreOurs(make("select"));
    select.addEventListener("change", () => act(Number(select.value)));
    label.append(select);
    return { label, select };
  }
  function fill(select, options, value) {
    select.replaceChildren(
      ...options.map(([value, text, whole = text]) => {
        const short = text.length > LONGEST_OPTION ? `${text.slice(0, LONGEST_OPTION - 1)}…` : text;
        const option = make("option", "", short);
        option.value = String(value);
        option.title = whole;
        return option;
      }),
    );
    select.value = String(value);
  }

  function pages() {
    return several(state.axes).filter((axis) => axis !== state.rows && axis !== state.columns);
  }
  function page(axis) {
    const { name, values, whole } = state.axes[axis];
    const label = make("label", "fluxnb-page", `${name} `);
    const select = keysAreOurs(make("select"));
    fill(select, values.map((value, i) => [i, value, whole[i]]), state.pages[axis]); // prettier-ignore
    select.addEventListener("change", () => turn(Number(select.value) - state.pages[axis], axis));
    label.append(select);
    const place = make("span", "fluxnb-page-place", `${state.pages[axis] + 1} of ${values.length}`);
    const before = makeButton("", "‹", "the page before (page up)", () => turn(-1, axis));
    const after = makeButton("", "›", "the next page (page down)", () => turn(1, axis));
    before.setAttribute("aria-label", `${name} before`);
    after.setAttribute("aria-label", `next ${name}`);
    const group = make("div", "fluxnb-page-group");
    group.append(before, label, after, place);
    return group;
  }

  function draw() {
    const options = several(state.axes).map((axis) => [axis, state.axes[axis].name]);
    fill(rows.select, [[-1, "–"], ...options], state.rows);
    fill(columns.select, [[-1, "–"], ...options], state.columns);
    bar.classList.toggle("fluxnb-single", options.length < 2);
    const held = pager.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    pager.replaceChildren(...pages().map(page));
    if (held) pager.querySelector(`[aria-label="${CSS.escape(held)}"]`)?.focus();
    changed();
  }
  function arrange(rows, columns) {
    Object.assign(state, { rows, columns: columns === rows ? -1 : columns });
    draw();
  }
  function swap() {
    arrange(state.columns, state.rows);
  }
  // The last of the further axes, where none is named.
  function turn(by, axis = pages().at(-1)) {
    if (axis === undefined) return;
    const count = state.axes[axis].values.length;
    state.pages[axis] = (state.pages[axis] + by + count) % count;
    draw();
  }
  // The names along an axis, as they stand there and whole as they are told on asking.
  function names(axis) {
    if (axis < 0) return null;
    const { values, whole } = state.axes[axis];
    return values.map((value, i) => [value, whole[i]]);
  }

  return {
    bar,
    pager,
    swap,
    turn,
    // The last two axes of several values are columns and rows, until somebody says otherwise.
    set(axes) {
      const many = several(axes);
      if (state.rows < 0 && state.columns < 0) {
        state.columns = many.at(-1) ?? -1;
        state.rows = many.at(-2) ?? -1;
      }
      state.pages = axes.map((_, i) => state.pages[i] ?? 0);
      state.axes = axes;
      draw();
    },
    at(row, column) {
      const at = [...state.pages];
      if (state.rows >= 0) at[state.rows] = row;
      if (state.columns >= 0) at[state.columns] = column;
      return at;
    },
    get rows() {
      return names(state.rows);
    },
    get columns() {
      return names(state.columns);
    },
    get called() {
      return [state.rows, state.columns].map((axis) => state.axes[axis]?.name ?? "");
    },
  };
}
