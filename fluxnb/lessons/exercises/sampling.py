"""Exercises of the notebooks about sampling: guidance, seeds, backwards, solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fluxnb.lessons.answers import Exercise, choice, choices, function, number

__all__ = ["EXERCISES"]


def _slerp(a: Any, b: Any, share: float) -> list[float]:
    norms = [math.sqrt(sum(x * x for x in row)) for row in (a, b)]
    angle = math.acos(sum(x * y for x, y in zip(a, b, strict=True)) / norms[0] / norms[1])
    weights = [math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)]
    return [weights[0] * x + weights[1] * y for x, y in zip(a, b, strict=True)]


def _lerp(a: Any, b: Any, share: float) -> list[float]:
    return [(1 - share) * x + share * y for x, y in zip(a, b, strict=True)]


def _heun(v: Callable[..., Any], x: float, sigma: float, sigma_next: float) -> Any:
    step = sigma_next - sigma
    first = v(x, sigma)
    return x + step * (first + v(x + step * first, sigma_next)) / 2


def _midpoint(v: Callable[..., Any], x: float, sigma: float, sigma_next: float) -> Any:
    step = sigma_next - sigma
    return x + step * v(x + step / 2 * v(x, sigma), sigma + step / 2)


EXERCISES = (
    Exercise(
        "guidance-1",
        "Write a function `guided(c, u, w)`: the velocity of classifier-free guidance, from the velocity `c` with the "
        "prompt, the velocity `u` without it, and the scale `w`, where `w = 1` is no guidance. Answer with the "
        "function.",
        function(
            lambda c, u, w: u + w * (c - u),
            inputs=[(2.0, 1.0, 1.5), (0.5, -0.25, 1.0), (-1.0, 0.5, 4.0), (0.3, 0.7, 0.0)],
            because="It begins at u and goes w times the way to c: w = 0 is u, w = 1 is c, and more goes beyond c.",
            wrong=[
                (lambda c, u, w: c + w * (c - u), "With w = 1 this goes beyond c already. Where does the way begin?"),
                (lambda c, u, w: w * c, "This only makes c longer. Guidance follows a difference of two velocities."),
                (lambda c, u, w: c + w * (u - c), "This leads away from the prompt. Check the sign of the difference."),
                (lambda c, u, w: c + w * u, "u is not a correction of its own; its difference from c is."),
                (lambda c, u, w: (c + w * u) / (1 + w), "A mean stays between u and c. Guidance goes beyond c."),
            ],
            otherwise="Which value of w has to give c, which gives u? A straight line through both is the formula.",
        ),
    ),
    Exercise(
        "guidance-2",
        "FLUX.1-dev was distilled so that the guidance scale is an input of its network. How many evaluations does one "
        "picture of 28 steps with guidance 3.5 take? Answer with a number.",
        number(
            28,
            because="The network answers with the guided velocity at once; the empty prompt is not evaluated.",
            wrong={
                56: "That is classifier-free guidance, with and without the prompt. What did the distillation save?",
                98: "The scale is not a number of evaluations.",
                29: "The scale is an input of every evaluation, and needs none of its own.",
            },
            otherwise="How many evaluations does one step take if the network returns the guided velocity?",
        ),
    ),
    Exercise(
        "guidance-3",
        "The scale of classifier-free guidance is raised from 1.5 to 5. What is to be expected?\n"
        "a) The pictures of different seeds become more alike.\n"
        "b) The velocities become larger than any that were trained, and colors leave the range of the data.\n"
        "c) Each step takes more evaluations.\n"
        "d) The network itself learns to follow the prompt.\n"
        "Answer with letters.",
        choices(
            "ab",
            because="Extrapolation narrows the distribution and leaves it. The network and the evaluations stay the "
                "same.",
            ideas={
                "a": "Guidance raises the probability of what fits the prompt best. What happens to the rest?",
                "b": "Where does the formula lead when w is far above 1: between the two velocities, or beyond them?",
                "c": "How does the number of evaluations in a step depend on w, as long as it is not 1?",
                "d": "No weight changes while sampling.",
            },
        ),
    ),
    Exercise(
        "seeds-1",
        "Write a function `slerp(a, b, share)`, the spherical interpolation between two noises, given as tensors: "
        "`share = 0` gives a, `share = 1` gives b, and with the angle theta between them the weights are "
        "sin((1 - share) theta) / sin(theta) and sin(share theta) / sin(theta). Answer with the function.",
        function(
            _slerp,
            inputs=[((3.0, 0.0), (0.0, 3.0), 0.5), ((1.0, 2.0, 0.5), (-1.0, 0.5, 1.5), 0.25),
                    ((1.0, 0.0), (0.6, 0.8), 1.0)],
            because="Between two noises of equal length it keeps the length, which the model expects of noise.",
            wrong=[
                (_lerp, "A straight mix is shorter than both noises. Which length has every noise of the training?"),
                (lambda a, b, share: _slerp(a, b, 1 - share), "The ends are exchanged: share = 0 has to give a."),
                (lambda a, b, share: [math.cos(share * math.pi / 2) * x + math.sin(share * math.pi / 2) * y
                                      for x, y in zip(a, b, strict=True)],
                 "This assumes a right angle. Compute the angle from the cosine of a and b."),
            ],
            otherwise="theta is the angle between a and b: the arc cosine of their dot product over both lengths.",
            tolerance=1e-4,
        ),
    ),
    Exercise(
        "seeds-2",
        "Two independent noises have the standard deviation 1. Which standard deviation has their mean, `(a + b) / 2`? "
        "Answer with a number.",
        number(
            math.sqrt(0.5),
            because="The variances add up to 2, a quarter of which is 1/2; its root is the standard deviation.",
            wrong={
                0.5: "That is the variance. The standard deviation is another power of it.",
                1.0: "The mean of two independent values varies less than each of them.",
                2.0: "That is the variance of the sum, before it is halved.",
                math.sqrt(2): "That is the standard deviation of the sum, before it is halved.",
                0.25: "Halving divides the variance by four, but there are two of them.",
            },
            otherwise="Variances of independent values add up; a factor enters the variance as its square.",
            tolerance=0.003,
            near=0.02,
        ),
    ),
    Exercise(
        "seeds-3",
        "Pictures of one seed and different prompts are more alike than those of different seeds. If each picture's "
        "mean color is subtracted first, a third of this effect is gone. What follows?\n"
        "a) The seed decides nothing that two prompts share.\n"
        "b) A part of what the seed decides here is large and flat, such as a background, and was subtracted.\n"
        "c) The root mean square is not a distance.\n"
        "d) The prompts decide the mean color alone.\n"
        "Answer with a letter.",
        choice(
            "b",
            because="A measure finds only what its preparation leaves. The background decides much of the mean color.",
            wrong={
                "a": "Before the subtraction the effect was there. What did the subtraction remove?",
                "c": "It is one. The question is what it was applied to.",
                "d": "Then pictures of one seed would not be more alike before the subtraction either.",
            },
        ),
    ),
    Exercise(
        "backwards-1",
        "A run of 20 steps begins from a picture with `strength=0.25`. How many evaluations are there, without "
        "guidance? Answer with a number.",
        number(
            5,
            because="The strength is the share of the steps that are taken.",
            wrong={
                15: "That is the number of steps that are left out. The lower the strength, the more of the picture "
                    "stays.",
                20: "The steps above the picture's noise level are left out.",
                4: "A share of 0.25 is one of four, not four.",
            },
            otherwise="The strength is the share of the steps that are taken from the picture on.",
        ),
    ),
    Exercise(
        "backwards-2",
        "Image-to-image begins at sigma 0.6. At one place the picture's latent is 1 and the noise is -1. What is x "
        "there at the beginning? Answer with a number.",
        number(
            -0.2,
            because="0.4 times the picture plus 0.6 times the noise.",
            wrong={
                0.2: "The two shares are exchanged: sigma is the share of the noise.",
                0.4: "The noise is mixed in too.",
                -0.6: "The picture is mixed in too.",
                1.0: "That is 0.4 + 0.6. The noise is negative here.",
                1.6: "That is picture minus noise times sigma. The blend is a mixture of both.",
            },
            otherwise="It is the blend of picture and noise at sigma 0.6.",
            near=0.005,
        ),
    ),
    Exercise(
        "backwards-3",
        "A picture is inverted to noise in four Euler steps and sampled from that noise again, in four steps on the "
        "same levels. The result differs from the picture. Why, mainly?\n"
        "a) The step up and the step down over the same levels evaluate the velocity at different points.\n"
        "b) New noise is drawn on the way down.\n"
        "c) The VAE loses detail.\n"
        "d) float32 rounds.\n"
        "Answer with a letter.",
        choice(
            "a",
            because="The velocity changes along a step, so an Euler step is not its own inverse. Shorter steps "
                "change less.",
            wrong={
                "b": "With Euler nothing random happens after the start.",
                "c": "The VAE's loss does not depend on the number of steps. This difference shrinks with more steps.",
                "d": "Rounding is about a millionth. The difference is far larger, and shrinks with more steps.",
            },
        ),
    ),
    Exercise(
        "solvers-1",
        "Heun's method evaluates twice in each step, except in the last step to sigma 0, where once is enough. With "
        "how many Euler steps is Heun in 8 steps to be compared, for equal cost? Answer with a number.",
        number(
            15,
            because="Seven steps with two evaluations and one with one.",
            wrong={
                16: "The last step evaluates once.",
                8: "Equal steps are not equal cost: count evaluations.",
                4: "Heun costs more per step than Euler, so Euler gets more steps.",
                17: "The last step saves an evaluation.",
            },
            otherwise="Count the evaluations of the 8 steps. Euler evaluates once in each step.",
        ),
    ),
    Exercise(
        "solvers-2",
        "A method has order 2, and its steps are short enough. The number of steps is doubled. By which factor does "
        "the error fall? Answer with a number.",
        number(
            4,
            because="The error falls as the step length to the power of the order.",
            wrong={
                2: "That is the factor of a method of order 1, such as Euler's.",
                8: "That is the factor for a single step. Twice as many steps add their errors up.",
                0.25: "That is the ratio of the new error to the old. The question is for the factor by which it "
                    "falls.",
                0.5: "That is the ratio for a method of order 1.",
            },
            otherwise="The error is proportional to the step length to the power of the order.",
        ),
    ),
    Exercise(
        "solvers-3",
        "Write a function `heun(v, x, sigma, sigma_next)` that returns x after one step of Heun's method, where `v(x, "
        "sigma)` is the velocity: the step is taken with the mean of the velocities at both of its ends. Answer with "
        "the function.",
        function(
            _heun,
            inputs=[
                (lambda x, sigma: x, 1.0, 1.0, 0.75),
                (lambda x, sigma: x * sigma + 1, 0.5, 0.6, 0.2),
                (lambda x, sigma: sigma * sigma - x, -1.0, 0.5, 0.25),
            ],
            because="An Euler step predicts the end, and the step is repeated with the mean of both velocities.",
            wrong=[
                (lambda v, x, sigma, sigma_next: x + (sigma_next - sigma) * v(x, sigma),
                 "This is Euler's step. The velocity at the other end is missing."),
                (_midpoint, "This is the midpoint method, which is of order 2 as well. Heun evaluates at both ends."),
                (lambda v, x, sigma, sigma_next: x + (sigma_next - sigma) * (v(x, sigma) + v(x, sigma_next)) / 2,
                 "The second velocity is taken at the old x. Where is x when sigma is sigma_next?"),
                (lambda v, x, sigma, sigma_next: x + (sigma_next - sigma)
                 * v(x + (sigma_next - sigma) * v(x, sigma), sigma_next),
                 "Only the velocity at the far end is used. Take the mean of both."),
                (lambda v, x, sigma, sigma_next: 2 * _heun(v, x, sigma, sigma_next) - x,
                 "The sum of both velocities makes a step of twice the length. Take the mean."),
            ],
            otherwise="Predict x at sigma_next with Euler, evaluate there, and step with the mean of both velocities.",
        ),
    ),
)  # fmt: skip
