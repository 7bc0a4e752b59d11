"""A GGUF file with random weights in the usual layout: fused layers, and blocks in Q8_0.

The quantized bytes are drawn directly, on the GPU if there is one.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fluxnb.runtime.gguf import stored_weight

BLOCK, BYTES = 32, 34  # weights per scale, and bytes per block: two for the scale, one per weight
SCALE = 0.02 / 73.9  # for weights with a standard deviation of 0.02: that of uniform bytes is 73.9


def write_gguf(path: Path, transformer: nn.Module) -> float:
    """Write the file unless it exists; returns the seconds taken."""
    import gguf

    if path.is_file():
        return 0.0
    began, device = time.perf_counter(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes: dict[str, list[int]] = {}  # of each tensor in the file; one may fuse several weights
    for name, weight in transformer.named_parameters():
        source, _ = stored_weight(name)
        if source in shapes:
            shapes[source][0] += weight.shape[0]
        else:
            shapes[source] = [*weight.shape]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "flux", use_temp_file=False)
    for source, shape in shapes.items():
        if len(shape) == 2 and "blocks." in source:
            writer.add_tensor(source, _eight_bits(*shape, device), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(source, _floats(source, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return time.perf_counter() - began


def _eight_bits(rows: int, columns: int, device: torch.device) -> np.ndarray:
    blocks = torch.randint(0, 256, (rows, columns // BLOCK, BYTES), dtype=torch.uint8, device=device).cpu().numpy()
    blocks[..., :2] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def _floats(source: str, shape: list[int]) -> np.ndarray:
    if source.endswith(".scale"):  # of a norm
        return np.ones(shape, np.float32)
    return np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
