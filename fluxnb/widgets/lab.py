"""The lab: a form that requests images and displays them as they are sampled, while the kernel stays free.

The form is above the explorer of the grid that it requested last. The widget takes a callable that starts the
sampling, so it needs no model and is tested with a fake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import traitlets

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError, UnavailableError, unknown_choice
from fluxnb.html.front_end import script, style
from fluxnb.html.grid_page import SHOWS, GridEncoder
from fluxnb.io import import_recipe
from fluxnb.io.files import without_folders
from fluxnb.records import Cell, Step, Sweep
from fluxnb.records.latents import LinearRGB
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.visuals.frames import Decode, webp
from fluxnb.widgets.background import Worker, current_cell, outcome, stop_earlier
from fluxnb.widgets.fallback import fallback_of_cells
from fluxnb.widgets.form import (
    FIELDS,
    MAX_CELLS,
    FormFields,
    fields_of,
    format_numbers,
    format_value,
    parse_form,
    parse_numbers,
)
from fluxnb.widgets.grid_view import GridView, Results

__all__ = ["Generate", "Job", "Lab", "StepCallback"]

PREVIEW_INTERVAL = 0.04  # seconds; a screen shows no more previews than that
MAX_RUNS = 20  # whose images remain in memory
LARGEST_FILE = 64 * 2**20  # bytes of a picture that is dropped on the lab


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
        notices: sentences about the request, such as the part of the prompt that is cut off.
        decode: maps latents to images for the frames of the finished cells; None uses the linear preview.
    """

    recipes: Sequence[ResolvedRecipe]
    cells: Iterator[Cell]
    steps: int
    axes: Mapping[str, tuple[Any, ...]]
    model: str = ""
    preview: LinearRGB | None = None
    seconds: float | None = None
    notices: Sequence[str] = ()
    decode: Decode | None = None


StepCallback = Callable[[Step, ResolvedRecipe], Any]
Generate = Callable[[Mapping[str, Any], StepCallback], Job]


@dataclass(eq=False)
class _Progress:
    """How far a job has come.

    Arguments:
        job: the job.
        results: its cells.
        fields: the texts of the form.
        started: time of its start, from `time.monotonic`.
        last_preview: time of the last preview that was sent.
        steps: steps computed so far.
    """

    job: Job
    results: Results
    fields: Mapping[str, str]
    started: float = field(default_factory=time.monotonic)
    last_preview: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        self.requested = frozenset(self.job.recipes)

    @property
    def done(self) -> int:
        """How many images are finished."""
        return len(self.results.received)

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
        if not self.done and self.job.seconds is not None:
            return max(0.0, self.job.seconds - self.elapsed)
        return self.elapsed * (1 / self.fraction - 1) if self.done else None

    @property
    def fraction(self) -> float:
        """Completed share of the work, 0 to 1; decoding an image counts as one step."""
        return min(1.0, (self.steps + self.done) / (self.job.steps + self.total))


# --------------------------------------------------------------------------------------------------------------- widget
class _Numbers(traitlets.TraitType):
    """A tuple of whole numbers, which may be given as a text, as one number or as any sequence."""

    default_value: tuple[int, ...] = ()

    def validate(self, obj: Any, value: Any) -> tuple[int, ...]:
        return tuple(parse_numbers(str(self.name), format_value(value)))


class _LatestGrid(traitlets.Instance):
    """The trait `grid`, which raises an error with a remedy until an image is finished."""

    def get(self, obj: Any, cls: Any = None) -> Sweep:
        grid = super().get(obj, cls)
        if grid is None:
            raise UnavailableError(
                "a lab without pictures", "none is finished yet", "press generate, or call lab.generate()"
            )
        return grid


