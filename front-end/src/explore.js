// @ts-check
// The explorer: a grid that is given from Python, in a notebook or in a self-contained page.
//
// In a notebook anywidget calls `initialize` once and `render` for each view; cells arrive as messages while the grid
// is sampled. Pages and outputs of cells call `mountPage`.

import { make } from "./dom.js";
import { makeGrid } from "./grid.js";
import { connectGrid } from "./kernel.js";
import { countViews, pageMounter, register } from "./output.js";
import { pageSource, receiveCells } from "./source.js";
import "./shared.css";
import "./viewer.css";
import "./explore.css";

function mount(root, data, urls) {
  return makeGrid(root, pageSource(data, urls), null);
}

function initialize({ model }) {
  receiveCells(model);
  return register(model);
}

function render({ model, el }) {
  const root = make("div");
  el.append(root);
  const { close } = connectGrid(root, model);
  const viewClosed = countViews(model);
  return () => {
    close();
    viewClosed();
  };
}

export const mountPage = pageMounter(mount, render);
export default { initialize, render };
