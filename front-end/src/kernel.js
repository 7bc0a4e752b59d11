// @ts-check
// A grid that is connected to the traits of a widget.

import { makeGrid } from "./grid.js";
import { goneText, kernelStatus, makeRequests } from "./requests.js";
import { modelSource } from "./source.js";
import { throttledTrait } from "./traits.js";

const MOST_ORIGINALS = 8; // images of original pixels in memory

/**
 * Display the cells of a widget.
 * @param {HTMLElement} root
 * @param {any} model
 * @param {any} options `useRecipe(cell)` fills in a form; `hasForm` omits title and progress; `reply(text)` displays the
 *   replies of the kernel, by default below the grid
 */
export function connectGrid(root, model, options = {}) {
  const source = modelSource(model);
  const sigma = throttledTrait(model, "sigma");
  const requests = makeRequests(model, options.reply ?? ((text) => grid.showMessage(text)));
  const set = (name, numbers) => {
    model.set(name, numbers);
    model.save_changes();
  };
  /** @type {Map<string, Promise<Uint8Array>>} */
  const originals = new Map(); // the latest ones, by run and number
  const grid = makeGrid(root, source, {
    ...options,
    stars: (ids) => set("stars", ids),
    choices: (ids) => set("choices", ids),
    sigma: sigma.set,
    // The PNG of a cell, with its recipe.
    original(number) {
      const { run } = source.data;
      const name = `${run}.${number}`;
      if (!originals.has(name)) {
        const png = requests.query({ kind: "original", run, number });
        originals.set(name, png);
        png.catch(() => originals.delete(name));
        for (const old of [...originals.keys()].slice(0, -MOST_ORIGINALS)) originals.delete(old);
      }
      return originals.get(name);
    },
    stop: () => requests.send({ kind: "stop" }, { text: "stopping after the current cell …" }),
    save: () => requests.send({ kind: "save" }, { text: `saving to ${source.data.folder} …` }),
  });
  const handlers = {
    "msg:custom"(message, buffers) {
      if (message.kind === "cell") grid.refresh();
      if (message.kind !== "preview") return;
      source.preview(message, buffers[0]);
      grid.draw();
    },
    // The connection of a widget ends when its kernel restarts or stops; its contents remain.
    comm_live_update: () => (options.reply ?? grid.showMessage)(goneText(kernelStatus(model))),
    "change:data"() {
      grid.refresh();
      showMarks(); // those of another run may have arrived before its data
    },
    "change:cells": grid.refresh,
    "change:frames": grid.refresh,
    "change:stars": () => grid.stars(model.get("stars")),
    "change:choices": () => grid.choices(model.get("choices")),
    "change:sigma": () => grid.goToSigma(model.get("sigma")),
  };
  function showMarks() {
    grid.stars(model.get("stars"));
    grid.choices(model.get("choices"));
  }
  for (const [name, handler] of Object.entries(handlers)) model.on(name, handler);
  showMarks();
  grid.goToSigma(model.get("sigma"));
  return {
    grid,
    requests,
    close() {
      for (const [name, handler] of Object.entries(handlers)) model.off(name, handler);
      requests.close();
      sigma.close();
      grid.close();
      source.close();
    },
  };
}
