"""The lab: a form that requests images and displays them as they are sampled, while the kernel stays free.

The widget takes a callable that starts the sampling, so it needs no model and is tested with a fake.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict, Unpack

import traitlets

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError, UnavailableError, shorten
from fluxnb.html.front_end import script, style
from fluxnb.io.files import without_folders
from fluxnb.records import Cell, Step, Sweep
from fluxnb.records.latents import LinearRGB
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.visuals.frames import webp
from fluxnb.visuals.labels import value_label
from fluxnb.widgets.background import Worker, outcome
from fluxnb.widgets.view import View, fallback_png

__all__ = ["MAX_CELLS", "Generate", "Job", "Lab", "StepCallback", "format_value", "parse_form", "parse_numbers"]

MAX_CELLS = 1024  # images that a browser displays at once without effort
PREVIEW_INTERVAL = 0.04  # seconds; a screen shows no more previews than that
TABLE_AXES = ("seed", "steps")  # rows and columns


class FormFields(TypedDict, total=False):
    """The fields of the form as keyword arguments: texts, as they are typed there, or values."""

    prompt: str
    seeds: str | int | Iterable[int]
    steps: str | int | Iterable[int]
    width: str | int
    height: str | int
    guidance: str | float
    negative: str


FIELDS = tuple(FormFields.__annotations__)


# ----------------------------------------------------------------------------------------------------------------- form
def parse_numbers(name: str, text: str) -> list[int]:
    """Parse whole numbers and ranges.

    Raises:
        InputError: anything else, or more numbers than a lab displays.

    Example:
        >>> parse_numbers("seeds", "0-2, 7"), parse_numbers("seeds", "18446744073709551615")
        ([0, 1, 2, 7], [18446744073709551615])
    """
    remedy = f"try {name} 0-3, or 1, 5, 9"
    numbers: list[int] = []
    for part in re.split(r"[,;\s]+", re.sub(r"\s*(-|–|\.\.)\s*", "-", text.strip())):
        match = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part, re.ASCII)
        if match is None:
            raise InputError(f"{name}={shorten(text)}", "whole numbers and ranges are possible", remedy)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first + len(numbers) >= MAX_CELLS:
            reason = "a range runs upwards" if last < first else f"a lab shows at most {MAX_CELLS} pictures"
            raise InputError(f"{name}={shorten(text)}", reason, remedy)
        numbers += range(first, last + 1)
    return numbers


def parse_form(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse the texts of the form into the arguments of a sweep; `Recipe` validates the values.

    Raises:
        InputError: text in a field for numbers.

    Example:
        >>> parse_form({"prompt": "a fox", "seeds": "0-1", "steps": "4", "width": "128"})
        {'prompts': 'a fox', 'seeds': [0, 1], 'steps': [4], 'width': 128}
    """
    arguments: dict[str, Any] = {"prompts": texts.get("prompt", "")}
    for name in ("seeds", "steps"):
        arguments[name] = parse_numbers(name, texts[name])
    for name in ("height", "width"):
        if name in texts:
            arguments[name] = _parse_length(name, texts[name])
    if "guidance" in texts:
        try:
            arguments["guidance"] = float(texts["guidance"].strip().replace(",", "."))
        except ValueError:
            given = f"guidance={shorten(texts['guidance'])}"
            raise InputError(given, "it is a number from 0 to 100", "try guidance 2.5") from None
    if texts.get("negative"):
        arguments["negative"] = texts["negative"]
    return arguments


def _parse_length(name: str, text: str) -> int:
    if not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII):
        raise InputError(f"{name}={shorten(text)}", "it is a length in pixels", f"try {name} 128")
    return int(text)


def format_value(value: Any) -> str:
    """Format a value as a user would type it into the form.

    Example:
        >>> format_value(range(3)), format_value(4)
        ('0, 1, 2', '4')
    """
    if isinstance(value, Sequence | range) and not isinstance(value, str):
        return ", ".join(str(each) for each in value)
    return str(value)


