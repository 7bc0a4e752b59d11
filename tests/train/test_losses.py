"""Loss functions, and the distribution of the noise levels."""

from __future__ import annotations

import math

import pytest
import torch

from fluxnb.train.data.layouts import LETTERS
from fluxnb.train.networks import judge
from fluxnb.train.stages.losses import attribute_loss, contrast, draw_sigmas


def test_blur_reduces_contrast():
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1)
    assert contrast(blurred.diff(dim=2)).mean() < 0.5 * contrast(pictures.diff(dim=2)).mean()


def test_every_letter_of_a_sign_is_one_attribute_of_the_loss():
    sizes = [(1, classes) for classes in judge.CLASSES.values()] + [(1, judge.SLOTS, len(LETTERS))]
    logits = judge.Attributes(*(torch.zeros(size) for size in sizes))
    target = judge.Attributes(*(torch.zeros(size[:-1], dtype=torch.long) for size in sizes))
    expected = sum(map(math.log, judge.CLASSES.values())) + judge.SLOTS * math.log(len(LETTERS))
    assert attribute_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_noise_levels_shift_with_the_number_of_tokens():
    generator = torch.Generator().manual_seed(0)
    few, many = (draw_sigmas(20000, n, torch.device("cpu"), generator) for n in (64, 256))
    assert few.min() > 0 and few.max() < 1 and many.mean() > few.mean() + 0.05


def test_the_uniform_fifth_of_noise_levels_covers_the_highest_ones():
    sigmas = draw_sigmas(100_000, 64, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert 0.01 < (sigmas > 0.95).float().mean() < 0.03  # 0.2 x 0.05, and a share of the logit-normal
