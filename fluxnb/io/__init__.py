"""Files: PNG with its recipe, trajectory files, ComfyUI graphs.

The public names and their docstrings stand in `__init__.pyi`; each is imported when it is first used.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
