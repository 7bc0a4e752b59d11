// @ts-check
// The form of the lab: prompt, seeds, steps, size and guidance as texts.
//
// Numbers are sent to Python as text, because JavaScript would round large seeds.

import { make, makeButton, suppressShortcuts } from "./dom.js";

/** @type {[string, string, string][]} name, label and hint */
const FIELDS = [
  ["prompt", "prompt", "what to draw"],
  ["negative", "negative prompt", "what to avoid"],
  ["seeds", "seeds", "0-3, or 1, 5, 9"],
  ["steps", "steps", "1, 2, 4"],
  ["width", "width", "pixels, a multiple of 16"],
  ["height", "height", "pixels, a multiple of 16"],
  ["guidance", "guidance", "strength"],
];
const MULTILINE = new Set(["prompt", "negative"]);

/**
 * How many numbers a text like "0-3, 7" has; 1 for a text that is none.
 * @param {string} text
 */
export function countNumbers(text) {
  const parts = text.replace(/\s*(-|–|\.\.)\s*/g, "-").split(/[,;\s]+/);
  const count = parts.reduce((sum, part) => {
    const [, first, last] = part.match(/^(\d{1,20})(?:-(\d{1,20}))?$/) ?? [];
    if (first === undefined) return sum;
    return sum + (last === undefined ? 1 : Math.max(0, Number(BigInt(last) - BigInt(first)) + 1));
  }, 0);
  return Math.max(1, Math.min(64, count));
}

/**
 * Random seeds as a text.
 * @param {number} count
 * @param {() => number} random a number from 0 up to 1
 */
export function randomSeeds(count, random = Math.random) {
  const seeds = Array.from({ length: count }, () => Math.floor(random() * 2 ** 32));
  return seeds.join(", ");
}

/** The names of the fields whose texts differ. */
export function changedFields(before, after) {
  return Object.keys(after).filter((name) => (before[name] ?? "").trim() !== (after[name] ?? "").trim());
}

/**
 * @param {{ fields: Record<string, string>, examples: string[], press: () => void, generate: () => void,
 *   changed: () => void }} options `press` is called by the button, `generate` by the key Enter in a field, `changed`
 *   after a field has been edited.
 */
export function makeForm({ fields, examples, press, generate, changed }) {
  const node = make("form", "fluxnb-form");
  const short = make("div", "fluxnb-fields");
  /** @type {Record<string, any>} */
  const inputs = {};
  for (const [name, label, hint] of FIELDS) {
    if (fields[name] === undefined) continue;
    const field = make("label", `fluxnb-field fluxnb-${name}`, label);
    const input = suppressShortcuts(make(MULTILINE.has(name) ? "textarea" : "input"));
    if (MULTILINE.has(name)) input.rows = 2;
    else Object.assign(input, { type: "text", autocomplete: "off", spellcheck: false });
    input.placeholder = hint;
    input.value = fields[name];
    input.addEventListener("change", changed);
    input.addEventListener("input", changed);
    inputs[name] = input;
    field.append(input);
    (MULTILINE.has(name) ? node : short).append(field);
    if (name === "prompt" && examples.length) node.append(makeExamples());
    if (name === "seeds") {
      const dice = makeButton("fluxnb-dice", "random", "random seeds, as many as now", drawSeeds);
      dice.setAttribute("aria-label", "random seeds");
      short.append(dice);
    }
  }
  const button = makeButton("fluxnb-main", "generate", "generate (Ctrl-Enter)", press);
  short.append(button);
  node.append(short);
  node.addEventListener("submit", (event) => event.preventDefault());
  node.addEventListener("keydown", (event) => {
    const isField = /** @type {Element} */ (event.target).tagName === "INPUT";
    if (!isField || event.key !== "Enter" || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    generate();
  });

  function makeExamples() {
    const group = make("div", "fluxnb-examples", "for example");
    for (const text of examples) {
      group.append(makeButton("fluxnb-example", text, "use this prompt", () => set({ prompt: text })));
    }
    return group;
  }
  function drawSeeds() {
    set({ seeds: randomSeeds(countNumbers(inputs.seeds.value)) });
  }
  /** Fill in the fields of these names; a value that is null leaves its field as it is. */
  function set(values) {
    for (const [name, input] of Object.entries(inputs)) input.value = values[name] ?? input.value;
    changed();
  }

  return {
    node,
    button,
    set,
    /** Copy the texts that Python set, except into the field that is being edited. */
    update(texts) {
      const root = /** @type {Document | ShadowRoot} */ (node.getRootNode());
      for (const [name, input] of Object.entries(inputs)) {
        if (texts[name] !== undefined && input !== root.activeElement) input.value = texts[name];
      }
    },
    get values() {
      return Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
    },
  };
}
