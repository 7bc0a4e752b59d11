// @ts-check
// Elements and buttons. Text is only ever assigned to textContent or to an attribute, never parsed as markup.

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** The title of a view, a heading: the first of an exported page, one below the headings of a notebook. */
export function makeTitle(root, text) {
  const title = make("div", "fluxnb-title", text);
  title.setAttribute("role", "heading");
  title.setAttribute("aria-level", root.closest("[data-page]") ? "1" : "3");
  return title;
}

// Keep JupyterLab's keyboard shortcuts from acting while this control has the focus.
export function suppressShortcuts(node) {
  node.setAttribute("data-lm-suppress-shortcuts", "true");
  return node;
}

export function makeButton(className, text, title, act) {
  const node = suppressShortcuts(make("button", className, text));
  node.type = "button";
  if (title) node.title = title;
  node.addEventListener("click", act);
  return node;
}

// An object URL of a frame that arrived as bytes; the caller revokes it.
export function frameUrl(data) {
  // A DataView may be a window into a shared buffer, so only its own range is used.
  const bytes = data.buffer ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : data;
  return URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
}

export function loadImage(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}
