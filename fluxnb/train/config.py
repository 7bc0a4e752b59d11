"""Sizes and schedules, each with its reason; `POCKET` is what ships, `TINY` is what tests train in seconds."""

from __future__ import annotations

import dataclasses

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large each network is; millions of parameters stand in `card.json`."""

    # f8: three halvings. (32, 64, 128, 128) takes twice the arithmetic to decode, which was half of a grid's time.
    vae_channels: tuple[int, ...] = (16, 32, 96, 128)
    latent_channels: int = 16  # FLUX's own
    # Deeper (5 heads, 4 and 9 blocks) was worse after 500 iterations, each of which took 1.3 times as long. Wider and
    # shallower (8 heads, 2 and 3 blocks) is better after 1,500, each of which takes 0.8 times as long, but not proved
    # to the end, and with its two transformers pocket would be 45.5 MB, where 44 are allowed.
    double_blocks: int = 3
    single_blocks: int = 6  # a single block costs 15 h^2 parameters, a double one 36 h^2
    heads: int = 6
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)  # sums to head_dim
    text_width: int = 192  # T5
    text_layers: int = 3
    pooled_width: int = 128  # CLIP
    pooled_layers: int = 2
    text_tokens: int = 48  # the longest caption of the world takes 30


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How one training goes; the number of iterations follows from `seconds` and the measured speed."""

    seconds: float  # without the data and the compiling, which come first
    batch: int  # per device
    learning_rate: float
    warmup: int = 500
    rewarm: int = 100  # the same for weights that were trained before: Adam's memory of sizes is 50 iterations long
    scenes: int = 1_000_000  # distinct scenes per device
    ema: float = 0.999  # of the weights; warmed up as min(ema, (1 + n) / (10 + n))
    iterations: int | None = None  # instead of `seconds`
    cooldown: float = 0.25  # the last share of the iterations, in which the rate falls to zero
    optimizer: str = "adamw"  # or "muon": for the matrices of the transformer's blocks, the teacher's alone
    muon_times: float = 1.0  # Muon's learning rate, in AdamW's
    validation: int = 4096  # scenes that no training sees, on which the teacher's loss is measured
    validate_every: int = 500  # iterations; a look takes a GPU as long as some four of them


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How the teacher's pairs are drawn, and how reflow and LADD learn from them."""

    warm: Schedule  # reflow, as the start of LADD
    student: Schedule  # LADD
    reflow: Schedule  # the baseline: from the same start, for as long as LADD
    pairs: int = 131_072
    teacher_steps: int = 28
    teacher_batch: int = 1024
    # Baked into the student. Of 1.25 to 2.5, as `train guidance` measured them on one teacher, most is right with 1.5:
    # 99.1 %, and 98.7 with 2.5, which is a third farther from renders; 1.25 is a little nearer.
    guidance: float = 1.5
    critic_rate: float = 1e-3  # the critic's learning rate
    critic_first: int = 300  # iterations in which only the critic learns; as many again until it is heard in full
    push: float = 0.1  # weight of the critic's word; with pull 0 and push 1 it is LADD alone
    pull: float = 1.0  # weight of the teacher's own pairs, against forgetting what the critic does not see
    look_every: float = 60.0  # seconds between two looks at the student's pictures


@dataclasses.dataclass(frozen=True)
class Preset:
    """The sizes and the schedules that make one model and its student."""

    sizes: Sizes
    autoencoder: Schedule
    judge: Schedule
    teacher: Schedule
    distillation: Distillation

    def distilled(self, **changes: object) -> Preset:
        """The same with another distillation."""
        return dataclasses.replace(self, distillation=dataclasses.replace(self.distillation, **changes))  # type: ignore[arg-type]


POCKET = Preset(
    sizes=Sizes(),
    autoencoder=Schedule(seconds=400.0, batch=128, learning_rate=1e-3, scenes=1_000_000, ema=0.998),
    judge=Schedule(seconds=150.0, batch=384, learning_rate=1e-3, scenes=1_500_000, ema=0.998),
    # From one start, on the same scenes: AdamW came to a validation loss of 0.0693 in 585 s, Muon to 0.0652 in 515 s.
    teacher=Schedule(
        seconds=900.0, batch=1024, learning_rate=1.2e-3, scenes=1_500_000, ema=0.9995, optimizer="muon", muon_times=3.0
    ),
    distillation=Distillation(
        warm=Schedule(seconds=150.0, batch=512, learning_rate=5e-4, warmup=100, ema=0.998),
        student=Schedule(seconds=180.0, batch=512, learning_rate=2e-4, warmup=100, cooldown=0.5, ema=0.998),
        reflow=Schedule(seconds=180.0, batch=512, learning_rate=2e-4, warmup=100, cooldown=0.5, ema=0.998),
    ),
)
TINY = Preset(
    sizes=Sizes(
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
