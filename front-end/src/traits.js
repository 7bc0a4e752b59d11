// @ts-check
// Traits of a widget that change often.

const SYNC_INTERVAL = 100; // milliseconds between two values of the slider that are sent to Python

/**
 * Set a trait at once in the browser, and send it to Python at most once per interval.
 * @param {string} name of the trait
 */
export function throttledTrait(model, name) {
  let timer = null;
  let last = 0;
  const send = () => {
    timer = null;
    last = performance.now();
    model.save_changes();
  };
  return {
    set(value) {
      if (model.get(name) === value) return;
      model.set(name, value);
      timer ??= setTimeout(send, Math.max(0, SYNC_INTERVAL - (performance.now() - last)));
    },
    close: () => clearTimeout(timer),
  };
}
