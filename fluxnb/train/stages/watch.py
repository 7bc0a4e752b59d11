"""What is worth watching while a student trains: the few figures that say within seconds where it is going."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL

from fluxnb.train.data.render import Renderer
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.evaluation.ask import hits, noise_for, painter, render_scenes, scenes_to_ask
from fluxnb.train.evaluation.judge import Judge, read
from fluxnb.train.evaluation.measure import frechet
from fluxnb.train.stages.objective import Denoiser


class Watch:
    """Asks a model the same questions each time it is called; captions, noise and renders are prepared once.

    Arguments:
        count: scenes asked; the Fréchet distance wants well above its 128 features.

    Example, on the device that trains:
        watch = Watch(judge, renderer, vae, tokens)
        log(iteration=iteration, **watch(student))  # the averaged weights swapped in
    """

    def __init__(
        self,
        judge: Judge,
        renderer: Renderer,
        vae: AutoencoderKL,
        tokens: Tokens,
        *,
        count: int = 1024,
        seed: int = 3,
        batch: int = 1024,
    ):
        self.judge, self.vae, self.tokens, self.device, self.batch = judge, vae, tokens, renderer.device, batch
        self.scenes = scenes_to_ask(count, seed, held_out=False)
        self.captions = [scene.caption() for scene in self.scenes]
        self.noise = noise_for(count, seed)
        rng = random.Random(seed)
        others = scenes_to_ask(4 * count, seed + 1, held_out=False)
        self.reference = read(judge, render_scenes(renderer, others, rng))[1]
        floor = read(judge, render_scenes(renderer, self.scenes, rng))[1]
        self.floor = frechet(floor, self.reference)

    @torch.no_grad()
    def __call__(self, model: Denoiser, steps: Sequence[int] = (1, 2, 4), guidance: float = 1.0) -> dict[str, float]:
        """Per step count `fd_N`, `object_N`, `everything_N`, `sign_N`; `fd_floor`, renders' own; `watch_seconds`."""
        began, training = time.perf_counter(), model.training
        model.eval()
        facts = {"fd_floor": self.floor}
        for count in steps:
            paint = painter(model, self.vae, self.tokens, self.device, steps=count, guidance=guidance, batch=self.batch)
            answers, features = read(self.judge, paint(self.captions, self.noise).pictures)
            found = hits(answers, self.scenes)
            facts[f"fd_{count}"] = frechet(features, self.reference)
            facts |= {f"{name}_{count}": float(found[name].mean()) for name in ("object", "everything", "sign")}
        model.train(training)
        return {**facts, "watch_seconds": time.perf_counter() - began}
