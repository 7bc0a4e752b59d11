// @ts-check
// Layout of the grid: two axes are rows and columns, and every further axis is displayed one value (page) at a time. Rows,
// or the cells of a single row, beyond what one table holds are pages as well.

import { make, makeButton, suppressShortcuts } from "./dom.js";

const MAX_OPTION_LENGTH = 48; // characters
const MOST_CELLS = 240; // of a table

/**
 * The parts of an axis, as [first, end] pairs, so that no table has more than `most` cells.
 * @param {number} length of the axis
 * @param {number} across cells for each value of it
 * @returns {[number, number][]}
 */
export function partsOf(length, across, most = MOST_CELLS) {
  const size = Math.max(1, Math.floor(most / across));
  const count = Math.ceil(length / size);
  return Array.from({ length: count }, (_, i) => [i * size, Math.min(length, (i + 1) * size)]);
}

// Indices of the axes with more than one value.
export function severalValues(axes) {
  return axes.flatMap((axis, i) => (axis.values.length > 1 ? [i] : []));
}

// Selection of rows, columns and pages; `changed` is called when the table has to be rebuilt.
export function makeAxes(changed) {
  const state = { axes: [], rows: -1, columns: -1, pages: [], part: 0 };
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
  // The axis that is divided into parts, and the parts.
  function division() {
    const axis = state.rows >= 0 ? state.rows : state.columns;
    const across = state.rows >= 0 && state.columns >= 0 ? state.axes[state.columns].values.length : 1;
    return { axis, parts: axis < 0 ? [] : partsOf(state.axes[axis].values.length, across) };
  }
  function makePage(axis) {
    const { name, values, full } = state.axes[axis];
    const options = values.map((value, i) => [i, value, full[i]]);
    return makePager(name, options, state.pages[axis], (by) => turnPage(by, axis));
  }
  function makeParts() {
    const { axis, parts } = division();
    if (parts.length < 2) return [];
    const { name, values } = state.axes[axis];
    const options = parts.map(([first, end], i) => [i, `${values[first]} – ${values[end - 1]}`]);
    return [makePager(name, options, state.part, turnPart)];
  }
  function makePager(name, options, current, turn) {
    const label = make("label", "fluxnb-page", `${name} `);
    const select = suppressShortcuts(make("select"));
    fill(select, options, current);
    select.addEventListener("change", () => turn(Number(select.value) - current));
    label.append(select);
    const position = make("span", "fluxnb-page-position", `${current + 1} of ${options.length}`);
    const previous = makeButton("", "‹", "previous page (page up)", () => turn(-1));
    const next = makeButton("", "›", "next page (page down)", () => turn(1));
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
    state.part = Math.min(state.part, Math.max(0, division().parts.length - 1));
    pager.replaceChildren(...pages().map(makePage), ...makeParts());
    if (focused) pager.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
    changed();
  }
  function assign(rows, columns) {
    Object.assign(state, { rows, columns: columns === rows ? -1 : columns, part: 0 });
    draw();
  }
  function swap() {
    assign(state.columns, state.rows);
  }
  function turnPart(by) {
    const count = division().parts.length;
    state.part = (state.part + by + count) % count;
    draw();
  }
  // Show another part of the table, or else another page of the last axis.
  function turn(by) {
    const last = pages().at(-1);
    if (division().parts.length > 1) turnPart(by);
    else if (last !== undefined) turnPage(by, last);
  }
  function turnPage(by, axis) {
    const count = state.axes[axis].values.length;
    state.pages[axis] = (state.pages[axis] + by + count) % count;
    draw();
  }
  // The displayed part of an axis.
  function shownOf(axis) {
    const { axis: divided, parts } = division();
    return axis === divided && parts.length ? parts[state.part] : [0, state.axes[axis].values.length];
  }
  // The names along an axis, as [short, full] pairs; null for no axis.
  function names(axis) {
    if (axis < 0) return null;
    const { values, full } = state.axes[axis];
    const [first, end] = shownOf(axis);
    return values.map((value, i) => [value, full[i]]).slice(first, end);
  }

  return {
    bar,
    pager,
    swap,
    turn,
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
      if (state.rows >= 0) position[state.rows] = row + shownOf(state.rows)[0];
      if (state.columns >= 0) position[state.columns] = column + shownOf(state.columns)[0];
      return position;
    },
    get rows() {
      return names(state.rows);
    },
    get columns() {
      return names(state.columns);
    },
    get hasPages() {
      return pages().length > 0 || division().parts.length > 1;
    },
    get axisNames() {
      return [state.rows, state.columns].map((axis) => state.axes[axis]?.name ?? "");
    },
  };
}
