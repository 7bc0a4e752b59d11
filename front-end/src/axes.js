// @ts-check
// Layout of the grid: two axes are rows and columns, and every further axis is displayed one value (page) at a time.

import { make, makeButton, suppressShortcuts } from "./dom.js";

const MAX_OPTION_LENGTH = 48; // characters

// Indices of the axes with more than one value.
export function severalValues(axes) {
  return axes.flatMap((axis, i) => (axis.values.length > 1 ? [i] : []));
}

// Selection of rows, columns and pages; `changed` is called when the table has to be rebuilt.
export function makeAxes(changed) {
  const state = { axes: [], rows: -1, columns: -1, pages: [] };
  const bar = make("div", "fluxnb-axes");
  const pager = make("div", "fluxnb-pager");
  const rows = makeChoice("rows", (axis) => assign(axis, axis === state.columns ? state.rows : state.columns));
  const columns = makeChoice("columns", (axis) => assign(axis === state.rows ? state.columns : state.rows, axis));
  const swapper = makeButton("fluxnb-swap", "⇄", "swap rows and columns (t)", swap);
  swapper.setAttribute("aria-label", "swap rows and columns");
  bar.append(rows.label, swapper, columns.label);

  function makeChoice(name, onSelect) {
    const label = make("label", "fluxnb-axis", name);
    const select = suppressShortcuts(make("select"));
    select.addEventListener("change", () => onSelect(Number(select.value)));
    label.append(select);
    return { label, select };
  }
  function fill(select, options, value) {
    select.replaceChildren(
      ...options.map(([value, text, full = text]) => {
        const short = text.length > MAX_OPTION_LENGTH ? `${text.slice(0, MAX_OPTION_LENGTH - 1)}…` : text;
        const option = make("option", "", short);
        option.value = String(value);
        option.title = full;
        return option;
      }),
    );
    select.value = String(value);
  }

  function pages() {
    return severalValues(state.axes).filter((axis) => axis !== state.rows && axis !== state.columns);
  }
  function makePage(axis) {
    const { name, values, full } = state.axes[axis];
    const label = make("label", "fluxnb-page", `${name} `);
    const select = suppressShortcuts(make("select"));
    fill(
      select,
      values.map((value, i) => [i, value, full[i]]),
      state.pages[axis],
    );
    select.addEventListener("change", () => turnPage(Number(select.value) - state.pages[axis], axis));
    label.append(select);
    const position = make("span", "fluxnb-page-position", `${state.pages[axis] + 1} of ${values.length}`);
    const previous = makeButton("", "‹", "previous page (page up)", () => turnPage(-1, axis));
    const next = makeButton("", "›", "next page (page down)", () => turnPage(1, axis));
    previous.setAttribute("aria-label", `previous ${name}`);
    next.setAttribute("aria-label", `next ${name}`);
    const group = make("div", "fluxnb-page-group");
    group.append(previous, label, next, position);
    return group;
  }

  function draw() {
    const options = severalValues(state.axes).map((axis) => [axis, state.axes[axis].name]);
    fill(rows.select, [[-1, "–"], ...options], state.rows);
    fill(columns.select, [[-1, "–"], ...options], state.columns);
    bar.classList.toggle("fluxnb-single", options.length < 2);
    const focused = pager.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    pager.replaceChildren(...pages().map(makePage));
    if (focused) pager.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
    changed();
  }
  function assign(rows, columns) {
    Object.assign(state, { rows, columns: columns === rows ? -1 : columns });
    draw();
  }
  function swap() {
    assign(state.columns, state.rows);
  }
  // Show another page of an axis, by default of the last one.
  function turnPage(by, axis = pages().at(-1)) {
    if (axis === undefined) return;
    const count = state.axes[axis].values.length;
    state.pages[axis] = (state.pages[axis] + by + count) % count;
    draw();
  }
  // The names along an axis, as [short, full] pairs; null for no axis.
  function names(axis) {
    if (axis < 0) return null;
    const { values, full } = state.axes[axis];
    return values.map((value, i) => [value, full[i]]);
  }

  return {
    bar,
    pager,
    swap,
    turnPage,
    // By default the last two axes with several values are columns and rows.
    set(axes) {
      const candidates = severalValues(axes);
      const gone = [state.rows, state.columns].some((axis) => axis >= 0 && !candidates.includes(axis));
      if (gone || (state.rows < 0 && state.columns < 0)) {
        state.columns = candidates.at(-1) ?? -1;
        state.rows = candidates.at(-2) ?? -1;
      }
      state.pages = axes.map(({ values }, i) => Math.min(state.pages[i] ?? 0, values.length - 1));
      state.axes = axes;
      draw();
    },
    // The position of a cell on all axes, from its row and column on the current page.
    positionOf(row, column) {
      const position = [...state.pages];
      if (state.rows >= 0) position[state.rows] = row;
      if (state.columns >= 0) position[state.columns] = column;
      return position;
    },
    get rows() {
      return names(state.rows);
    },
    get columns() {
      return names(state.columns);
    },
    get axisNames() {
      return [state.rows, state.columns].map((axis) => state.axes[axis]?.name ?? "");
    },
  };
}
