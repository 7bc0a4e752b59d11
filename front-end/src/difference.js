// @ts-check
export const VISIBLE = 8; // of 255: the smallest change that counts as visible

// The absolute difference of two RGBA images of one size, brightened by `gain`, with statistics on a scale of 255.
export function difference(a, b, gain) {
  const out = new Uint8ClampedArray(a.length);
  let sum = 0;
  let largest = 0;
  let changed = 0;
  for (let i = 0; i < a.length; i += 4) {
    let pixelMax = 0;
    for (let channel = i; channel < i + 3; channel += 1) {
      const delta = Math.abs(a[channel] - b[channel]);
      out[channel] = delta * gain;
      sum += delta;
      pixelMax = Math.max(pixelMax, delta);
    }
    out[i + 3] = 255;
    largest = Math.max(largest, pixelMax);
    changed += pixelMax > VISIBLE ? 1 : 0;
  }
  const pixels = Math.max(a.length / 4, 1);
  return { out, mean: sum / (3 * pixels), largest, changed: changed / pixels };
}
