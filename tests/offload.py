"""Group offload where diffusers has it: some versions require an accelerator, see QUARANTINES.md."""

import contextlib
from collections.abc import Iterator

import diffusers
import pytest
import torch
from packaging.version import Version

WORKS = Version(diffusers.__version__) >= Version("0.42") or torch.cuda.is_available()


@contextlib.contextmanager
def group_offload() -> Iterator[None]:
    """Skip the test if the block offloads groups and this diffusers cannot do so on this machine.

    Example:
        >>> with group_offload():
        ...     pipe.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    """
    try:
        yield
    except AttributeError:
        if WORKS:
            raise
        pytest.skip("group offload needs an accelerator in this diffusers, see QUARANTINES.md")
