// @ts-check
// The stage of the viewer: images as large as they fit, with one zoom, one pan offset and one divider for all of them.

import { make, suppressShortcuts } from "./dom.js";

const MOST_ZOOM = 16;
const GAP = 12; // pixels between images, as in viewer.css
const CAPTION = 24; // pixels below each image
const SWIPE = 48; // pixels of a horizontal move that count as a swipe
const GRAB_DISTANCE = 18; // pixels from the divider within which a press grabs it instead of the image

// `changed` is called with the view after every change: { scale, x, y, split }, the last three as fractions of an
// image.
// `swiped` is called with 1 or -1 for a swipe to the next or the previous image.
export function makeStage({ framed, changed, swiped }) {
  const view = { scale: 1, x: 0, y: 0, split: 0.5 };
  const node = suppressShortcuts(make("div", "fluxnb-stage"));
  let imageSize = { width: 1, height: 1 };
  let hasDivider = false;
  let drag = null;
  node.tabIndex = 0;
  node.setAttribute("role", "group");

  // Choose the number of columns that makes the images largest.
  function fit() {
    const [width, height] = [node.clientWidth - 1, node.clientHeight - 1]; // client sizes may be rounded up
    const count = node.children.length;
    if (!count || width < 1 || height < 1) return;
    const widths = Array.from({ length: count }, (_, i) => {
      const columns = i + 1;
      const rows = Math.ceil(count / columns);
      const paneHeight = (height - GAP * (rows - 1)) / rows - CAPTION;
      return Math.min((width - GAP * (columns - 1)) / columns, (paneHeight * imageSize.width) / imageSize.height);
    });
    node.style.setProperty("--fluxnb-pane", `${Math.max(80, Math.floor(Math.max(...widths)))}px`);
  }

  // Apply the view to all images through CSS variables.
  function apply() {
    const limit = (view.scale - 1) / 2;
    view.x = Math.max(-limit, Math.min(limit, view.x));
    view.y = Math.max(-limit, Math.min(limit, view.y));
    node.style.setProperty("--fluxnb-scale", view.scale);
    node.style.setProperty("--fluxnb-x", `${view.x * 100}%`);
    node.style.setProperty("--fluxnb-y", `${view.y * 100}%`);
    node.style.setProperty("--fluxnb-split", `${view.split * 100}%`);
    node.classList.toggle("fluxnb-zoomed", view.scale > 1 || hasDivider);
    node.classList.toggle("fluxnb-pixelated", view.scale >= 4); // show individual pixels
    changed(view);
  }

  // Zoom about a fixed point, given as fractions of the image from its center; factor 0 resets the zoom.
  function zoom(factor, [fixedX, fixedY] = [0, 0]) {
    const scale = factor === 0 ? 1 : Math.max(1, Math.min(MOST_ZOOM, view.scale * factor));
    const ratio = scale / view.scale;
    view.x = fixedX - (fixedX - view.x) * ratio;
    view.y = fixedY - (fixedY - view.y) * ratio;
    view.scale = scale;
    apply();
  }
  function setDivider(fraction) {
    view.split = Math.max(0, Math.min(1, fraction));
    apply();
  }

  function boxOf(event) {
    return event.target.closest(".fluxnb-box");
  }
  /**
   * The position of the pointer as fractions of the image from its center.
   * @returns {[number, number]}
   */
  function positionIn(event, box) {
    const bounds = box.getBoundingClientRect();
    return [(event.clientX - bounds.left) / bounds.width - 0.5, (event.clientY - bounds.top) / bounds.height - 0.5];
  }
  function wheel(event) {
    const box = boxOf(event);
    if (!box || (framed && !event.ctrlKey)) return; // inside an iframe the wheel scrolls the outer page
    event.preventDefault();
    zoom(Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 300), positionIn(event, box));
  }
  node.addEventListener("wheel", wheel, { passive: false });
  node.addEventListener("dblclick", (event) => {
    const box = boxOf(event);
    if (box) zoom(view.scale > 1 ? 0 : 3, positionIn(event, box));
  });
  node.addEventListener("pointerdown", (event) => {
    const box = boxOf(event);
    if (!box || event.button !== 0) return;
    const distance = Math.abs(positionIn(event, box)[0] + 0.5 - view.split) * box.clientWidth;
    const divider = hasDivider && (view.scale === 1 || distance < GRAB_DISTANCE);
    drag = { box, divider, x: event.clientX, y: event.clientY };
    box.setPointerCapture(event.pointerId);
    if (drag.divider) setDivider(positionIn(event, box)[0] + 0.5);
  });
  node.addEventListener("pointermove", (event) => {
    if (!drag || event.buttons !== 1) return;
    if (drag.divider) return setDivider(positionIn(event, drag.box)[0] + 0.5);
    view.x += event.movementX / drag.box.clientWidth;
    view.y += event.movementY / drag.box.clientHeight;
    apply();
  });
  node.addEventListener("pointerup", (event) => {
    const across = drag && event.clientX - drag.x;
    const isSwipe = Math.abs(across) > SWIPE && Math.abs(across) > 2 * Math.abs(event.clientY - (drag?.y ?? 0));
    // After the end of the touch: if its target is replaced before, the browser suppresses the next tap.
    if (drag && !drag.divider && view.scale === 1 && isSwipe) setTimeout(() => swiped(across < 0 ? 1 : -1));
    drag = null;
  });
  node.addEventListener("pointercancel", () => (drag = null)); // the browser scrolls the page
  const observer = new ResizeObserver(fit);
  observer.observe(node);

  return {
    node,
    zoom,
    setDivider,
    // Display panes of one image size. With a divider, dragging moves the divider unless the view is zoomed.
    show(panes, size, divided) {
      [imageSize, hasDivider] = [size, divided];
      node.replaceChildren(...panes);
      fit();
      apply();
    },
    close: () => observer.disconnect(),
  };
}
