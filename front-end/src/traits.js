// @ts-check
// Traits of a widget that change often.

const SYNC_INTERVAL = 100; // milliseconds between two values of the slider that are sent to Python

/**
 * Set a trait at most once per interval, the last value included. A value that is set but not sent yet would be
 * overwritten by the kernel's confirmation of the one before.
 * @param {string} name of the trait
 */
export function throttledTrait(model, name) {
  let timer = null;
  let last = 0;
  let latest;
  const send = () => {
    timer = null;
    last = performance.now();
    if (model.get(name) === latest) return;
    model.set(name, latest);
    model.save_changes();
  };
  return {
    set(value) {
      latest = value;
      timer ??= setTimeout(send, Math.max(0, SYNC_INTERVAL - (performance.now() - last)));
    },
    close: () => clearTimeout(timer),
  };
}
