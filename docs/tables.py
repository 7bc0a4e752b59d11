"""Parts of the documentation in Markdown: tables of recorded measurements, lists of notebooks, the command line's help.

`python docs/tables.py` writes them into the committed pages and the README, between two comments with the name of the
table, so that they are displayed by GitHub as well. `conf.py` writes the others to files, which pages include.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import claims  # noqa: E402
from address import colab  # noqa: E402

from fluxnb.__main__ import main  # noqa: E402
from fluxnb.families.defaults import DEFAULTS, ModelDefaults  # noqa: E402
from fluxnb.families.registry import MODELS  # noqa: E402
from tests.benchmarks import table as gpu  # noqa: E402

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
NAMES = ("fullsize.json", "recording.json", "families.json", "several_gpus.json")
FULL, COST, OTHERS, SEVERAL = (RESULTS / name for name in NAMES)
CARD = ROOT / "fluxnb" / "pocket" / "card.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "models.md")
TABLE = re.compile(r"(<!-- table ([\w-]+), written by python docs/tables\.py -->)\n.*?" + re.escape(gpu.END), re.DOTALL)

# Settings of the evaluation and how they are named, in the order of the table.
SETTINGS = {
    "renders": "renders, the upper bound",
    "teacher-28": "pocket-base, 28 steps, guidance {guidance:g}",
    "teacher-4": "pocket-base, 4 steps, guidance {guidance:g}",
    "student-4": "**pocket, 4 steps**",
    "student-1": "**pocket, 1 step**",
    "warm-4": "reflow alone, 4 steps",
    "warm-1": "reflow alone, 1 step",
}
# Attributes and splits of the evaluation, and how they are named.
QUANTITIES = {
    ("object", "seen"): "objects, seen",
    ("object", "held_out"): "objects, held out",
    ("style", "seen"): "style",
    ("color", "seen"): "color",
    ("count", "seen"): "count",
    ("place", "seen"): "place",
    ("relation", "seen"): "relation",
    ("sign", "seen"): "sign",
    ("everything", "seen"): "all right",
}


# What was expected of several GPUs before it was measured, by their number.
GRID_SPEEDUP = {2: 1.95, 8: 7.0}
PICTURE_SECONDS = {"bfloat16": {2: 0.34, 4: 0.20, 8: 0.14}, "8-bit rows": {2: 0.28, 4: 0.17, 8: 0.12}}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def comparisons(results: dict[str, Any]) -> str:
    """What was expected of the presets before they were measured, and what was measured."""
    rows = [
        [each["title"], each["expected"], f"{each['value']:.3g}", _yes(each["holds"])]
        for each in results["comparisons"]
    ]
    return markdown(["quantity", "expected", "measured", "holds"], rows)


def recording(results: dict[str, Any]) -> str:
    """What recording costs on a GPU."""
    resident = results["resident"]
    pairs = resident["recording on/off, each pair"]
    seconds, steps = resident["seconds of a plain call"], resident["steps"]
    added = resident["recording on/off, median of pairs"] - 1
    rows = [
        ["a plain call", f"{seconds:.2f} s, {steps} steps, {resident['pixels']} px"],
        ["added by recording, median of pairs", f"{added:.1%} ({min(pairs) - 1:+.1%} to {max(pairs) - 1:+.1%})"],
        ["added by recording with attention", f"{resident['attention on/off'] - 1:.0%}"],
        ["GPU memory added to the peak", f"{resident['GPU MiB that recording adds to the peak']:.0f} MiB"],
        ["the same bytes as unrecorded", "yes" if all(resident["same bytes"].values()) else "no"],
        ["a linear preview, on the GPU", f"{results['preview']['ms a step on cuda']:.1f} ms a step"],
    ]
    return f"{results['device']}, torch {results['torch']}; {results['what']}.\n\n" + markdown(["", "measured"], rows)


def families(results: dict[str, Any]) -> str:
    """Time and memory of FLUX.2 klein and Z-Image."""
    rows = []
    for case in results["cases"]:
        limit, seconds = case["limit"], case.get("run", case.get("seconds"))
        memory = [f"{case[key]:.1f} GiB" if key in case else "-" for key in ("measured", "predicted")]
        ratio = f"{case['ratio']:.3f}" if "ratio" in case else "-"
        pair = ", with its teacher" if case["case"].startswith("pair") else ""
        held = f"`{case['model']}`{pair}, `{case['preset']}`"
        rows.append([held, f"{limit} GB" if limit else "-", *memory, f"{seconds:.2f}", ratio, case["card"]])
    head = ["", "GPU memory limit", "peak", "predicted", "s", "run / plain call", "card"]
    return markdown(head, rows) + f"\n{results['note']}\n"


def several_gpus(results: dict[str, Any]) -> str:
    """A grid by several processes, and one picture over several GPUs, with what was expected of them."""
    rows = []
    for row in results["grid"]:
        title, expected = f"a grid of 64 pictures, {row['processes']} GPUs", GRID_SPEEDUP.get(row["processes"])
        facts = f"{max(row['evaluations'])} evaluations, {'the same' if row['same bytes'] else 'other'} bytes"
        limit = ("-", "-") if expected is None else (f"at least {expected:g} times", _yes(row["speedup"] >= expected))
        rows.append([title, f"{row['speedup']:.2f} times one GPU", *limit, facts, row["card"]])
    for row in results["picture"]:
        title = f"one picture, {row['numbers']}, {row['gpus']} GPUs"
        facts = f"relative difference {row['difference']:.2g}, recorded / plain {row['recorded']:.2f}"
        most = PICTURE_SECONDS.get(row["numbers"], {}).get(row["gpus"])
        limit = ("-", "-") if most is None else (f"at most {most:g} s", _yes(row["seconds"] <= most))
        rows.append([title, f"{row['seconds']:.2f} s", *limit, facts, row["card"]])
    return markdown(["", "measured", "expected", "holds", "", "card"], rows)


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def evaluation(card: dict[str, Any]) -> str:
    """What the judge finds in the pictures of the shipped models."""
    rows, facts = [], card["evaluation"]
    guidance = card["defaults"]["pocket-base"]["guidance"]
    for name, title in SETTINGS.items():
        if name in facts["shares"]:
            shares = facts["shares"][name]
            values = [f"{100 * shares[split][each]['value']:.1f}" for each, split in QUANTITIES]
            others = [f"{facts['frechet'][name]:.3f}", f"{facts['diversity'][name]['vendi']:.2f}"]
            rows.append([title.format(guidance=guidance), *values, *others])
    return markdown(["in %", *QUANTITIES.values(), "Fréchet distance", "looks per prompt"], rows)


def targets(card: dict[str, Any]) -> str:
    """What was required of the shipped models, and what was measured."""
    rows, guidance = [], card["defaults"]["pocket-base"]["guidance"]
    for row in card["evaluation"]["targets"]:
        value, upper = row["value"], row["at_most"] is not None
        limit = f"at most {row['at_most']:g}" if upper else f"at least {row['at_least']:g}"
        measured = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        names = [SETTINGS.get(row[each], row[each]) for each in ("setting", "against")]
        compared = [name.format(guidance=guidance).strip("*") for name in names]
        rows.append([compared[0], row["quantity"], row["captions"], compared[1], measured, limit, _yes(row["met"])])
    head = ["", "quantity", "captions", "relative to", "measured, 95 % interval", "required", "met"]
    return markdown(head, rows)


def models() -> str:
    """The models that have a name."""
    rows = []
    for name, model in MODELS.items():
        defaults = ModelDefaults(**{"size": 1024, **DEFAULTS[name]})
        where = f"[{model.repo}](https://huggingface.co/{model.repo})" if model.repo else "ships with fluxnb"
        guidance = "-" if defaults.guidance is None else f"{defaults.guidance:g}"
        rows.append([f"`{name}`", where, str(defaults.steps), guidance, f"{defaults.size}", model.licence])
    return markdown(["name", "weights", "steps", "guidance", "pixels", "license"], rows)


def parts(card: dict[str, Any]) -> str:
    """The parts of pocket and their sizes."""
    names = {
        "transformer": "transformer",
        "text_encoder": "CLIP text encoder",
        "text_encoder_2": "T5 text encoder",
        "vae": "VAE",
    }
    rows = [[title, f"{card['parameters'][name] / 1e6:.2f} million"] for name, title in names.items()]
    return markdown(["part", "parameters"], rows)


def training(card: dict[str, Any]) -> str:
    """How long each stage of the training of pocket took."""
    rows = [[name, f"{stage['seconds']:.0f}"] for name, stage in card["training"].items()]
    return markdown(["stage", "seconds"], rows) + f"\n{card['hardware']}\n"


def card_text(card: dict[str, Any]) -> str:
    """The sentences of the model card."""
    notes = "\n".join(f"- {note}" for note in card["notes"])
    return f"{card['method']}\n\n{card['data']}\n\n{notes}\n\nLicense: {card['license']}\n"


def notebook_texts() -> list[tuple[str, str, str]]:
    """File name, title and first paragraph of each notebook."""
    texts = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [
            cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"
        ]
        title, *paragraphs = "\n\n".join("".join(cell["source"]).strip() for cell in cells).split("\n\n")
        text = next((each for each in paragraphs if not each.startswith(("[!", "<", "#", "```", "|"))), "")  # no badge
        texts.append((path.name, title.removeprefix("# ").strip(), " ".join(text.split())))
    return texts


def notebooks() -> str:
    """The notebooks by title, each with its first paragraph."""
    return "\n".join(f"**[{title}]({name})**\n\n{text}\n" for name, title, text in notebook_texts())


def notebook_list() -> str:
    """The notebooks by title, each with one sentence and a link to Colab."""
    rows = []
    for name, title, text in notebook_texts():
        sentence = re.split(r"(?<=[.?!])\s+(?=[A-Z`*])", text)[0]
        rows.append([f"[{title}](notebooks/{name})", sentence.replace("|", "\\|"), f"[Colab]({colab(name)})"])
    return markdown(["notebook", "question", "run"], rows)


def command_line() -> str:
    """The help of every command, as it is printed."""
    parts = []
    for command in ("", "demo", "plan", "sweep"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([command, "--help"] if command else ["--help"])
        parts.append(f"## fluxnb {command}".rstrip() + f"\n\n```text\n{printed.getvalue().rstrip()}\n```\n")
    return "\n".join(parts)


def included() -> dict[str, str]:
    """The parts that pages include, by the name of their file."""
    return {"claims": claims.table(), "command-line": command_line(), "notebooks": notebooks()}


def written() -> dict[str, str]:
    """The tables between comments in committed pages, by name."""
    full, card, cost, others, several = (
        json.loads(path.read_text(encoding="utf-8")) for path in (FULL, CARD, COST, OTHERS, SEVERAL)
    )
    return {
        "gpu": gpu.table(full),
        "comparisons": comparisons(full),
        "recording": recording(cost),
        "families": families(others),
        "several-gpus": several_gpus(several),
        "evaluation": evaluation(card),
        "targets": targets(card),
        "models": models(),
        "notebooks": notebook_list(),
        "parts": parts(card),
        "training": training(card),
        "card": card_text(card),
    }


def update(text: str, tables: dict[str, str]) -> str:
    """A page with each of its tables replaced by the current one.

    Raises:
        KeyError: a comment names a table that does not exist.
    """
    return TABLE.sub(lambda found: f"{found[1]}\n{tables[found[2]].strip()}\n{gpu.END}", text)


if __name__ == "__main__":
    current = written()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = update(before, current)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: changed")
