"""Quick quality measurements of a student during its training."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL

from fluxnb.train.data.render import Renderer
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.evaluation.sampling import correctness, fixed_noise, fixed_scenes, make_sampler, render_scenes
from fluxnb.train.metrics import frechet
from fluxnb.train.networks.denoiser import Denoiser
from fluxnb.train.networks.judge import Judge, classify


class Monitor:
    """Measures models on the same captions, noise and renders, which are prepared once.

    Args:
        judge, renderer, vae, tokens: the networks of the model, and the device of `renderer`.
        count: number of scenes; the Fréchet distance needs many more than its 128 features.
        seed: of the scenes and the noise.
        batch: pictures sampled at a time.

    Example, on the training device:
        monitor = Monitor(judge, renderer, vae, tokens)
        log(iteration=iteration, **monitor(student))  # with the averaged weights
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
        self.scenes = fixed_scenes(count, seed, held_out=False)
        self.captions = [scene.caption() for scene in self.scenes]
        self.noise = fixed_noise(count, seed)
        rng = random.Random(seed)
        others = fixed_scenes(4 * count, seed + 1, held_out=False)
        self.reference = classify(judge, render_scenes(renderer, others, rng))[1]
        floor = classify(judge, render_scenes(renderer, self.scenes, rng))[1]
        self.floor = frechet(floor, self.reference)

    @torch.no_grad()
    def __call__(self, model: Denoiser, steps: Sequence[int] = (1, 2, 4), guidance: float = 1.0) -> dict[str, float]:
        """Measure a model.

        Returns:
            For each step count N the Fréchet distance `fd_N` and the accuracies `object_N`, `everything_N` and
            `sign_N`; `fd_floor`, the distance of renders; `monitor_seconds`.
        """
        began, training = time.perf_counter(), model.training
        model.eval()
        facts = {"fd_floor": self.floor}
        for count in steps:
            sampler = make_sampler(
                model, self.vae, self.tokens, device=self.device, steps=count, guidance=guidance, batch=self.batch
            )
            predicted, features = classify(self.judge, sampler(self.captions, self.noise).pictures)
            correct = correctness(predicted, self.scenes)
            facts[f"fd_{count}"] = frechet(features, self.reference)
            facts |= {f"{name}_{count}": float(correct[name].mean()) for name in ("object", "everything", "sign")}
        model.train(training)
        return {**facts, "monitor_seconds": time.perf_counter() - began}
