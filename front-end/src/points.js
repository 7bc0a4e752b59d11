// @ts-check
// Points of a drawing in the plane: where a brush scatters them, and how they are displayed.

/** @typedef {[number, number]} Point */

const SPACING = 0.06; // between two dabs of a stroke
const PER_DAB = 4; // points

const round = (value) => Math.round(value * 1000) / 1000; // Python receives three digits

/** A normally distributed number (Box and Muller). */
function normal(random) {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/**
 * Points around a center, normally distributed and inside the plane.
 * @param {Point} center
 * @param {number} width standard deviation
 * @param {number} half the plane reaches from -half to half
 * @returns {Point[]}
 */
export function scatter(center, width, half, count = PER_DAB, random = Math.random) {
  const within = (value) => round(Math.max(-half, Math.min(half, value + width * normal(random))));
  return Array.from({ length: count }, () => [within(center[0]), within(center[1])]);
}

/**
 * The centers of the dabs between two positions of a stroke, and how far the stroke has come since the last dab.
 * @param {Point} from
 * @param {Point} to
 * @param {number} since the distance from the last dab to `from`
 * @returns {{ centers: Point[], since: number }}
 */
export function dabs(from, to, since) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = Math.hypot(dx, dy);
  /** @type {Point[]} */
  const centers = [];
  let along = SPACING - since;
  for (; along <= length; along += SPACING) {
    centers.push([from[0] + (dx * along) / length, from[1] + (dy * along) / length]);
  }
  return { centers, since: length - (along - SPACING) };
}

/**
 * The points as a path of segments without length, which round line caps turn into dots. SVG counts y downwards.
 * @param {Point[]} points
 */
export function pathOf(points) {
  return points.map(([x, y]) => `M${x} ${round(-y)}h0`).join("");
}
