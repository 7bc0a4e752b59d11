// @ts-check
// Noise levels of trajectories and the frame at each of them.

/**
 * @typedef {object} Trajectory
 * @property {number[]} sigmas noise level of each step, falling
 * @property {Record<string, number[]>} frames for each displayed quantity the number of the frame of each step
 * @property {number | null} final number of the final image
 * @property {(number | null)[][]} [overlays] for each word of the prompt the number of the overlay of each step
 */

const EQUAL_FINAL_IMAGE = new Set(["x", "clean"]); // at sigma 0; velocity and noise have no value there
const TOLERANCE = 1e-6;

// All noise levels of the trajectories in falling order, and 0 if any of them has a final image.
export function levels(trajectories) {
  const all = trajectories.flatMap((trajectory) => trajectory.sigmas.concat(trajectory.final === null ? [] : [0]));
  all.sort((a, b) => b - a);
  return all.filter((sigma, i) => i === 0 || all[i - 1] - sigma > TOLERANCE);
}

// The frame of a trajectory at sigma, which is that of the last step with a level of at least sigma. Step -1 stands for
// the final image.
export function frameAt(trajectory, show, sigma) {
  const frames = trajectory.frames[show] ?? [];
  if (frames.length === 0 || (sigma <= TOLERANCE && trajectory.final !== null && EQUAL_FINAL_IMAGE.has(show))) {
    return { step: -1, frame: trajectory.final ?? frames[frames.length - 1] ?? null };
  }
  let step = 0;
  while (step + 1 < trajectory.sigmas.length && trajectory.sigmas[step + 1] >= sigma - TOLERANCE) step += 1;
  return { step, frame: frames[step] };
}
