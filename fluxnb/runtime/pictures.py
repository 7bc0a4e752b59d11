"""Conversion of decoded colors to pictures on a GPU, with the bytes of diffusers, which converts on the CPU."""

from __future__ import annotations

import functools
from typing import Any

from PIL import Image
from torch import Tensor

from fluxnb.records.latents import to_pixels
from fluxnb.runtime.compat import named_like

__all__ = ["convert_on_device"]


def convert_on_device(processor: Any) -> None:
    """Make an image processor of diffusers convert the colors of a GPU to PIL pictures there, in place.

    The processor becomes an instance of a subclass of the same name. Other types of output, and colors on the CPU, are
    converted by diffusers.

    Example:
        >>> convert_on_device(pipe.image_processor)                                 # doctest: +SKIP
    """
    kind: type = type(processor)
    if not hasattr(kind, "_fluxnb_converts"):
        processor.__class__ = _converting(kind)


@functools.cache
def _converting(kind: type) -> type:
    class Converting(kind):  # type: ignore[misc]
        _fluxnb_converts = True

        def postprocess(self, image: Any, output_type: str = "pil", do_denormalize: Any = None) -> Any:
            if output_type != "pil" or not is_on_gpu(image) or image.shape[1] != 3:
                return super().postprocess(image, output_type, do_denormalize)
            colors = super().postprocess(image, "pt", do_denormalize)
            return [Image.fromarray(pixels) for pixels in to_pixels(colors).cpu().numpy()]

    return named_like(Converting, kind)


def is_on_gpu(image: Any) -> bool:
    """Whether an image is a tensor (n, channels, height, width) on a device other than the CPU."""
    return isinstance(image, Tensor) and image.ndim == 4 and image.device.type != "cpu"