# ------------------------------------------------------------------------------------------------------------------ job
@dataclass(frozen=True, kw_only=True)
class Job:
    """Images that are about to be sampled.

    Arguments:
        recipes: the requested recipes, resolved, in the order of the axes.
        cells: samples them; closing it stops the work.
        steps: how many steps will be computed and reported, with shared prefixes counted once.
        axes: field names and their values, in order.
        model: name of the model.
        preview: maps latents to RGB for intermediate previews; None shows none.
        seconds: estimated duration, None if unknown.
    """

    recipes: Sequence[ResolvedRecipe]
    cells: Iterator[Cell]
    steps: int
    axes: Mapping[str, tuple[Any, ...]]
    model: str = ""
    preview: LinearRGB | None = None
    seconds: float | None = None


StepCallback = Callable[[Step, ResolvedRecipe], Any]
Generate = Callable[[Mapping[str, Any], StepCallback], Job]


@dataclass(eq=False)
class _Progress:
    """How far a job has come.

    Arguments:
        job: the job.
        started: time of its start, from `time.monotonic`.
        last_preview: time of the last preview that was sent.
        steps: steps computed so far.
        cells: finished cells, in the order of their arrival.
    """

    job: Job
    started: float = field(default_factory=time.monotonic)
    last_preview: float = 0.0
    steps: int = 0
    cells: list[Cell] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._indices = {recipe: index for index, recipe in enumerate(self.job.recipes)}

    @property
    def total(self) -> int:
        """How many images were requested."""
        return len(self.job.recipes)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float | None:
        """Estimated seconds until the end, None if unknown."""
        # The first steps include one-time preparation, so the estimate of the plan is better until a cell is there.
        if not self.cells and self.job.seconds is not None:
            return max(0.0, self.job.seconds - self.elapsed)
        return self.elapsed * (1 / self.fraction - 1) if self.cells else None

    @property
    def fraction(self) -> float:
        """Completed share of the work, 0 to 1; decoding an image counts as one step."""
        return min(1.0, (self.steps + len(self.cells)) / (self.job.steps + self.total))

    def index_of(self, recipe: ResolvedRecipe) -> int | None:
        """Position of a recipe among the requested ones, None for a recipe that was not requested."""
        return self._indices.get(recipe)

    def sweep(self, *, finished: bool) -> Sweep:
        """The finished cells in the order in which they were requested."""
        cells = sorted(self.cells, key=lambda cell: self._indices.get(cell.recipe, self.total))
        return Sweep(
            cells=tuple(cells),
            axes=dict(self.job.axes),
            finished=finished,
            seconds=self.elapsed,
            evaluations=sum(cell.evaluations for cell in cells),
            model=self.job.model,
        )


