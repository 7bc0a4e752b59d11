"""The table of docs/pipelines.md: what a recording of each pipeline holds, found out with tiny instances.

python -m tests.families.table    # writes the table
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tests.families.others import OTHERS
from tests.families.tiny import PIPELINES

DOCUMENT = Path(__file__).parents[2] / "docs" / "pipelines.md"
HEADER = ("pipeline", "class", "recorded", "x", "x_next", "run, sweep")
SIZE = {"height": 64, "width": 96, "num_inference_steps": 3}
FAMILIES = {
    "FLUX.2 klein, distilled": ("Flux2KleinPipeline", "klein", {"guidance_scale": 1.0}),
    "FLUX.2 klein base": ("Flux2KleinPipeline", "klein-base", {}),
    "Z-Image": ("ZImagePipeline", "z-image", {}),
    "Z-Image-Turbo": ("ZImagePipeline", "z-image-turbo", {"guidance_scale": 0.0}),
}
NAMES = ("FLUX.1", "FLUX.1 (modular)", *FAMILIES, *OTHERS)


def made(name: str) -> tuple[Any, dict[str, Any]]:
    """A tiny pipeline of a row, and the arguments of its call."""
    from tests.conftest import toy_pipeline

    if name in OTHERS:
        _, make, arguments = OTHERS[name]
        return make(), {**SIZE, "output_type": "np", **arguments()}
    text = {"prompt": "a red fox", "max_sequence_length": 48}
    if name in FAMILIES:
        _, model, more = FAMILIES[name]
        return PIPELINES[model](), {**SIZE, **text, "output_type": "np", **more}
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    if name == "FLUX.1":
        return pipe, {**SIZE, **text, "output_type": "np"}
    from diffusers.modular_pipelines import FluxAutoBlocks

    modular = FluxAutoBlocks().init_pipeline()
    modular.update_components(**pipe.components)
    modular.set_progress_bar_config(disable=True)
    return modular, {**SIZE, **text, "output": "images", "output_type": "np"}


def called(pipe: Any, arguments: dict[str, Any], seed: int = 3) -> Any:
    """What the pipeline returns: an array of pictures."""
    import numpy as np
    import torch

    output = pipe(**arguments, generator=torch.Generator().manual_seed(seed))
    pictures = getattr(output, "images", None) if not isinstance(output, np.ndarray | list) else output
    return np.asarray(output[0] if pictures is None else pictures)


def recorded(pipe: Any, arguments: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    """Pictures and record of two recorded calls, and the warnings of the recorder."""
    import fluxnb as fnb

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with fnb.recording(pipe) as recorder:
            pictures = [called(pipe, arguments, seed) for seed in (3, 4)]
    reasons = [str(each.message) for each in caught if each.category is fnb.RecordingWarning]
    return pictures, recorder.trajectories, reasons


def row_of(name: str, pipe: Any, trajectories: Any, reasons: list[str]) -> tuple[str, ...]:
    """One row of the table."""
    from fluxnb.families.registry import family_of

    kind = type(pipe).__name__
    sampled = "yes" if family_of(pipe) is not None else "no"
    if not trajectories:
        reason = reasons[0].partition("is not recorded: ")[2].partition(". The picture")[0]
        return name, kind, f"no: {reason}", "", "", sampled
    first = trajectories[0]
    g = first.geometry
    layout = f"tokens of {g.features} numbers ({g.order})" if g.layout == "tokens" else "latents in space"
    follows = "x + dt v"
    if not all((step.x + step.dt * step.v - step.x_next).abs().max() < 1e-5 for step in first.steps):
        follows = "fresh noise" if first.predicts == "trigflow" else "a step of higher order"
    predicts = {
        "velocity": "",
        "mean velocity": ", v is the mean velocity over the step",
        "trigflow": ", TrigFlow read as a rectified flow",
    }[first.predicts]
    return name, kind, f"yes{predicts}", f"{layout}, {g.channels} channels, {g.cell} px a cell", follows, sampled


def markdown(row: tuple[str, ...]) -> str:
    """A row as Markdown."""
    return f"| {' | '.join(row)} |"


def main() -> None:
    """Write the table into the document, between its two markers."""
    rows = []
    for name in NAMES:
        pipe, arguments = made(name)
        _, trajectories, reasons = recorded(pipe, arguments)
        rows.append(row_of(name, pipe, trajectories, reasons))
    lines = [markdown(HEADER), markdown(("---",) * len(HEADER)), *map(markdown, rows)]
    before, start, rest = DOCUMENT.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table -->")
    DOCUMENT.write_text(before + start + "\n".join(lines) + "\n" + end + after)


if __name__ == "__main__":
    main()
