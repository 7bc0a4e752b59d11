// @ts-check
import { make, makeButton, suppressShortcuts } from "./dom.js";

/** @type {Record<string, string>} */
const SHOW_KEYS = { x: "x", v: "v", c: "clean", n: "noise" };
const letterOf = (show) => Object.keys(SHOW_KEYS).find((letter) => SHOW_KEYS[letter] === show);

// Playback controls of a view: a play button, a slider over the noise levels and buttons for the displayed quantity.
// They hold the current level and quantity, and call `changed` after every change.
export function makePlayback({ shows, playKey, isConnected, changed, moved = (_sigma) => {} }) {
  const state = { levels: [0], index: 0, show: shows[0]?.key, timer: null };
  const bar = make("div", "fluxnb-bar");
  const play = makeButton("fluxnb-play", "▶", `play (${playKey})`, toggle);
  const range = suppressShortcuts(make("input"));
  const sigmaText = make("output", "fluxnb-sigma");
  const choice = make("div", "fluxnb-shows");
  play.setAttribute("aria-label", "play");
  Object.assign(range, { type: "range", min: 0, max: 0, step: 1, value: 0 });
  range.setAttribute("aria-label", "noise level");
  range.addEventListener("input", () => {
    stop();
    go(Number(range.value));
    report();
  });
  choice.setAttribute("role", "group");
  choice.setAttribute("aria-label", "displayed quantity");
  const buttons = shows.map(({ key, name }) => {
    const letter = letterOf(key);
    const button = makeButton("fluxnb-show", name, letter && `${name} (${letter})`, () => display(key));
    choice.append(button);
    return { key, button };
  });
  bar.append(play, range, sigmaText);

  function draw() {
    const sigma = state.levels[state.index] ?? 0;
    sigmaText.textContent = state.levels.length > 1 ? `σ ${sigma.toFixed(2)}` : "";
    range.max = String(Math.max(state.levels.length - 1, 0));
    range.value = String(state.index);
    range.setAttribute("aria-valuetext", sigmaText.textContent);
    for (const { key, button } of buttons) button.setAttribute("aria-pressed", String(key === state.show));
    changed();
  }
  function go(index) {
    state.index = Math.max(0, Math.min(state.levels.length - 1, index));
    draw();
  }
  // Only moves of the user are reported, so that two linked sliders with different levels do not move each other on.
  function report() {
    moved(state.levels[state.index] ?? 0);
  }
  function goToSigma(sigma) {
    const distance = (i) => Math.abs(state.levels[i] - sigma);
    go(state.levels.reduce((best, _, i) => (distance(i) < distance(best) ? i : best), 0));
  }
  function display(key) {
    if (!shows.some((show) => show.key === key)) return;
    state.show = key;
    draw();
  }
  function stop() {
    clearInterval(state.timer);
    state.timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "play");
  }
  function toggle() {
    if (state.timer !== null) return stop();
    if (state.index >= state.levels.length - 1) go(0);
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "pause");
    // About four seconds in all, whatever the number of levels, with limits for very few and very many.
    const interval = Math.max(90, Math.min(700, 4000 / Math.max(state.levels.length, 1)));
    state.timer = setInterval(() => {
      if (!isConnected() || state.index >= state.levels.length - 1) return stop();
      go(state.index + 1);
      report();
    }, interval);
  }

  function move(by) {
    stop();
    go(state.index + by);
    report();
  }
  // Entries of a table of keys. With one quantity there is nothing to choose.
  const showKeys = () => {
    const known = shows.filter(({ key }) => letterOf(key));
    const on = Object.fromEntries(known.map(({ key }) => [letterOf(key), () => display(key)]));
    return known.length > 1 ? [{ keys: Object.keys(on).join(" "), text: "displayed quantity", on }] : [];
  };

  return {
    bar,
    choice,
    showKeys,
    keys: () =>
      state.levels.length < 2
        ? []
        : [
            { keys: ", .", text: "noise level", on: { ",": () => move(-1), ".": () => move(1) } },
            { keys: playKey, text: "play", on: { [playKey]: toggle } },
            ...showKeys(),
          ],
    range,
    go,
    goToSigma,
    display,
    stop,
    toggle,
    move,
    moveTo(index) {
      stop();
      go(index);
      report();
    },
    get sigma() {
      return state.levels[state.index] ?? 0;
    },
    get show() {
      return state.show;
    },
    // Replacing the levels keeps the current sigma as closely as possible.
    set levels(levels) {
      const sigma = state.levels[state.index] ?? 0;
      state.levels = levels;
      goToSigma(sigma);
    },
    get levels() {
      return state.levels;
    },
  };
}
