// @ts-check
// Whether the ground of a view is light or dark. The style sheet chooses the accent color by it.

/**
 * Relative luminance (WCAG 2.2) of a CSS color as computed by a browser: rgb(), rgba() or color(srgb ...).
 * @param {string} color
 */
export function luminance(color) {
  const numbers = color.match(/-?[\d.]+(e-?\d+)?/g)?.map(Number) ?? [255, 255, 255];
  const scale = color.startsWith("color(") ? 1 : 255;
  const [red, green, blue] = numbers.slice(0, 3).map((value) => {
    const share = value / scale;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/**
 * Set `data-ground` of a view to "light" or "dark", now and whenever the theme of the host changes.
 * @param {HTMLElement} root
 * @returns {() => void} ends the observation
 */
export function followGround(root) {
  const apply = () => {
    if (!root.isConnected) return;
    // 0.18 has the same contrast with black and with white.
    root.dataset.ground = luminance(getComputedStyle(root).backgroundColor) < 0.18 ? "dark" : "light";
  };
  const observer = new MutationObserver(apply);
  for (const node of [document.documentElement, document.body]) observer.observe(node, { attributes: true });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", apply);
  const visible = new ResizeObserver(apply); // a view is mounted before it is attached to the page
  visible.observe(root);
  apply();
  return () => {
    observer.disconnect();
    visible.disconnect();
    dark.removeEventListener("change", apply);
  };
}
