"""Exercises of the notebooks about trajectories: quickstart, step by step, seeds and steps, bent paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fluxnb.flow import schedule, shared_evaluations
from fluxnb.lessons.answers import Exercise, Status, choice, function, number

__all__ = ["EXERCISES"]


def _one_noise_two_prompts(answer: Any) -> tuple[Status, str]:
    """The judge of two trajectories that begin at one noise and differ in their prompt."""
    pair = list(answer) if isinstance(answer, list | tuple) else []
    if len(pair) != 2 or not all(hasattr(each, "x_T") and hasattr(each, "prompt") for each in pair):
        return "not yet", "This exercise takes two trajectories: `(fnb.run(...), fnb.run(...))`."
    one, other = pair
    if one.prompt == other.prompt:
        return "not yet", "Both have the same prompt. The noise is to be the same, and the prompt is to differ."
    if one.x_T.shape != other.x_T.shape:
        return "not yet", "They differ in size, and noise of another size is another noise."
    if not bool((one.x_T == other.x_T).all()):
        return "not yet", "They begin at different noises. Which argument of `fnb.run` is the name of a noise?"
    if len(one) != len(other):
        return "nearly", "The noise is the same. The step counts differ too, so the prompt is not the only difference."
    return "right", "The prompt has no part in the noise: the same seed and size give the same noise for any prompt."


def _posterior_mean(weigh: Callable[[float, float, float], float]) -> Callable[..., float]:
    """The mean of data points on a line, weighted by a function of x, sigma and each point."""

    def mean(x: float, sigma: float, points: Any) -> float:
        weights = [weigh(x, sigma, float(point)) for point in points]
        return sum(w * float(point) for w, point in zip(weights, points, strict=True)) / sum(weights)

    return mean


EXERCISES = (
    Exercise(
        "quickstart-1",
        "Write a function `clean(x, v, sigma)` that returns the clean estimate: where a straight line from `x`, "
        "against the velocity `v`, arrives at sigma 0. Answer with the function.",
        function(
            lambda x, v, sigma: x - sigma * v,
            inputs=[(0.5, 1.0, 1.0), (0.3, -2.0, 0.25), (1.5, 0.8, 0.6)],
            because="The whole line has the length v, from sigma 1 to 0. Of it, sigma is left.",
            wrong=[
                (lambda x, v, sigma: x - v, "v is the way from sigma 1 to sigma 0. How much of it is left at sigma?"),
                (lambda x, v, sigma: x + sigma * v, "The velocity points from the picture to the noise."),
                (lambda x, v, sigma: x - (1 - sigma) * v, "That is the distance from sigma to the noise, at sigma 1."),
                (lambda x, v, sigma: x + (1 - sigma) * v, "That is the other end of the line, the noise estimate."),
                (lambda x, v, sigma: (x - sigma * v) / (1 - sigma) if sigma != 1 else x - v,
                 "x is already a mixture of both ends; along the line no division is needed."),
            ],
            otherwise="Start at x and follow v. Which direction leads to the picture, and how far is it?",
        ),
    ),
    Exercise(
        "quickstart-2",
        "At one place of the latents the blend at sigma 0.25 is 0.5, and the noise there is -1. What is the value of "
        "the picture at this place? Answer with a number.",
        number(
            1.0,
            because="0.75 times the picture plus 0.25 times the noise is the blend.",
            wrong={
                5.0: "The two shares are exchanged. At sigma 0 the blend is the picture alone.",
                0.75: "Without the noise, three quarters of the picture are left, and not the whole of it.",
                1 / 3: "The noise is negative, so it lowered the blend.",
                0.5: "That is the blend. A quarter of it is noise.",
            },
            otherwise="Write down the formula of the blend, insert the three numbers, and solve it for the picture.",
            near=0.02,
        ),
    ),
    Exercise(
        "quickstart-3",
        "Without guidance, one step of the undistilled flow gives almost the same blur for every seed. Why?\n"
        "a) One step does not use the noise.\n"
        "b) At sigma 1 the blend contains nothing of a picture, so the best answer is an average.\n"
        "c) The VAE cannot decode after one step.\n"
        "d) The network has too few weights for one step.\n"
        "Answer with a letter.",
        choice(
            "b",
            because="The noise is independent of the picture, so the best answer is the mean of what the words allow.",
            wrong={
                "a": "The noise enters: the step begins at it. What does it state about the picture?",
                "c": "The VAE decodes any latents. The blur is there before it decodes.",
                "d": "A larger network has the same best answer. What could any network find in the noise?",
            },
        ),
    ),
    Exercise(
        "step-by-step-1",
        "Write a function `euler(x, v, sigma, sigma_next)` that returns x after one Euler step, from `sigma` down to "
        "`sigma_next`. Answer with the function.",
        function(
            lambda x, v, sigma, sigma_next: x + (sigma_next - sigma) * v,
            inputs=[(0.5, 1.0, 1.0, 0.75), (0.3, -2.0, 0.5, 0.1), (1.5, 0.8, 0.25, 0.0)],
            because="dx/dsigma = v, and sigma changes by sigma_next - sigma, which is negative.",
            wrong=[
                (lambda x, v, sigma, sigma_next: x + (sigma - sigma_next) * v,
                 "This step leads to more noise. Is the change of sigma positive or negative?"),
                (lambda x, v, sigma, sigma_next: x - sigma * v,
                 "This goes to sigma 0 at once: it is the clean estimate, not the next point."),
                (lambda x, v, sigma, sigma_next: x - sigma_next * v,
                 "The length of a step is the distance between the two levels, not the level where it ends."),
                (lambda x, v, sigma, sigma_next: x + v, "v is the change per unit of sigma. How long is this step?"),
            ],
            otherwise="A step follows v over the distance between the two levels.",
        ),
    ),
    Exercise(
        "step-by-step-2",
        "A run has four even steps, and `on_step` returns `fnb.STOP` for the step with index 1. At which sigma was the "
        "last evaluation, whose clean estimate is the picture? Answer with a number.",
        number(
            schedule(4)[1],
            because="Step 1 is the second step. It is evaluated where it begins.",
            wrong={
                0.5: "That is where x is after the step. The network is evaluated where the step begins.",
                1.0: "Steps are counted from 0.",
                0.25: "Two levels too low: how many evaluations were there?",
                0.0: "The run does not arrive there: it is stopped.",
            },
            otherwise="List the five levels of four even steps. Which of them do the first two steps begin at?",
        ),
    ),
    Exercise(
        "step-by-step-3",
        "At every step, `x == (1 - sigma) * clean + sigma * noise` holds to the last digits, for the estimates of that "
        "step. What would be found if the network returned random numbers as velocity?\n"
        "a) It would hold nowhere.\n"
        "b) It would hold at every step.\n"
        "c) It would hold at sigma 1 only.\n"
        "d) It would hold at the last step only.\n"
        "Answer with a letter.",
        choice(
            "b",
            because="Both estimates are computed from x and v, whatever v is. The identity is no evidence about a "
                "network.",
            wrong={
                "a": "Insert the definitions of both estimates and simplify. What is left of v?",
                "c": "Insert the definitions of both estimates and simplify. Does the value of sigma matter?",
                "d": "Insert the definitions of both estimates and simplify. Does the index of the step matter?",
            },
        ),
    ),
    Exercise(
        "seeds-and-steps-1",
        "One prompt and one seed are sampled in 1, 2, 3, 4 and 8 even steps, without guidance. Evaluations that are "
        "equal for two step counts are computed once. How many evaluations are there? Answer with a number.",
        number(
            shared_evaluations([schedule(steps) for steps in (1, 2, 3, 4, 8)])[0],
            because="All begin with one evaluation at sigma 1, and share no other: their second levels differ.",
            wrong={
                18: "All of them begin at the same noise and the same sigma. What do they compute there?",
                8: "Four steps visit levels of eight, but they arrive there with another x.",
                13: "The shared evaluation is computed once, and not never.",
                12: "Equal levels are not enough: x has to be equal too.",
                10: "The step count of 8 has evaluations of its own after the first.",
            },
            otherwise="Which evaluations have the same x, sigma and prompt? Count those once.",
        ),
    ),
    Exercise(
        "seeds-and-steps-2",
        "A run of eight even steps is stopped after four. Which share of x is noise then? Answer with a number from "
        "0 to 1.",
        number(
            schedule(8)[4],
            because="Four of eight steps end at the fourth of the eight levels below 1; four of four would be at 0.",
            wrong={
                0.0: "That is where four of four steps end. How far apart are the levels of eight steps?",
                0.625: "The last evaluation was there. Where does that step end?",
                0.375: "That is one step further.",
                4.0: "The share is a number from 0 to 1.",
                50.0: "The share is a number from 0 to 1.",
            },
            otherwise="The share of noise in x is sigma. Which sigma follows the fourth step?",
        ),
    ),
    Exercise(
        "seeds-and-steps-3",
        "Sample two trajectories that begin at the same noise and differ in nothing but the prompt. Answer with both: "
        "`(one, other)`.",
        _one_noise_two_prompts,
    ),
    Exercise(
        "bent-paths-1",
        "The data are the two points 0 and 4 on a line, equally likely. Noise is at x = 1 and sigma is 1. Where does "
        "one step of the exact flow to sigma 0 end? Answer with a number.",
        number(
            2,
            because="At sigma 1 both points are equally likely, whatever x is, and the step ends at their mean.",
            wrong={
                -1: "That is the velocity, `x - mean of the data`. Where does a step with it end?",
                0: "The nearer point is not the likelier one at sigma 1, since x is noise alone.",
                4: "That is one of the two points. Can the flow choose one at sigma 1?",
                1: "That is the noise. The step goes from there to the estimate of the data.",
                3: "The step goes against the velocity, from sigma 1 down to 0.",
                0.5: "At sigma 1 the place of x has no part in the estimate of the data.",
            },
            otherwise="What is the mean of the data, given x at sigma 1? The step ends there.",
        ),
    ),
    Exercise(
        "bent-paths-2",
        "Write a function `mean_of_data(x, sigma, points)` for equally likely data points on a line and noise with a "
        "standard deviation of 1: the mean of the data, given that x = (1 - sigma) data + sigma noise. Answer with the "
        "function.",
        function(
            _posterior_mean(lambda x, sigma, p: math.exp(-(((x - (1 - sigma) * p) / sigma) ** 2) / 2)),
            inputs=[(1.0, 1.0, (0.0, 4.0)), (0.6, 0.5, (-1.0, 1.0)), (0.9, 0.8, (0.0, 1.0, 3.0))],
            because="Each point counts as much as the noise of its line through x is likely.",
            wrong=[
                (_posterior_mean(lambda x, sigma, p: 1.0), "This is the mean of all points. x has to enter."),
                (lambda x, sigma, points: min(points, key=lambda p: abs(x - (1 - sigma) * p)),
                 "This is the likeliest point. The mean weighs all of them."),
                (_posterior_mean(lambda x, sigma, p: math.exp(-(((x - p) / sigma) ** 2) / 2)),
                 "At level sigma a data point has moved towards 0. By which factor?"),
                (_posterior_mean(lambda x, sigma, p: math.exp(-((x - (1 - sigma) * p) ** 2) / 2)),
                 "At level sigma the noise in x has another standard deviation than 1."),
                (_posterior_mean(lambda x, sigma, p: math.exp(-(((x - (1 - sigma) * p) / sigma) ** 2))),
                 "The exponent of a normal density has a factor that is missing here."),
            ],
            otherwise="For each point, compute the noise of its line through x, and weigh the point by the normal "
                "density of that noise. The weights have the sum 1.",
        ),
    ),
    Exercise(
        "bent-paths-3",
        "Reflow trains a second flow on pairs of noise and the end of the first flow's path from it. What does it "
        "change in the training?\n"
        "a) the distribution of the noise\n"
        "b) which noise is paired with which data\n"
        "c) the lines of the pairs, which are bent as the paths are\n"
        "d) the loss, which rewards straight paths\n"
        "Answer with a letter.",
        choice(
            "b",
            because="Few of the new lines change sides, so there is little to average, and the paths become straight.",
            wrong={
                "a": "The noise of the pairs is drawn as before. What belongs to it?",
                "c": "A training line joins two ends directly, whatever path led from one to the other.",
                "d": "The loss is the same squared error. What is it given?",
            },
        ),
    ),
)  # fmt: skip
