"""Draw the evaluation of the shipped models: `python docs/evaluation.py` writes docs/evaluation.png.

The numbers are in `fluxnb/pocket/card.json`, from `python -m fluxnb.train evaluate`.
"""

from __future__ import annotations

import json
from pathlib import Path

from fluxnb.checkpoints.sources import POCKET
from fluxnb.train.evaluation.figure import evaluation_figure


def main() -> None:
    """Read the card and write the figure."""
    card = json.loads((POCKET / "card.json").read_text(encoding="utf-8"))
    evaluation_figure(card["evaluation"]).savefig(Path(__file__).with_name("evaluation.png"), dpi=110)


if __name__ == "__main__":
    main()
