"""fluxnb: watch a rectified flow turn noise into a picture, step by step.

    import fluxnb as fnb
    flux = fnb.load("pocket")
    trajectory = fnb.run(flux, "a fox in the snow", seed=3, steps=4)
    grid = fnb.sweep(flux, prompts=["a fox", "a cat"], seeds=range(4), steps=[1, 2, 3, 4])

The public names and their docstrings stand in `__init__.pyi`; each is imported when it is first used. Importing fluxnb
imports neither torch nor diffusers.
"""

import lazy_loader as _lazy

from fluxnb.display import connect as _connect

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


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


_connect(figure=_figure, write_page=_write_page, write_trajectory=_write_trajectory)
