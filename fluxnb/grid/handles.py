"""Handles that grids are sampled from: a model on this machine, or a hosted endpoint.

Elsewhere in the package only the estimate of the cost and the form of the lab depend on the kind of handle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxnb.errors import InputError
from fluxnb.grid.remote_runner import RemoteRunner
from fluxnb.grid.runner import GridRunner, Runner
from fluxnb.grid.store import Store
from fluxnb.pipeline.flux import Flux
from fluxnb.records import Keep
from fluxnb.remote.handle import Remote
from fluxnb.runtime.parallel import is_split
from fluxnb.sampling.sampler import StepCallback

__all__ = ["Handle", "is_paid", "parallel_grid", "prepare", "runner_of"]

Handle = Flux | Remote


def prepare(
    handle: Handle, *, keep: Keep | None, batch: int, on_step: Any = None, measure: bool = False
) -> Sequence[str]:
    """Check that a handle can be sampled in this way; returns what no key identifies, empty if a store is possible.

    Raises:
        InputError: a model without a VAE, or an argument about steps for an endpoint.
    """
    if isinstance(handle, Flux):
        handle.require_vae()
        if is_split(handle.pipe.vae):
            raise parallel_grid()
        return handle.refresh()
    requested = {
        "keep=": keep is not None,
        f"batch={batch}": batch != 1,
        "on_step=": on_step is not None,
        "measure=True, which would be paid for,": measure,
    }
    for name, given in requested.items():
        if given:
            raise handle.refusal(name)
    return ()


def parallel_grid() -> InputError:
    """The error for a grid with a model that computes each picture on several GPUs."""
    return InputError(
        'a grid with preset="parallel"',
        "a grid is computed sooner with one picture on each GPU than with each picture on all of them",
        "leave preset out and give store= in every process, or type fluxnb sweep --processes 2",
    )


def runner_of(
    handle: Handle,
    store: Store | None,
    *,
    keep: Keep | None = None,
    batch: int = 1,
    on_step: StepCallback | None = None,
    background: bool = False,
    on_wait: Callable[[str], None] | None = None,
) -> Runner:
    """The runner of a grid; the arguments are those of GridRunner. An endpoint takes no keep, batch or on_step."""
    if isinstance(handle, Remote):
        return RemoteRunner(handle, store, on_wait=on_wait)
    return GridRunner(
        flux=handle,
        store=store,
        keep=keep,
        batch=batch,
        on_step=on_step,
        background=background,
        on_wait=on_wait,
    )


def is_paid(handle: Handle) -> bool:
    """Whether each picture is paid for, so that an error must not discard those that have arrived."""
    return isinstance(handle, Remote)
