"""Sizes and schedules; `POCKET` is what ships, `TINY` is what tests train in seconds."""

from __future__ import annotations

import dataclasses

from fluxnb.train import config as first
from fluxnb.train.config import Schedule


@dataclasses.dataclass(frozen=True)
class Shape:
    """Pictures of one size: how many of them are cached, and the share of training batches."""

    height: int
    width: int
    share: float

    @property
    def tokens(self) -> int:
        """Image tokens of the transformer: one for 16 x 16 pixels."""
        return self.height * self.width // 256

    @property
    def units(self) -> tuple[float, float]:
        """Width and height in units of the shorter side, as `lay_out` takes them."""
        short = min(self.height, self.width)
        return self.width / short, self.height / short


@dataclasses.dataclass(frozen=True)
class Sizes(first.Sizes):
    """How large each network is."""

    default_size: int = 192  # pixels of the square that the plainest call draws
    double_blocks: int = 2
    single_blocks: int = 6
    heads: int = 8
    text_width: int = 256
    clip_tokens: int = 77  # FLUX's
    text_tokens: int = 512  # the most that T5 reads
    caption_tokens: int = 48  # what a caption is padded to in most batches; the longest takes 35


@dataclasses.dataclass(frozen=True)
class Preset:
    """The sizes and the schedules that make one model.

    Attributes:
        autoencoder: its `scenes` are distinct scenes per device, its `batch` pictures of the larger size.
        autoencoder_sizes: squares in pixels; a quarter of its batches has the second.
        teacher: its `scenes` are distinct scenes per device, over all shapes; its `batch` is not used.
        tokens: image and text tokens in one batch of the teacher on one device, whatever the shape.
        shapes: the sizes that the teacher learns.
        paddings: tokens that a caption is padded to, with the share of batches that are padded so.
        unsaid: share of captions left empty, for classifier-free guidance (2207.12598).
    """

    sizes: Sizes
    autoencoder: Schedule
    autoencoder_sizes: tuple[int, int]
    teacher: Schedule
    tokens: int
    shapes: tuple[Shape, ...]
    paddings: tuple[tuple[int, float], ...]
    unsaid: float = 0.1


SHAPES = (
    Shape(192, 192, 0.46),
    Shape(128, 128, 0.2),
    Shape(256, 256, 0.12),
    Shape(128, 192, 0.06),
    Shape(192, 128, 0.06),
    Shape(160, 240, 0.05),
    Shape(240, 160, 0.05),
)
POCKET = Preset(
    sizes=Sizes(),
    autoencoder=Schedule(
        seconds=250.0, batch=96, learning_rate=1.2e-3, warmup=300, scenes=120_000, ema=0.998, cooldown=0.4
    ),
    autoencoder_sizes=(192, 128),
    teacher=Schedule(
        seconds=1080.0,
        batch=0,
        learning_rate=1.2e-3,
        scenes=500_000,
        ema=0.9995,
        optimizer="muon",
        muon_lr_ratio=3.0,
        validation=2048,
        validate_every=1000,
    ),
    tokens=196_608,
    shapes=SHAPES,
    paddings=((48, 0.9), (64, 0.03), (128, 0.03), (256, 0.02), (512, 0.02)),
)
TINY = Preset(
    sizes=Sizes(
        default_size=64,
        vae_channels=(8, 8, 16, 16),
        double_blocks=1,
        single_blocks=1,
        heads=2,
        head_dim=16,
        rope_axes=(4, 6, 6),
        text_width=32,
        text_layers=1,
        pooled_width=32,
        pooled_layers=1,
    ),
    autoencoder=Schedule(seconds=0.0, iterations=2, batch=2, learning_rate=1e-3, scenes=16, warmup=1),
    autoencoder_sizes=(64, 32),
    teacher=Schedule(
        seconds=0.0, iterations=4, batch=0, learning_rate=1e-3, scenes=32, warmup=1, validation=8, validate_every=2
    ),
    tokens=256,
    shapes=(Shape(64, 64, 0.5), Shape(32, 48, 0.5)),
    paddings=((48, 0.5), (64, 0.5)),
)
PRESETS = {"pocket": POCKET, "tiny": TINY}
