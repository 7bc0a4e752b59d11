// The stage of the viewer: as large as pictures fit, and one zoom, one place and one divider for all of them.

const MOST_ZOOM = 16;
const GAP = 12; // pixels between pictures, as in the style
const CAPTION = 24; // pixels under each
const NEAR_DIVIDER = 18; // pixels within which a press takes the divider and not the picture

// `moved` is called with the view whenever it changes: { scale, x, y, split }, the last three in shares of a picture.
function makeStage({ framed, moved }) {
  const view = { scale: 1, x: 0, y: 0, split: 0.5 };
  const node = keysAreOurs(make("div", "fluxnb-stage"));
  let shape = { width: 1, height: 1 };
  let divides = false;
  let drags = null;
  node.tabIndex = 0;
  node.setAttribute("role", "group");

  // The most room that so many pictures of this shape can have.
  function fit() {
    const [width, height] = [node.clientWidth - 1, node.clientHeight - 1]; // they are rounded, up as well
    const count = node.children.length;
    if (!count || width < 1 || height < 1) return;
    const widths = Array.from({ length: count }, (_, i) => {
      const columns = i + 1;
      const rows = Math.ceil(count / columns);
      const high = (height - GAP * (rows - 1)) / rows - CAPTION;
      return Math.min((width - GAP * (columns - 1)) / columns, (high * shape.width) / shape.height);
    });
    node.style.setProperty("--fluxnb-pane", `${Math.max(80, Math.floor(Math.max(...widths)))}px`);
  }

  // Numbers of the stage that every picture on it follows.
  function place() {
    const limit = (view.scale - 1) / 2;
    view.x = Math.max(-limit, Math.min(limit, view.x));
    view.y = Math.max(-limit, Math.min(limit, view.y));
    node.style.setProperty("--fluxnb-scale", view.scale);
    node.style.setProperty("--fluxnb-x", `${view.x * 100}%`);
    node.style.setProperty("--fluxnb-y", `${view.y * 100}%`);
    node.style.setProperty("--fluxnb-split", `${view.split * 100}%`);
    node.classList.toggle("fluxnb-near", view.scale >= 4); // near enough to want to see the pixels
    moved(view);
  }

  // About a point, in shares of the picture from its middle, that stays where it is; by 0 back to the whole.
  function zoom(factor, [atX, atY] = [0, 0]) {
    const scale = factor === 0 ? 1 : Math.max(1, Math.min(MOST_ZOOM, view.scale * factor));
    const ratio = scale / view.scale;
    view.x = atX - (atX - view.x) * ratio;
    view.y = atY - (atY - view.y) * ratio;
    view.scale = scale;
    place();
  }
  function divide(share) {
    view.split = Math.max(0, Math.min(1, share));
    place();
  }

  function boxOf(event) {
    return event.target.closest(".fluxnb-box");
  }
  function shareOf(event, box) {
    const spot = box.getBoundingClientRect();
    return [(event.clientX - spot.left) / spot.width - 0.5, (event.clientY - spot.top) / spot.height - 0.5];
  }
  function wheel(event) {
    const box = boxOf(event);
    if (!box || (framed && !event.ctrlKey)) return; // inside a frame the wheel belongs to the page around it
    event.preventDefault();
    zoom(Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 300), shareOf(event, box));
  }
  node.addEventListener("wheel", wheel, { passive: false });
  node.addEventListener("dblclick", (event) => {
    const box = boxOf(event);
    if (box) zoom(view.scale > 1 ? 0 : 3, shareOf(event, box));
  });
  node.addEventListener("pointerdown", (event) => {
    const box = boxOf(event);
    if (!box || event.button !== 0) return;
    const away = Math.abs(shareOf(event, box)[0] + 0.5 - view.split) * box.clientWidth;
    drags = { box, divider: divides && (view.scale === 1 || away < NEAR_DIVIDER) };
    box.setPointerCapture(event.pointerId);
    if (drags.divider) divide(shareOf(event, box)[0] + 0.5);
  });
  node.addEventListener("pointermove", (event) => {
    if (!drags || event.buttons !== 1) return;
    if (drags.divider) return divide(shareOf(event, drags.box)[0] + 0.5);
    view.x += event.movementX / drags.box.clientWidth;
    view.y += event.movementY / drags.box.clientHeight;
    place();
  });
  node.addEventListener("pointerup", () => (drags = null));
  const watcher = new ResizeObserver(fit);
  watcher.observe(node);

  return {
    node,
    zoom,
    divide,
    // These pictures, of one shape; with a divider a drag moves it as long as nothing is zoomed.
    show(panes, size, divided) {
      [shape, divides] = [size, divided];
      node.replaceChildren(...panes);
      fit();
      place();
    },
    end: () => watcher.disconnect(),
  };
}
