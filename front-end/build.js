// Bundle each view into the JavaScript and CSS files that the Python package ships.
//
// node build.js          writes them
// node build.js --check  fails if the committed files differ from what would be written

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const VIEWS = ["scrubber", "explore", "lab", "canvas"];
const target = fileURLToPath(new URL("../fluxnb/widgets/static/", import.meta.url));

// Names are shortened, since saved notebooks and pages contain these files. The names that a page and anywidget use
// stand in the footer.
const { outputFiles } = await build({
  entryPoints: VIEWS.map((view) => fileURLToPath(new URL(`src/${view}.js`, import.meta.url))),
  outdir: target,
  bundle: true,
  format: "iife",
  globalName: "view",
  footer: { js: "const { mountPage, default: widget } = view;\nexport { mountPage, widget as default };" },
  target: ["es2022", "chrome111", "firefox113", "safari16.4"],
  charset: "utf8",
  legalComments: "none",
  minify: true,
  write: false,
  logLevel: "warning",
});

if (process.argv.includes("--check")) {
  const stale = [];
  for (const { path, text } of outputFiles) {
    if ((await readFile(path, "utf8").catch(() => "")) !== text) stale.push(path);
  }
  if (stale.length) {
    console.error(`not up to date: ${stale.join(", ")}. Type: make front-end`);
    process.exit(1);
  }
} else {
  await mkdir(target, { recursive: true });
  for (const { path, text } of outputFiles) await writeFile(path, text);
  for (const { path, text } of outputFiles) console.log(`${text.length.toLocaleString("en")} bytes ${path}`);
}
