// @ts-check
// Views in the HTML output of a notebook cell and in pages: the live widget with the same key while it exists in this
// window, otherwise the contents of the output.

import { make } from "./dom.js";

const NAME = Symbol.for("fluxnb.models");
const CHECK = 2000; // milliseconds between two checks whether an output is still in the document
const ABSENT = 4; // checks after which it is given up

/** @type {{ live: Map<string, any>, waiting: Set<(key: string, model: any) => void> }} */
const models = globalThis[NAME] ?? { live: new Map(), waiting: new Set() };
globalThis[NAME] = models; // the scripts of several outputs share it

/**
 * Let outputs with the key of a widget display it.
 * @returns {() => void} ends this
 */
export function register(model) {
  const key = model.get("key");
  models.live.set(key, model);
  for (const connect of [...models.waiting]) connect(key, model);
  return () => {
    if (models.live.get(key) === model) models.live.delete(key);
  };
}

const views = new Map(); // number of views of each widget
const windowName = Math.random().toString(36).slice(2);

/**
 * Report the number of views of a widget to the kernel, so that a stream without any view ends.
 * @returns {() => void} called when the view is closed
 */
export function countViews(model) {
  const key = model.get("key");
  const change = (by) => {
    views.set(key, (views.get(key) ?? 0) + by);
    model.send({ kind: "views", window: windowName, count: views.get(key) });
  };
  change(1);
  return () => change(-1);
}

/**
 * @param {(root: HTMLElement, data: any, urls: string[]) => any} mount displays contents
 * @param {(parts: { model: any, el: HTMLElement }) => () => void} render displays a widget
 */
export function pageMounter(mount, render) {
  function mountIn(root, key, data, urls, behind) {
    root.dataset.mounted = "";
    const place = make("div");
    root.append(place);
    const images = (number) => root.querySelector(`.fluxnb-sheet img[data-frame="${number}"]`)?.src;
    const contents = () =>
      mount(
        place,
        data,
        urls.map((url, number) => url ?? images(number)),
      );
    let view = data && !models.live.has(key) ? contents() : null;
    let close = () => view?.close();
    function connect(name, model) {
      if (name !== key) return;
      models.waiting.delete(connect);
      close();
      root.dataset.live = "";
      if (behind) {
        root.hidden = true;
        place.replaceChildren();
        close = () => {};
        return;
      }
      const el = make("div");
      place.replaceWith(el);
      view = null;
      close = render({ model, el });
    }
    models.waiting.add(connect);
    let missed = 0;
    const timer = setInterval(() => {
      missed = root.isConnected ? 0 : missed + 1;
      if (missed < ABSENT) return;
      clearInterval(timer);
      models.waiting.delete(connect);
      close();
    }, CHECK);
    if (models.live.has(key)) connect(key, models.live.get(key));
  }
  /**
   * Display contents in every element of this name; `data` is null for an output that displays a live widget only. With
   * `behind`, the key of a widget, the contents are displayed only while that widget does not exist.
   */
  return function mountPage(name, data, urls, { behind = "" } = {}) {
    for (const root of document.querySelectorAll(`[data-fluxnb="${name}"]:not([data-mounted])`)) {
      mountIn(/** @type {HTMLElement} */ (root), behind || name, data, urls, Boolean(behind));
    }
  };
}