# --------------------------------------------------------------------------------------------------------------- widget
class Lab(View):
    """A form and the images it requests; created by `fluxnb.lab`.

    Keys: Ctrl-Enter generates, Escape stops.

    Arguments:
        generate: called with the arguments of a sweep and a step callback; returns the Job. It calls the callback
            after each step, and samples no further step of an image for which the callback returned `stop`.
        fields: initial texts of the form by name: "prompt", "seeds", "steps", "width", "height", and "guidance" and
            "negative" for models that have them.
        model: name of the model, for the title.
        stop: the value that ends the sampling, `fluxnb.STOP`.
    """

    _esm = script("lab")
    _css = style("lab")

    form = traitlets.Dict().tag(sync=True)
    table = traitlets.Dict().tag(sync=True)  # names of rows and columns, and the recipe of each tile
    state = traitlets.Dict().tag(sync=True)  # phase, counts and the error message
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)  # the image of each tile, empty until it is finished

    def __init__(self, generate: Generate, fields: Mapping[str, str], *, model: str, stop: Any) -> None:
        self._generate, self._stop = generate, stop
        self._progress: _Progress | None = None  # None while nothing is sampled
        self._worker: Worker[Cell] | None = None
        self._generating = threading.Lock()
        self._grids: list[Sweep] = []
        self._run_count = 0
        self.problem: BaseException | None = None
        super().__init__(form={"model": model, "fields": dict(fields)}, state=_state("idle"))
        self.on_msg(self._on_message)

    def __repr__(self) -> str:
        phase, done, total = (self.state.get(name) for name in ("phase", "done", "total"))
        return f"Lab({self.form['model']}, {phase}{f', {done} of {total} pictures' if total else ''})"

    # ---------------------------------------------------------------------------------------------------------- reading
    @property
    def grids(self) -> tuple[Sweep, ...]:
        """The results so far, one Sweep per press of the button."""
        return tuple(self._grids)

    @property
    def grid(self) -> Sweep:
        """The latest grid, for `fluxnb.explore` and `fluxnb.scrub`; while sampling, the cells that are finished.

        Raises:
            UnavailableError: no image is finished yet.
        """
        progress = self._progress
        if progress is not None and progress.cells:
            return progress.sweep(finished=False)
        if not self._grids:
            raise UnavailableError(
                "a lab without pictures", "none is finished yet", "press generate, or call lab.generate()"
            )
        return self._grids[-1]

    # --------------------------------------------------------------------------------------------------------- sampling
    @entry_point(accepts=FormFields)
    def generate(self, **fields: Unpack[FormFields]) -> Lab:
        """Start sampling, as the button does; returns at once.

        Arguments:
            fields: texts or numbers that replace those of the form: `seeds="0-3"`, `steps=[1, 4]`.

        Raises:
            InputError: the request is not possible, or images are being sampled already.

        Example:
            >>> lab.generate(prompt="a fox", seeds="0-3").wait().grid               # doctest: +SKIP
            Sweep('1 prompt x 4 seed x 4 steps, pocket, 16 cells')
        """
        with self._generating:  # a button press and a call from a cell may come in two threads
            if self._worker is not None and self._worker.running:
                raise InputError("generate", "pictures are being sampled", "stop them first with lab.cancel()")
            self.problem = None
            texts = {**self.form["fields"], **{name: format_value(value) for name, value in fields.items()}}
            arguments = parse_form(texts)
            self.form = {**self.form, "fields": texts}
            job = self._generate(arguments, self._on_step)
            progress = self._progress = self._lay_out(job)
            self._worker = Worker(
                job.cells,
                on_item=partial(self._receive, progress),
                on_end=partial(self._end, progress),
                name="fluxnb-lab",
            )
            self._worker.start()
        return self

    def cancel(self) -> None:
        """Stop after the current step; finished images remain."""
        if self._worker is not None:
            self._worker.stop()

    @entry_point("timeout")
    def wait(self, timeout: float | None = None) -> Lab:
        """Wait until the sampling ends, at most `timeout` seconds, and raise the error that ended it, if any."""
        if self._worker is not None:
            self._worker.join(timeout)
        if self.problem is not None:
            raise self.problem
        return self

    def close(self) -> None:
        """Stop and close the connection to the front end."""
        self.cancel()
        super().close()

    def _lay_out(self, job: Job) -> _Progress:
        """Display an empty tile for each image of a new job."""
        if len(job.recipes) > MAX_CELLS:
            raise InputError(
                f"{len(job.recipes)} pictures", f"a lab shows at most {MAX_CELLS}", "use fnb.sweep for larger grids"
            )
        rows, columns = (tuple(job.axes.get(name, (None,))) for name in TABLE_AXES)
        self.frames = [b""] * len(job.recipes)
        self._run_count += 1
        self.table = {
            "run": self._run_count,  # makes the trait differ when the same request is repeated
            "rows": [value_label("seed", value) for value in rows],
            "columns": [value_label("steps", value) for value in columns],
            "tiles": [
                {"row": _index(rows, r.seed), "column": _index(columns, r.steps), "steps": r.steps, "name": _name(r)}
                for r in job.recipes
            ],
            "width": job.recipes[0].width,
            "height": job.recipes[0].height,
        }
        self.state = _state("running", total=len(job.recipes), remaining=job.seconds)
        return _Progress(job)

    def _receive(self, progress: _Progress, cell: Cell) -> None:
        """Store and send a finished image."""
        progress.cells.append(cell)
        index = progress.index_of(cell.recipe)
        if index is None:
            return  # not among the requested images, so there is no tile for it
        self.frames[index] = webp(cell.image)
        self._send_frame(progress, index, self.frames[index], step=0)

    def _on_step(self, step: Step, recipe: ResolvedRecipe) -> Any:
        """Count a step and send its preview; returns the stop value once `cancel` was called."""
        progress, worker = self._progress, self._worker
        if progress is None or worker is None or worker.stopping:
            return self._stop
        progress.steps += 1
        index, now = progress.index_of(recipe), time.monotonic()
        preview = progress.job.preview
        if index is not None and preview is not None and step.kept and now - progress.last_preview > PREVIEW_INTERVAL:
            progress.last_preview = now
            image = preview.pictures(step.latents("clean")[None])[0]
            self._send_frame(progress, index, webp(image), step=step.index + 1)
        return None

    def _send_frame(self, progress: _Progress, index: int, frame: bytes, *, step: int) -> None:
        counts = {"done": len(progress.cells), "remaining": progress.remaining, "fraction": progress.fraction}
        self.send({"kind": "frame", "index": index, "step": step, **counts}, buffers=[frame])

    def _end(self, progress: _Progress, problem: Exception | None) -> None:
        done = len(progress.cells)
        phase = outcome(problem, done=done, total=progress.total)
        if problem is not None:
            self.problem = problem
        message, remedy = ("", "") if problem is None else _message_and_remedy(problem)
        if progress.cells:
            self._grids.append(progress.sweep(finished=phase == "finished"))
            self._fallback = fallback_png([cell.image for cell in progress.cells], columns=8, side=96, limit=24)
        self._progress = None
        self.send_state("frames")  # for views that are opened later
        self.state = _state(
            phase, done=done, total=progress.total, elapsed=progress.elapsed, message=message, remedy=remedy
        )

    def _on_message(self, _: object, content: dict[str, Any], buffers: object) -> None:
        kind = content.get("kind")
        if kind == "cancel":
            self.cancel()
        elif kind == "generate":
            fields = content.get("fields")
            try:
                self.generate(**{name: str(text) for name, text in (fields or {}).items() if name in FIELDS})
            except Exception as problem:  # a message has no caller that would see it
                self.problem = problem
                message, remedy = _message_and_remedy(problem)
                self.state = _state("failed", message=message, remedy=remedy)


def _message_and_remedy(problem: BaseException) -> tuple[str, str]:
    """What is wrong, and what to do about it; a notebook saves both, so they hold no folders."""
    if isinstance(problem, FluxnbError) and problem.remedy:
        message, remedy = str(FluxnbError(problem.given, problem.possible)), str(FluxnbError("", "", problem.remedy))
        return without_folders(message), without_folders(remedy.strip())
    return without_folders(f"{type(problem).__name__}: {problem}"), "See lab.problem for the traceback."


def _state(phase: str, **values: Any) -> dict[str, Any]:
    empty = {"done": 0, "total": 0, "remaining": None, "elapsed": None, "message": "", "remedy": ""}
    return {"phase": phase, **empty, **values}


def _name(recipe: ResolvedRecipe) -> str:
    return ", ".join([recipe.prompt, value_label("seed", recipe.seed), value_label("steps", recipe.steps)])


def _index(values: Sequence[Any], value: Any) -> int:
    return list(values).index(value) if value in values else 0
