"""Sizes and schedules: `POCKET` is the preset of the shipped models, and `TINY` trains in seconds for tests."""

from __future__ import annotations

import dataclasses

from fluxnb.train.data.layouts import Shape
from fluxnb.train.data.vocabulary import CAPTION_TOKENS

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the networks; `card.json` has the resulting numbers of parameters."""

    default_size: int = 192  # side in pixels of a picture if a call specifies no size
    # Three downsamplings by 2. Decoding with (32, 64, 128, 128) takes twice as long.
    vae_channels: tuple[int, ...] = (16, 32, 96, 128)
    latent_channels: int = 16  # as in FLUX
    double_blocks: int = 2
    single_blocks: int = 11  # a single block has 15 h^2 parameters, a double block 36 h^2
    heads: int = 8
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)  # sums to head_dim
    text_width: int = 256  # T5
    text_layers: int = 3
    pooled_width: int = 128  # CLIP
    pooled_layers: int = 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length, batch size and optimizer of one training.

    The number of iterations follows from `seconds` and the measured speed, unless `iterations` is given.
    """

    learning_rate: float
    seconds: float = 0.0  # excluding data preparation and compilation
    iterations: int | None = None  # instead of `seconds`
    batch: int = 0  # per device; 0 where batches have a number of tokens
    warmup: int = 500
    scenes: int = 1_000_000  # distinct scenes per device
    ema: float = 0.999  # decay of the weight average
    cooldown: float = 0.25  # last share of the iterations, in which the learning rate decays to zero
    optimizer: str = "adamw"  # or "muon" for the matrices of the transformer's blocks
    muon_lr_ratio: float = 1.0  # learning rate of Muon relative to AdamW's
    validation: int = 4096  # scenes for the teacher's validation loss
    validate_every: int = 500  # iterations; a validation takes about as long as four of them on a GPU


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Sampling of the teacher's pairs, and the schedules of reflow and LADD, which have no `batch`.

    Attributes:
        warm: the reflow that LADD starts from.
        student: LADD.
        pairs: sampled from the teacher, on all devices together.
        teacher_steps, guidance: of the teacher's samples.
        tokens: number of image and text tokens in a batch per device.
        critic_rate: learning rate of the critic.
        critic_only: iterations without an adversarial loss; in as many more, its weight rises linearly.
        adversarial_weight, regression_weight: of the losses.
        save_every: seconds between two saved students.
    """

    warm: Schedule
    student: Schedule
    pairs: int = 131_072
    teacher_steps: int = 28
    guidance: float = 2.5
    tokens: int = 98_304
    critic_rate: float = 1e-3
    critic_only: int = 300
    adversarial_weight: float = 0.1
    regression_weight: float = 1.0
    save_every: float = 60.0


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes and schedules of a model.

    Attributes:
        autoencoder: `scenes` is per device, and `batch` is for the larger size.
        autoencoder_sizes: sides of the square pictures in pixels, the larger first; a quarter of the batches has
            the smaller.
        teacher: `scenes` is per device, for all shapes together; it has no `batch`.
        tokens: number of image and text tokens in a batch of the teacher per device, for every shape.
        shapes: shapes of the teacher's pictures, with their shares of the batches.
        paddings: numbers of T5 tokens to which captions are padded, with their shares of the batches.
        distillation: of the student.
        judge: `scenes` is per device.
        text: of the T5 encoder on captions; `scenes` is the number of captions per device, and `batch` is for the
            shortest padding.
        judge_width: number of features.
        caption_dropout: share of captions that are replaced by "", for classifier-free guidance (2207.12598).
    """

    sizes: Sizes
    autoencoder: Schedule
    autoencoder_sizes: tuple[int, int]
    teacher: Schedule
    tokens: int
    shapes: tuple[tuple[Shape, float], ...]
    paddings: tuple[tuple[int, float], ...]
    distillation: Distillation
    judge: Schedule
    text: Schedule
    judge_width: int = 256
    caption_dropout: float = 0.1


SHAPES = (
    (Shape(192, 192), 0.46),
    (Shape(128, 128), 0.2),
    (Shape(256, 256), 0.12),
    (Shape(128, 192), 0.06),
    (Shape(192, 128), 0.06),
    (Shape(160, 240), 0.05),
    (Shape(240, 160), 0.05),
)
POCKET = Preset(
    sizes=Sizes(),
    autoencoder=Schedule(
        seconds=250.0, batch=96, learning_rate=1.2e-3, warmup=300, scenes=120_000, ema=0.998, cooldown=0.4
    ),
    autoencoder_sizes=(192, 128),
    teacher=Schedule(
        seconds=1080.0,
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
    paddings=((CAPTION_TOKENS, 0.9), (64, 0.03), (128, 0.03), (256, 0.02), (512, 0.02)),
    distillation=Distillation(
        warm=Schedule(seconds=200.0, learning_rate=5e-4, warmup=100, ema=0.998, optimizer="muon", muon_lr_ratio=3.0),
        student=Schedule(seconds=300.0, learning_rate=2e-4, warmup=100, cooldown=0.5, ema=0.998),
    ),
    judge=Schedule(seconds=240.0, batch=128, learning_rate=1e-3, scenes=400_000, ema=0.998),
    text=Schedule(seconds=60.0, batch=512, learning_rate=1e-3, warmup=100, scenes=200_000, ema=0.995),
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
    autoencoder=Schedule(iterations=2, batch=2, learning_rate=1e-3, scenes=16, warmup=1),
    autoencoder_sizes=(64, 32),
    teacher=Schedule(
        iterations=4,
        learning_rate=1e-3,
        scenes=32,
        warmup=1,
        optimizer="muon",
        validation=8,
        validate_every=2,
    ),
    tokens=256,
    shapes=((Shape(64, 64), 0.5), (Shape(32, 48), 0.5)),
    paddings=((CAPTION_TOKENS, 0.5), (64, 0.5)),
    distillation=Distillation(
        warm=Schedule(iterations=2, learning_rate=1e-3, warmup=1, optimizer="muon"),
        student=Schedule(iterations=3, learning_rate=1e-4, warmup=1),
        pairs=24,
        teacher_steps=2,
        tokens=256,
        critic_only=1,
    ),
    judge=Schedule(iterations=2, batch=4, learning_rate=1e-3, scenes=16, warmup=1),
    text=Schedule(iterations=2, batch=4, learning_rate=1e-3, scenes=16, warmup=1),
    judge_width=64,
)
PRESETS = {"pocket": POCKET, "tiny": TINY}
