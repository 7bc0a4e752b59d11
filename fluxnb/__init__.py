"""Rectified flow and its distillation, step by step, in notebooks.

    import fluxnb as fnb

    flux = fnb.load("pocket")
    trajectory = fnb.run(flux, "a fox in the snow", seed=3, steps=4)
    grid = fnb.sweep(flux, prompts=["a fox", "a cat"], seeds=range(4), steps=[1, 2, 3, 4])

Names, in the order of use; `help(fnb.run)` and so on describe each with its arguments, errors and an example.

Models
    load              load a model and place it on this machine: "pocket", "schnell", a folder, a hub id, a pipeline
    load_pair         load a teacher and its student with one text encoder and one VAE
    quantize          a copy of a model with weights rounded to 2 to 8 bits
    LoadedPair        what `load_pair` returns: `.teacher`, `.student`, `.pair`, `.plan`
    plan              choose an offload preset for a model and a machine; downloads nothing
    Remote            a hosted endpoint such as "schnell@fal-ai", for `sweep`, `stream` and `lab`
    Flux              a loaded model: `.pipe`, `.plan`, `.encode`, `.decode`
    Plan              a preset, its memory, and why the other presets were refused

Sampling
    run               sample one picture and record every step
    invert            the noise that the model's flow assigns to a picture, as a trajectory from sigma 0 to 1
    last              the unfinished trajectory of the latest run that was interrupted
    recording         record any call of a FluxPipeline without changing its output
    Recorder          what `recording` yields; `.trajectories`
    sweep             sample a grid of prompts, seeds and step counts
    stream            the same as a generator of cells
    Stream            what `stream` returns
    plan_sweep        pictures, evaluations and estimated time of a sweep, without sampling
    lab               a widget with a form, which samples in the background
    STOP              returned by an `on_step` callback: stop after this step
    PromptWarning     a prompt that is truncated, or has unknown words
    RecordingWarning  a recorded call whose record is incomplete
    RemoteWarning     an endpoint withheld a picture or failed after it drew some
    StoreWarning      pictures that are not stored, because no key identifies what drew them
    VersionWarning    a library is newer than the version that fluxnb was tested with

Values
    Recipe            prompt, seed, steps, size and everything else that determines a picture
    Axes              a grid of recipes
    Keep              which tensors a trajectory retains
    Step              one step: `.sigma`, `.x`, `.v`, `.clean`, `.noise`
    Trajectory        all steps of one picture: `.image`, `.recipe`, `.sigmas`, `.steps`
    Film              decoded frames of a trajectory
    Cell              one picture of a sweep
    Sweep             the cells of a grid
    Store             a folder of pictures that a sweep does not compute twice

Views
    filmstrip         every step of one trajectory, one column a step
    compare           several trajectories, aligned by noise level
    contact_sheet     the pictures of a sweep as a labeled grid
    scrub             a slider over the steps of one or several trajectories
    explore           an explorer of a sweep, also while it is sampled
    Scrubber          the widget of `scrub`
    Explorer          the widget of `explore`
    Lab               the widget of `lab`
    canvas            a plane in which points are drawn, as data for a flow in two dimensions
    Canvas            the widget of `canvas`: `.points`
    film              decode the steps of a trajectory
    tiny              a small decoder in place of the VAE

Files
    save              write a trajectory to one file
    open_trajectory   read it back; needs no model
    open_recipe       the recipe inside a PNG written by this package
    comfy_workflow    a recipe as a ComfyUI graph
    import_recipe     the recipe of a picture of ComfyUI, A1111, Forge, SwarmUI, InvokeAI, mflux
    Imported          what `import_recipe` returns: a recipe, and how its picture differs

Lessons
    check             check an answer to an exercise of a notebook; reports which idea is missing
    exercises         the exercises of a notebook with their questions
    Exercise          one exercise: `.name`, `.question`
    Verdict           what `check` returns: "right", "nearly" or "not yet", and why
    judge             which things, style, place and sign a picture of pocket shows, with probabilities
    Reading           what `judge` returns: `.object`, `.style`, `.place`, `.sign`, `.probabilities`
    Claims            the claims of a notebook: in how many cases each holds, as a table
    Claim             one claim: `.sentence`, `.count`, `.status`

Errors
    FluxnbError       base class; each error names the value given, the possible values and what to type
    InputError        a value that is not accepted; also a ValueError
    RunError          a run that failed; also a RuntimeError
    StorageError      a file, folder or download that failed; also an OSError

Modules
    plots             matplotlib figures
    metrics           numbers about trajectories
    flow              the mathematics of rectified flow on tensors
    widgets           notebook widgets
    io                PNG, trajectory files, metadata of other tools

Importing fluxnb imports neither torch nor diffusers; each name is imported when it is first used.
"""

import lazy_loader as _lazy

from fluxnb.display import connect as _connect

__version__ = "0.1.0"

# No `__all__`: pydoc would print every method of every class in it, 3,400 lines, instead of the list above.
_attribute, __dir__ = _lazy.attach_stub(__name__, __file__)[:2]


def __getattr__(name: str) -> object:
    if name == "last":  # changes with each interrupted run, and lazy_loader retains what it has returned
        from fluxnb.sampling import run

        return run.last
    return _attribute(name)


def _figure(record: object) -> bytes:
    from fluxnb.plots import contact_sheet, filmstrip
    from fluxnb.records import Sweep

    return (contact_sheet if isinstance(record, Sweep) else filmstrip)(record)._repr_png_()


def _write_page(record: object, path: object, **options: object) -> object:
    from fluxnb.html import grid_page, page
    from fluxnb.records import Sweep

    return (grid_page if isinstance(record, Sweep) else page).write(record, path, **options)


def _write_trajectory(record: object, path: object) -> object:
    from fluxnb.io.trajectory_files import save

    return save(record, path)


def _write_picture(record: object, path: object) -> object:
    from fluxnb.io.png import write_png

    return write_png(record.image, path, record.recipe, numerics=record.numerics)


def _read_picture(path: object, size: object) -> object:
    from fluxnb.io.png import read_picture

    return read_picture(path, size)


_connect(
    figure=_figure,
    read_picture=_read_picture,
    write_page=_write_page,
    write_picture=_write_picture,
    write_trajectory=_write_trajectory,
)
