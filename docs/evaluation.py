"""Draw the acceptance table of the shipped student: `python docs/evaluation.py` writes docs/evaluation.png.

The numbers are in `fluxnb/pocket/card.json`, from `python -m fluxnb.train evaluate`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from fluxnb.checkpoints.sources import POCKET
from fluxnb.train.evaluation.acceptance import acceptance
from fluxnb.train.evaluation.evaluator import EvalConfig
from fluxnb.train.evaluation.figure import figure_of
from fluxnb.train.evaluation.statistics import Estimate


def main() -> None:
    """Read the card and write the figure."""
    evaluation = json.loads((POCKET / "card.json").read_text(encoding="utf-8"))["evaluation"]
    table = {
        label: {name: Estimate(**{key: math.nan if value is None else value for key, value in each.items()})
                for name, each in row.items()}
        for label, row in evaluation["settings"].items()
    }  # fmt: skip
    config = {name: evaluation["config"][name] for name in ("count", "seeds", "prompts", "noises", "first_seed")}
    figure = figure_of(table, acceptance(table), note=EvalConfig(**config).describe())
    figure.savefig(Path(__file__).with_name("evaluation.png"), dpi=110)


if __name__ == "__main__":
    main()