class Lab(GridView):
    """A form and the explorer of the grid that it requested; created by `fluxnb.lab`.

    Keys: Ctrl-Enter generates, Escape stops; those of the explorer in the grid.

    Arguments:
        generate: called with the arguments of a sweep and a step callback; returns the Job. It calls the callback
            after each step, and samples no further step of an image for which the callback returned `stop`.
        fields: initial texts of the form by name: "prompt", "seeds", "steps", "width", "height", and "guidance" and
            "negative" for models that have them.
        model: name of the model, for the title.
        stop: the value that ends the sampling, `fluxnb.STOP`.
        examples: prompts that the form offers.
        owner: the model, to be compared by identity.

    Attributes:
        prompt, seeds, steps: the values of the form; setting one changes the form.
        running: whether images are being sampled.
        problem: the exception that ended the latest request, or None.
        grid: the latest grid as a Sweep; it changes at the end of each run.
        fields: the texts of the form by name.
    """

    _view = "lab"
    _absent = "This lab needs a kernel: run the cell."
    _esm = script("lab")
    _css = style("lab")

    form = traitlets.Dict().tag(sync=True)
    fields = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    history: Any = traitlets.List().tag(sync=True)
    prompt = traitlets.Unicode()
    seeds = _Numbers()
    steps = _Numbers()
    running = traitlets.Bool(False)
    problem = traitlets.Any(None)
    grid = _LatestGrid(Sweep, allow_none=True)

    def __init__(
        self,
        generate: Generate,
        fields: Mapping[str, str],
        *,
        model: str,
        stop: Any,
        examples: Sequence[str] = (),
        owner: object = None,
    ) -> None:
        self._generate, self._stop = generate, stop
        self._owner, self._cell = owner, current_cell()
        if self._cell is not None:
            stop_earlier(owner, self._cell)  # the cell is run again
        self._progress: _Progress | None = None  # None while nothing is sampled
        self._worker: Worker[Cell] | None = None
        self._generating = threading.Lock()
        self._runs: dict[int, Results] = {}
        self._grids: list[Sweep] = []
        self._run_count = 0
        form = {"model": model, "examples": list(examples)}
        results = Results(encoder=GridEncoder({}), axes={}, model=model, state="empty")
        super().__init__(results, Path("starred"), form=form, fields=dict(fields), state=_state("idle"))

    def __repr__(self) -> str:
        phase, done, total = (self.state.get(name) for name in ("phase", "done", "total"))
        return f"Lab({self.form['model']}, {phase}{f', {done} of {total} pictures' if total else ''})"

    # ------------------------------------------------------------------------------------------------- values as traits
    @traitlets.validate("fields")
    def _validate_fields(self, proposal: Any) -> dict[str, str]:
        for name in proposal["value"]:
            if name not in FIELDS:
                raise unknown_choice("field", name, FIELDS)
        return {name: format_value(value) for name, value in proposal["value"].items()}

    @traitlets.observe("fields")
    def _fields_changed(self, change: Any) -> None:
        texts = change["new"]
        self.prompt = texts.get("prompt", "")
        for name in ("seeds", "steps"):
            try:
                setattr(self, name, parse_numbers(name, texts.get(name, "")))
            except InputError:  # being typed; the value remains the last valid one
                continue

    @traitlets.observe("prompt", "seeds", "steps")
    def _value_changed(self, change: Any) -> None:
        name, value, text = change["name"], change["new"], self.fields.get(change["name"], "")
        if name == "prompt":
            unchanged = text == value
        else:
            try:
                unchanged = tuple(parse_numbers(name, text)) == value
            except InputError:
                unchanged = False
        if not unchanged:
            self.fields = {**self.fields, name: value if name == "prompt" else format_numbers(value)}

    # ---------------------------------------------------------------------------------------------------------- reading
    @property
    def grids(self) -> tuple[Sweep, ...]:
        """The results so far, one Sweep per run."""
        return tuple(self._grids)

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
            texts = {**self.fields, **{name: format_value(value) for name, value in fields.items()}}
            arguments = parse_form(texts)
            self.fields = texts
            job = self._generate(arguments, self._on_step)
            progress = self._progress = self._start(job, texts)
            self._worker = Worker(
                job.cells,
                on_item=partial(self._receive, progress),
                on_end=partial(self._end, progress),
                name="fluxnb-lab",
                owner=self._owner,
                cell=self._cell,
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
            self._complete()
        if self.problem is not None:
            raise self.problem
        return self

    def close(self) -> None:
        """Stop and close the connection to the front end."""
        self.cancel()
        super().close()

    def _start(self, job: Job, texts: Mapping[str, str]) -> _Progress:
        """Display an empty cell for each image of a new job."""
        if len(job.recipes) > MAX_CELLS:
            raise InputError(
                f"{len(job.recipes)} pictures", f"a lab shows at most {MAX_CELLS}", "use fnb.sweep for larger grids"
            )
        self._run_count += 1
        encoder = GridEncoder(job.axes, model=job.model, shows=SHOWS, decode=job.decode)
        results = Results(encoder=encoder, axes=job.axes, model=job.model, run=self._run_count)
        self._runs[results.run] = results
        for old in list(self._runs)[:-MAX_RUNS]:
            del self._runs[old]
        progress = _Progress(job, results, dict(texts))
        self._display(results)
        self.state = _state("running", total=progress.total, remaining=job.seconds, notices=list(job.notices))
        self._record(progress)
        self.running = True
        return progress

    def _record(self, progress: _Progress) -> None:
        """Add a run to the history, or update it."""
        results, texts = progress.results, progress.fields
        entry = {"run": results.run, "fields": dict(texts), "state": results.state, "done": progress.done}
        entry |= {"total": progress.total, "seconds": progress.elapsed}
        others = [each for each in self.history if each["run"] in self._runs and each["run"] != results.run]
        self.history = [*others, entry]

    def show_waiting(self, sentence: str) -> None:
        """Display what the sampling waits for; "" for nothing."""
        if (progress := self._progress) is not None:
            notices = [*progress.job.notices, *([sentence] if sentence else [])]
            self.state = {**self.state, "notices": notices}

    def _receive(self, progress: _Progress, cell: Cell) -> None:
        """Store and send a finished image."""
        if cell.recipe not in progress.requested:
            return  # there is no place for it in the grid
        self._receive_cell(progress.results, cell)
        self._send_progress(progress)

    def _on_step(self, step: Step, recipe: ResolvedRecipe) -> Any:
        """Count a step and send its preview; returns the stop value once `cancel` was called."""
        progress, worker = self._progress, self._worker
        if progress is None or worker is None or worker.stopping:
            return self._stop
        progress.steps += 1
        now, preview = time.monotonic(), progress.job.preview
        if recipe in progress.requested and preview is not None and step.kept:
            if now - progress.last_preview > PREVIEW_INTERVAL:
                progress.last_preview = now
                self._send_preview(progress, recipe, step, webp(preview.pictures(step.latents("clean")[None])[0]))
        return None

    def _send_preview(self, progress: _Progress, recipe: ResolvedRecipe, step: Step, frame: bytes) -> None:
        position = progress.results.encoder.position(recipe)
        size = {"width": recipe.width, "height": recipe.height}
        message = {"kind": "preview", "run": progress.results.run, "position": position, "step": step.index + 1}
        self.send({**message, "steps": recipe.evaluations, **size}, buffers=[frame])
        self._send_progress(progress)

    def _send_progress(self, progress: _Progress) -> None:
        counts = {"done": progress.done, "remaining": progress.remaining, "fraction": progress.fraction}
        self.send({"kind": "progress", **counts})

    def _end(self, progress: _Progress, problem: Exception | None) -> None:
        results, done = progress.results, progress.done
        phase = results.state = outcome(problem, done=done, total=progress.total)
        results.seconds = progress.elapsed
        if problem is not None:
            self.problem = problem
        message, remedy = ("", "") if problem is None else _message_and_remedy(problem)
        if done:
            self._grids.append(results.sweep)
            self.grid = results.sweep
            self._fallback = fallback_of_cells(results.received, results.axes, side=96)
        self._progress = None
        if results is self._results:
            self._resend()  # for views that are opened later
            self.data = self._describe()
        self._record(progress)
        counts = {"done": done, "total": progress.total, "elapsed": progress.elapsed}
        self.state = _state(phase, **counts, message=message, remedy=remedy, notices=list(progress.job.notices))
        self._complete()
        self.running = False

    @property
    def _is_complete(self) -> bool:
        return False  # another run may follow

    # ------------------------------------------------------------------------------------------ requests of a front end
    def _actions(self) -> Any:
        return {
            **super()._actions(),
            "cancel": lambda *_: self.cancel(),
            "generate": self._request,
            "show": self._show_run,
            "recipe": self._open_recipe,
        }

    def _request(self, content: dict[str, Any], _: Any) -> str:
        fields = content.get("fields") or {}
        try:
            self.generate(**{str(name): str(text) for name, text in fields.items()})
        except Exception as problem:  # displayed below the form
            message, remedy = _message_and_remedy(problem)
            if self.running:  # a second press; the request under way goes on
                return f"{message} {remedy}"
            self.problem = problem
            self.state = _state("failed", message=message, remedy=remedy)
        return ""

    def _show_run(self, content: dict[str, Any], _: Any) -> str:
        """Display the images and the settings of an earlier run."""
        run = content.get("run")
        if run not in self._runs:
            raise InputError(
                f"run {run}", f"the history holds the last {MAX_RUNS} runs", "see lab.grids for all of them"
            )
        self._display(self._runs[run])
        self.fields = next(dict(each["fields"]) for each in self.history if each["run"] == run)
        return ""

    def _open_recipe(self, content: dict[str, Any], buffers: Sequence[Any]) -> str:
        """Fill in the form from the recipe in a picture, whichever program made it."""
        data = bytes(buffers[0]) if buffers else b""
        if not 0 < len(data) <= LARGEST_FILE:
            raise InputError(
                "this file", f"a picture of at most {LARGEST_FILE // 2**20} MiB is possible", "drop another"
            )
        imported = import_recipe(data)
        known, others = fields_of(imported.recipe, tuple(self.fields))
        self.fields = {**self.fields, **known}
        notes = [f"the form has no field for {', '.join(others)}"] if others else []
        return "; ".join(["settings taken from the picture", *notes, *imported.differs])


def _message_and_remedy(problem: BaseException) -> tuple[str, str]:
    """What is wrong, and what to do about it; a notebook saves both, so they hold no folders."""
    if isinstance(problem, FluxnbError) and problem.remedy:
        message, remedy = str(FluxnbError(problem.given, problem.possible)), str(FluxnbError("", "", problem.remedy))
        return without_folders(message), without_folders(remedy.strip())
    return without_folders(f"{type(problem).__name__}: {problem}"), "See lab.problem for the traceback."


def _state(phase: str, **values: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "done": 0,
        "total": 0,
        "remaining": None,
        "elapsed": None,
        "message": "",
        "remedy": "",
        "notices": [],
    }
    return {"phase": phase, **empty, **values}
