"""fluxnb: watch a rectified flow turn noise into a picture, step by step.

    import fluxnb as fnb
    flux = fnb.load("pocket")
    walk = fnb.run(flux, "a fox in the snow", seed=3, steps=4)
    grid = fnb.sweep(flux, prompts=["a fox", "a cat"], seeds=range(4), steps=[1, 2, 3, 4])

This is the table of contents; the names and their docstrings stand in `__init__.pyi`, from which they are loaded when
they are first used. Importing fluxnb imports neither torch nor diffusers.
"""

import sys as _sys
import types as _types

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


class _Package(_types.ModuleType):
    """Python binds a submodule's name to its package when it is imported; here `fnb.sweep` stays the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "sweep" and isinstance(value, _types.ModuleType):
            value = value.sweep
        super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
