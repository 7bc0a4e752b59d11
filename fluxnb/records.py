"""What a run leaves behind: Step, Trajectory, Film, Cell, Sweep, and Keep, which says how much of it.

Records are frozen. Their tensors are detached copies on the CPU, and nothing in them refers to a pipeline, so they
outlive the model and open anywhere. Frozen does not freeze a tensor's numbers: do not write into them.
"""

from __future__ import annotations

import importlib
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb import flow
from fluxnb.errors import FluxnbError, InputError, checks_itself, cut, one_of
from fluxnb.latents import LinearRGB, unpack
from fluxnb.recipe import Recipe

__all__ = ["Cell", "Film", "Keep", "Step", "Sweep", "Trajectory"]

KINDS = ("x", "v", "x_next")  # what a step can keep
SHOWN = ("x", "v", "clean", "noise", "x_next")  # what can be read from it

Tokens = Float[Tensor, "tokens features"]
Latents = Float[Tensor, "channels height width"]
What = Literal["x", "v", "clean", "noise", "x_next"]


@checks_itself
@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which steps and which tensors of a run to keep; sigmas, norms and seconds are kept for every step.

    The default keeps all: at 1024 px in bfloat16 a step is 1 MiB, at 128 px in float32 32 KiB.

    Arguments:
        steps: None for all, or the indices to keep; negative ones count from the end.
        every: of the chosen steps only each n-th, and always the last.
        tensors: of "x" (what the model saw), "v" (what it answered) and "x_next" (what the scheduler made of it).

    Example:
        >>> [Keep(every=2).wants(i, 5) for i in range(5)]
        [True, False, True, False, True]
    """

    steps: tuple[int, ...] | None = None
    every: int = 1
    tensors: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(self.tensors))
        for name in self.tensors:
            if name not in KINDS:
                raise one_of("tensors", name, KINDS)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"every={cut(self.every)}", "at least 1 is needed", "try every=1 to keep each step")
        if self.steps is not None:
            steps = tuple(self.steps)
            if any(isinstance(index, bool) or not isinstance(index, int) for index in steps):
                raise InputError(f"steps={cut(steps)}", "they are step indices", "try steps=(0, -1)")
            object.__setattr__(self, "steps", steps)

    @classmethod
    def all(cls) -> Keep:
        """Every tensor of every step."""
        return cls()

    @classmethod
    def last(cls) -> Keep:
        """The last step alone."""
        return cls(steps=(-1,))

    @classmethod
    def nothing(cls) -> Keep:
        """No tensors; the sigmas, norms and seconds remain."""
        return cls(tensors=())

    def wants(self, index: int, count: int) -> bool:
        """Whether step `index` of `count` keeps its tensors."""
        if not self.tensors:
            return False
        chosen = self.steps is None or any(index == (i if i >= 0 else count + i) for i in self.steps)
        return chosen and (self.steps is not None or index % self.every == 0 or index == count - 1)

    def nbytes(self, height: int, width: int, steps: int, bytes_per_number: int = 4) -> int:
        """The most memory a run of so many steps and pixels will hold, in bytes.

        Example:
            >>> Keep().nbytes(1024, 1024, steps=4, bytes_per_number=2) / 2**20
            4.5
        """
        kept = sum(self.wants(index, steps) for index in range(steps))
        number = height * width // 4 * bytes_per_number  # 64 numbers for 256 pixels
        # x_next is the next step's x and shares its memory, but for the last of each kept stretch.
        stretches = sum(self.wants(i, steps) and (i + 1 == steps or not self.wants(i + 1, steps)) for i in range(steps))
        per_step = sum(name in self.tensors for name in ("x", "v"))
        if "x_next" not in self.tensors:
            return kept * per_step * number
        return (kept * per_step + (stretches if "x" in self.tensors else kept)) * number


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One evaluation of the model: at sigma it saw x and answered v.

    Tensors are tokens (h/16 w/16, 64) in the dtype of the run, exactly as the model saw and gave them;
    `step.x[None]` goes back into a pipeline as `latents=`. The estimates are computed from x and v in float32, so
    that x = (1 - sigma) clean + sigma noise holds to float precision.

    Arguments:
        index: 0 for the first.
        sigma, dt: the noise level, and how far the step went (negative; sigma + dt is the next level).
        height, width: the picture in pixels.
        tensors: what was kept of "x", "v" and "x_next".
        norms: Euclidean lengths of x and v, kept even where the tensors are not.
        seconds: from the step before (or the first evaluation's start) to this one.
    """

    index: int
    sigma: float
    dt: float
    height: int
    width: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    norms: Mapping[str, float] = field(repr=False)
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "norms", MappingProxyType(dict(self.norms)))

    @property
    def x(self) -> Tokens:
        """What the model saw at this sigma."""
        return self._kept("x")

    @property
    def v(self) -> Tokens:
        """The velocity, the model's own output; under true CFG the combined one."""
        return self._kept("v")

    @property
    def x_next(self) -> Tokens:
        """What the scheduler made of x and v."""
        return self._kept("x_next")

    @property
    def clean(self) -> Tokens:
        """The clean estimate, x - sigma v, in float32."""
        return flow.clean_estimate(self.x, self.v, self.sigma)

    @property
    def noise(self) -> Tokens:
        """The noise estimate, x + (1 - sigma) v, in float32."""
        return flow.noise_estimate(self.x, self.v, self.sigma)

    def latents(self, what: str = "clean") -> Latents:
        """One of "x", "v", "clean", "noise", "x_next" as spatial latents (16, h/8, w/8)."""
        if what not in SHOWN:
            raise one_of("what", what, SHOWN)
        return unpack(getattr(self, what), self.height, self.width)

    @property
    def kept(self) -> bool:
        """Whether x and v are there, and with them the estimates."""
        return "x" in self.tensors and "v" in self.tensors

    def _kept(self, name: str) -> Tensor:
        if name not in self.tensors:
            there = ", ".join(sorted(self.tensors)) or "nothing"
            raise InputError(
                f"{name} of step {self.index}", f"this run kept {there} of it", "run again with keep=fnb.Keep()"
            )
        return self.tensors[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """The whole walk from noise to picture: what was asked, every step, the picture, and what it took.

    Arguments:
        image: the picture; for an unfinished walk the decoded clean estimate so far; None where the call that was
            watched gave no picture.
        recipe: what was asked, fully resolved; None where a watched call does not tell (embeddings instead of a
            prompt, a generator without a known seed, another picture to start from).
        finished: False for a walk that was stopped or broke off.
        sigmas: the levels planned, the final 0 included, so one more than the steps planned.
        steps: the steps taken.
        height, width: pixels.
        seconds: of "encode", "denoise" and "decode".
        versions: of the libraries and of fluxnb.
        model: whose walk this is, for captions.
        preset: how the model was held in memory, for captions.
        preview: linear map from latents to colours, so that the walk can show itself without its model.

    Example:
        >>> walk.finished, len(walk), walk.sigmas                                   # doctest: +SKIP
        (True, 4, (1.0, 0.75, 0.5, 0.25, 0.0))
        >>> walk.steps[0].latents("clean").shape                                    # doctest: +SKIP
        torch.Size([16, 16, 16])
    """

    image: Image.Image | None = field(repr=False)
    recipe: Recipe | None
    finished: bool
    sigmas: tuple[float, ...]
    steps: tuple[Step, ...] = field(repr=False)
    height: int
    width: int
    seconds: Mapping[str, float] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)
    model: str = ""
    preset: str = ""
    preview: LinearRGB | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", MappingProxyType(dict(self.seconds)))
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __getitem__(self, index: int) -> Step:
        return self.steps[index]

    @property
    def x_T(self) -> Tokens:
        """Where the walk began: pure noise for a text-to-image run."""
        return self.steps[0].x

    @property
    def final(self) -> Tokens:
        """Where it ended: the last step's x_next, which the decoder turned into the picture."""
        return self.steps[-1].x_next

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors; one that two steps share counts once."""
        seen = {tensor.data_ptr(): tensor.nbytes for step in self.steps for tensor in step.tensors.values()}
        return sum(seen.values())

    @property
    def caption(self) -> str:
        """One line that says what this is: prompt, model, seed, steps; plain text, not escaped."""
        count = f"{len(self.steps)} of {len(self.sigmas) - 1} steps, unfinished"
        if self.finished:
            count = f"{len(self.steps)} step{'' if len(self.steps) == 1 else 's'}"
        if self.recipe is None:
            return ", ".join(part for part in ("a watched call", self.model, count) if part)
        asked = self.recipe
        extra = [asked.sampler] if asked.sampler != "euler" else []
        extra += [f"guidance {asked.guidance:g}"] if asked.guidance else []
        return ", ".join(part for part in (asked.prompt, self.model, f"seed {asked.seed}", count, *extra) if part)

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, safetensors with a JSON header; see `fnb.open_trajectory`."""
        return Path(importlib.import_module("fluxnb.store").save(self, path))

    def to_html(self, path: str | Path) -> Path:
        """Write a self-contained page that scrubs through the steps, no kernel and no network needed."""
        return Path(importlib.import_module("fluxnb.export.html").write(self, path))

    def __repr__(self) -> str:
        return f"Trajectory({self.caption!r}, {self.height} x {self.width} px)"

    def _repr_png_(self) -> bytes | None:
        return _figure("filmstrip", self) or (None if self.image is None else _png(self.image))


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """The decoded frames of a walk: what they show and who decoded them.

    Arguments:
        frames: one picture per step shown, in order.
        what: "x", "v", "clean", "noise" or "x_next".
        by: "vae", "linear", "tiny" ... the decoder.
        sigmas: the level of each frame.
        steps: the step index of each frame.
        caption: one line that says whose walk it is.
        error: root mean square difference from the VAE's pictures (0 to 1 scale), where known; 0.0 for the VAE.
        seconds: for decoding all frames.
    """

    frames: tuple[Image.Image, ...] = field(repr=False)
    what: str
    by: str
    sigmas: tuple[float, ...]
    steps: tuple[int, ...]
    caption: str
    error: float | None = None
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.frames)

    def __getitem__(self, index: int) -> Image.Image:
        return self.frames[index]

    def _repr_png_(self) -> bytes | None:
        return _figure("filmstrip", self) or (_png(self.frames[-1]) if self.frames else None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One square of a grid: a recipe and its picture.

    Arguments:
        recipe: what was asked, fully resolved.
        path: the PNG in the store, None without a store.
        key: the address in the store.
        exact: same bytes as the plain diffusers call.
        made: True if this sweep computed it, False if the store had it.
        evaluations: of the transformer that this cell cost, shared ones counted where they were first made.
        seconds: of "denoise" and "decode".
        trajectory: the walk, where it was asked for.
        picture: the image itself, None where it rests on disk; read `.image`.
    """

    recipe: Recipe
    key: str = field(repr=False)
    path: Path | None = None
    exact: bool = True
    made: bool = True
    evaluations: int = field(default=0, repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    trajectory: Trajectory | None = field(default=None, repr=False)
    picture: Image.Image | None = field(default=None, repr=False)

    @property
    def image(self) -> Image.Image:
        """The picture, read from disk where it is not held."""
        if self.picture is not None:
            return self.picture
        if self.path is None:
            raise InputError("a cell without a picture", "it was neither held nor stored", "run the sweep again")
        with Image.open(self.path) as opened:
            return opened.convert("RGB")

    def _repr_png_(self) -> bytes:
        return _png(self.image)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """The finished grid: its cells in the order of the axes, and what it cost.

    Arguments:
        cells: in the order of the axes, the last axis fastest; fewer than asked for if the sweep was stopped.
        axes: the field names and their values, in order.
        finished: False if it was stopped.
        seconds: wall time.
        evaluations: of the transformer, made by this sweep.
        encodes: of prompts, made by this sweep.
    """

    cells: tuple[Cell, ...] = field(repr=False)
    axes: Mapping[str, tuple[Any, ...]]
    finished: bool = True
    seconds: float = 0.0
    evaluations: int = 0
    encodes: int = 0
    model: str = ""

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __getitem__(self, index: int) -> Cell:
        return self.cells[index]

    def select(self, **fields: Any) -> tuple[Cell, ...]:
        """The cells whose recipes have these values, for example `grid.select(seed=3, steps=4)`."""
        return tuple(
            cell for cell in self.cells if all(getattr(cell.recipe, name) == value for name, value in fields.items())
        )

    @property
    def caption(self) -> str:
        """One line that says what this is; plain text, not escaped."""
        sizes = " x ".join(f"{len(values)} {name}" for name, values in self.axes.items())
        missing = "" if self.finished else ", unfinished"
        return ", ".join(part for part in (sizes, self.model, f"{len(self.cells)} cells") if part) + missing

    def to_html(self, path: str | Path) -> Path:
        """Write a self-contained page of the grid, no kernel and no network needed."""
        return Path(importlib.import_module("fluxnb.export.html").write(self, path))

    def __repr__(self) -> str:
        return f"Sweep({self.caption!r})"

    def _repr_png_(self) -> bytes | None:
        return _figure("contact_sheet", self)


def same_walk(steps: Sequence[Step]) -> bool:
    """Whether each step begins where the one before ended, which inpainting, for one, does not do."""
    pairs = itertools.pairwise(steps)
    return all(a.x_next is b.x for a, b in pairs if "x_next" in a.tensors and "x" in b.tensors)


def _figure(view: str, record: object) -> bytes | None:
    """The record drawn by a view, by name: records stand below the views and must not import them."""
    try:
        draw: Callable[[object], Any] = getattr(importlib.import_module("fluxnb.plots"), view)
        figure, buffer = draw(record), io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight")
    except (ImportError, AttributeError, FluxnbError):
        return None  # no matplotlib, or nothing kept to draw: the plain picture is shown instead
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
