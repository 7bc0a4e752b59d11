"""The lab: ask for pictures, watch them come, stop them; the kernel stays free meanwhile.

The widget is handed a callable that makes the pictures, so it knows no model and is tested with a fake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from fluxnb.errors import FluxnbError, InputError, validates_own_input
from fluxnb.html.front_end import script, style
from fluxnb.records import Cell, Step, Sweep
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.visuals.frames import webp
from fluxnb.visuals.labels import value_of
from fluxnb.widgets.form import MOST_CELLS, as_text, read_form
from fluxnb.widgets.job import Generate, Job, Run
from fluxnb.widgets.view import View, still

__all__ = ["Lab"]

PREVIEW_EVERY = 0.04  # seconds; more previews than a screen shows would only keep the browser busy
SHAPE = ("seed", "steps")


class Lab(View):
    """A form and the pictures it asks for; see `fluxnb.lab`, which makes one.

    Keys: Ctrl-Enter generates, Escape stops.

    Arguments:
        generate: from what was asked and a function to call with each step, the Job; a step for which that function
            returns `stop` is the last.
        fields: the form's texts by name: "prompt", "seeds", "steps", "width", "height", and where the model has them
            "guidance" and "negative".
        model: who draws, for the title.
        stop: what ends a walk, `fluxnb.STOP`.
    """

    _esm = script("lab")
    _css = style("lab")

    form = traitlets.Dict().tag(sync=True)
    board = traitlets.Dict().tag(sync=True)  # rows, columns and what stands in each square
    state = traitlets.Dict().tag(sync=True)  # phase, counts, what went wrong
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)  # the picture of each square, empty where there is none

    def __init__(self, generate: Generate, fields: Mapping[str, str], *, model: str, stop: Any) -> None:
        self._generate, self._stop = generate, stop
        self._run: Run | None = None
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()
        self._grids: list[Sweep] = []
        self._runs = 0
        self.problem: BaseException | None = None
        super().__init__(form={"model": model, "fields": dict(fields)}, state=_state("idle"))
        self.on_msg(self._hear)

    def __repr__(self) -> str:
        phase, done, total = (self.state.get(name) for name in ("phase", "done", "total"))
        return f"Lab({self.form['model']}, {phase}{f', {done} of {total} pictures' if total else ''})"

    # ------------------------------------------------------------------------------------------------------ reading
    @property
    def grids(self) -> tuple[Sweep, ...]:
        """What was made so far, a Sweep for each press of the button."""
        return tuple(self._grids)

    @property
    def grid(self) -> Sweep:
        """The last of them, which `fluxnb.explore` and `fluxnb.scrub` take; while it fills, what is there.

        Raises:
            InputError: nothing is made yet.
        """
        run = self._run
        if run is not None and run.cells:
            return run.sweep(finished=False)
        if not self._grids:
            raise InputError("a lab without pictures", "none is made yet", "press generate, or call lab.generate()")
        return self._grids[-1]

    # ------------------------------------------------------------------------------------------------------- making
    @validates_own_input
    def generate(self, **fields: Any) -> Lab:
        """Begin to make pictures, as the button does; returns at once.

        Arguments:
            fields: texts or numbers that stand in for those of the form: `seeds="0-3"`, `steps=[1, 4]`.

        Raises:
            InputError: what was asked cannot be, or pictures are being made already.

        Example:
            >>> lab.generate(prompt="a fox", seeds="0-3").wait().grid               # doctest: +SKIP
            Sweep('1 prompt x 4 seed x 4 steps, pocket, 16 cells')
        """
        with self._turn:  # two presses of the button may come in two threads
            if self._thread is not None and self._thread.is_alive():
                raise InputError("generate", "pictures are being made", "stop them first with lab.cancel()")
            self.problem = None
            texts = {**self.form["fields"], **{name: as_text(value) for name, value in fields.items()}}
            asked = read_form(texts)
            self.form = {**self.form, "fields": texts}
            job = self._generate(asked, self._watch)
            run = self._lay(job)
            self._thread = threading.Thread(target=self._work, args=(run,), name="fluxnb-lab", daemon=True)
            self._thread.start()
        return self

    def cancel(self) -> None:
        """Stop after the step that is being made; finished pictures stay."""
        if self._run is not None:
            self._run.halt.set()

    @validates_own_input
    def wait(self, timeout: float | None = None) -> Lab:
        """Wait until nothing is being made, at most so many seconds; raises what went wrong, if anything did."""
        if self._thread is not None:
            self._thread.join(timeout)
        if self.problem is not None:
            raise self.problem
        return self

    def close(self) -> None:
        """Stop, and let the front end go."""
        self.cancel()
        super().close()

    def _lay(self, job: Job) -> Run:
        """An empty square for each picture that will come."""
        if len(job.recipes) > MOST_CELLS:
            raise InputError(
                f"{len(job.recipes)} pictures", f"a lab shows at most {MOST_CELLS}", "use fnb.sweep for larger grids"
            )
        rows, columns = (tuple(job.axes.get(name, (None,))) for name in SHAPE)
        self._run = run = Run(job=job, places={recipe: i for i, recipe in enumerate(job.recipes)}, stop=self._stop)
        first = job.recipes[0]
        self.frames = [b""] * len(job.recipes)
        self._runs += 1
        self.board = {
            "run": self._runs,  # the same question again is another board
            "rows": [value_of("seed", value) for value in rows],
            "columns": [value_of("steps", value) for value in columns],
            "squares": [
                {"row": _index(rows, r.seed), "column": _index(columns, r.steps), "steps": r.steps, "name": _name(r)}
                for r in job.recipes
            ],
            "width": first.width,
            "height": first.height,
        }
        self.state = _state("running", total=len(job.recipes), left=job.seconds)
        return run

    def _work(self, run: Run) -> None:
        phase, said = "finished", ("", "")
        try:
            for cell in run.job.cells:
                self._take(run, cell)
                if run.halt.is_set():
                    break
            if len(run.cells) < len(run.job.recipes):
                phase = "stopped"
        except Exception as problem:  # it would end a thread unseen; here it is shown, and raised again by wait()
            self.problem, phase, said = problem, "failed", _told(problem)
        finally:
            if (shut := getattr(run.job.cells, "close", None)) is not None:
                shut()
        if run.cells:
            self._grids.append(run.sweep(finished=phase == "finished"))
            self._still = still([cell.image for cell in run.cells], columns=8, side=96, most=24)
        self._run = None
        self.send_state("frames")  # for a view that is opened later
        spent = time.monotonic() - run.began
        self.state = _state(
            phase, done=len(run.cells), total=len(run.job.recipes), spent=spent, what=said[0], remedy=said[1]
        )

    def _take(self, run: Run, cell: Cell) -> None:
        run.cells.append(cell)
        place = run.place_of(cell, len(run.cells) - 1)
        frame = webp(cell.image)
        self.frames[place] = frame
        self._say(run, place, frame, step=0)

    def _watch(self, step: Step, recipe: ResolvedRecipe) -> Any:
        """Count a step, show its estimate, and answer whether to go on."""
        run = self._run
        if run is None or run.halt.is_set():
            return self._stop
        run.steps += 1
        place, now = run.places.get(recipe), time.monotonic()
        if place is not None and run.job.preview is not None and step.kept and now - run.shown > PREVIEW_EVERY:
            run.shown = now
            picture = run.job.preview.pictures(step.latents("clean")[None])[0]
            self._say(run, place, webp(picture), step=step.index + 1)
        return None

    def _say(self, run: Run, place: int, frame: bytes, *, step: int) -> None:
        counts = {"done": len(run.cells), "left": run.left, "share": run.share}
        told = {"kind": "frame", "place": place, "step": step, **counts}
        self.send(told, buffers=[frame])

    def _hear(self, _: object, content: dict[str, Any], buffers: object) -> None:
        kind = content.get("kind")
        if kind == "cancel":
            self.cancel()
        elif kind == "generate":
            fields = content.get("fields")
            try:
                self.generate(**{name: str(text) for name, text in (fields or {}).items()})
            except Exception as problem:  # nobody would see it: a message has no caller
                self.problem = problem
                what, remedy = _told(problem)
                self.state = _state("failed", what=what, remedy=remedy)


def _told(problem: BaseException) -> tuple[str, str]:
    """What happened, and what to do about it."""
    if isinstance(problem, FluxnbError) and problem.remedy:
        return str(FluxnbError(problem.given, problem.possible)), str(FluxnbError("", "", problem.remedy)).strip()
    return f"{type(problem).__name__}: {problem}", "Look at lab.problem for where it came from."


def _state(phase: str, **facts: Any) -> dict[str, Any]:
    return {"phase": phase, "done": 0, "total": 0, "left": None, "spent": None, "what": "", "remedy": "", **facts}


def _name(recipe: ResolvedRecipe) -> str:
    return ", ".join([recipe.prompt, value_of("seed", recipe.seed), value_of("steps", recipe.steps)])


def _index(values: Sequence[Any], value: Any) -> int:
    return list(values).index(value) if value in values else 0
