"""Sizes and schedules of the networks: `POCKET` is the shipped preset, and `TINY` trains in seconds for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the networks; `card.json` has the resulting numbers of parameters."""

    # Three downsamplings by 2. (32, 64, 128, 128) doubles the cost of decoding, which was half of a sweep's time.
    vae_channels: tuple[int, ...] = (16, 32, 96, 128)
    latent_channels: int = 16  # as in FLUX
    # A deeper network (5 heads, 4 and 9 blocks) was worse after 500 iterations, each of which took 1.3 times as long.
    # A wider, shallower one (8 heads, 2 and 3 blocks) was better after 1,500 iterations at 0.8 times the time each. It
    # was not trained to the end, and its two transformers would make pocket 45.5 MB, above the limit of 44 MB.
    double_blocks: int = 3
    single_blocks: int = 6  # a single block has 15 h^2 parameters, a double block 36 h^2
    heads: int = 6
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)  # sums to head_dim
    text_width: int = 192  # T5
    text_layers: int = 3
    pooled_width: int = 128  # CLIP
    pooled_layers: int = 2
    text_tokens: int = 48  # the longest caption of the dataset has 30


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length, batch size and optimizer of one training.

    The number of iterations follows from `seconds` and the measured speed, unless `iterations` is given.
    """

    seconds: float  # excluding data preparation and compilation
    batch: int  # per device
    learning_rate: float
    warmup: int = 500
    resume_warmup: int = 100  # the same for pretrained weights; Adam's second moments average over 50 iterations
    scenes: int = 1_000_000  # distinct scenes per device
    ema: float = 0.999  # decay of the weight average
    iterations: int | None = None  # instead of `seconds`
    cooldown: float = 0.25  # last share of the iterations, in which the learning rate decays to zero
    optimizer: str = "adamw"  # or "muon" for the matrices of the transformer's blocks
    muon_lr_ratio: float = 1.0  # learning rate of Muon relative to AdamW's
    validation: int = 4096  # scenes for the teacher's validation loss
    validate_every: int = 500  # iterations; a validation takes about as long as four of them on a GPU


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Sampling of the teacher's pairs, and the schedules of reflow and LADD."""

    warm: Schedule  # the short reflow that LADD starts from
    student: Schedule  # LADD
    reflow: Schedule  # the baseline: from the same start and as long as LADD
    pairs: int = 131_072
    teacher_steps: int = 28
    teacher_batch: int = 1024
    # Distilled into the student. In a measurement of 1.25 to 2.5 on one teacher (`python -m fluxnb.train guidance`),
    # accuracy is highest with 1.5: 99.1 %, and 98.7 % with 2.5, whose FD is larger by a third. 1.25 has the lowest FD.
    guidance: float = 1.5
    critic_rate: float = 1e-3  # the critic's learning rate
    critic_only: int = 300  # iterations without an adversarial loss; in as many more, its weight rises linearly
    adversarial_weight: float = 0.1  # with 1 here and 0 for the regression, the training is LADD alone
    regression_weight: float = 1.0  # of the teacher's pairs, which preserve details that the critic ignores
    monitor_every: float = 60.0  # seconds between measurements of the student's pictures


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes and schedules of a model and its student."""

    sizes: Sizes
    autoencoder: Schedule
    judge: Schedule
    teacher: Schedule
    distillation: Distillation

    def with_distillation(self, **changes: object) -> Preset:
        """The same preset with some fields of `distillation` replaced."""
        return dataclasses.replace(self, distillation=dataclasses.replace(self.distillation, **changes))  # type: ignore[arg-type]


POCKET = Preset(
    sizes=Sizes(),
    autoencoder=Schedule(seconds=400.0, batch=128, learning_rate=1e-3, scenes=1_000_000, ema=0.998),
    judge=Schedule(seconds=150.0, batch=384, learning_rate=1e-3, scenes=1_500_000, ema=0.998),
    # From the same start and on the same scenes, the validation loss was 0.0693 after 585 s with AdamW and 0.0652 after
    # 515 s with Muon.
    teacher=Schedule(
        seconds=900.0,
        batch=1024,
        learning_rate=1.2e-3,
        scenes=1_500_000,
        ema=0.9995,
        optimizer="muon",
        muon_lr_ratio=3.0,
    ),
    distillation=Distillation(
        warm=Schedule(seconds=150.0, batch=512, learning_rate=5e-4, warmup=100, ema=0.998),
        student=Schedule(seconds=180.0, batch=512, learning_rate=2e-4, warmup=100, cooldown=0.5, ema=0.998),
        reflow=Schedule(seconds=180.0, batch=512, learning_rate=2e-4, warmup=100, cooldown=0.5, ema=0.998),
    ),
)
# Of both models that train in seconds.
TINY_SIZES: Mapping[str, Any] = {
    "vae_channels": (8, 8, 16, 16),
    "double_blocks": 1,
    "single_blocks": 1,
    "heads": 2,
    "head_dim": 16,
    "rope_axes": (4, 6, 6),
    "text_width": 32,
    "text_layers": 1,
    "pooled_width": 32,
    "pooled_layers": 1,
}
TINY = Preset(
    sizes=Sizes(**TINY_SIZES),
    autoencoder=Schedule(seconds=0.0, iterations=4, batch=4, learning_rate=1e-3, scenes=32, warmup=1),
    judge=Schedule(seconds=0.0, iterations=4, batch=8, learning_rate=1e-3, scenes=32, warmup=1),
    teacher=Schedule(
        seconds=0.0, iterations=4, batch=8, learning_rate=1e-3, scenes=32, warmup=1, validation=16, validate_every=2
    ),
    distillation=Distillation(
        warm=Schedule(seconds=0.0, iterations=3, batch=8, learning_rate=1e-3, warmup=1),
        student=Schedule(seconds=0.0, iterations=3, batch=8, learning_rate=1e-4, warmup=1),
        reflow=Schedule(seconds=0.0, iterations=3, batch=8, learning_rate=1e-3, warmup=1),
        pairs=16,
        teacher_steps=2,
        teacher_batch=8,
    ),
)
PRESETS = {"pocket": POCKET, "tiny": TINY}
