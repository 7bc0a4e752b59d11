"""Exercises of the notebooks about models: memory, latents, bias, other programs, fewer bits, a large model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fluxnb.lessons.answers import Exercise, choice, choices, function, number

__all__ = ["EXERCISES"]


def _error(a: Any, b: Any) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def _scale(weights: Any, bits: int) -> float:
    return float(max(map(abs, weights))) / (2 ** (bits - 1) - 1)


def _to_multiples(weights: Any, scale: float, nearest: Callable[[float], int] = round) -> list[float]:
    return [nearest(float(weight) / scale) * scale for weight in weights]


def _rounded(weights: Any, bits: int) -> list[float]:
    return _to_multiples(weights, _scale(weights, bits))


EXERCISES = (
    Exercise(
        "fit-your-gpu-1",
        "A transformer has 11.9 billion weights in bfloat16. How many GiB (2**30 bytes) do they take? Answer with a "
        "number, to a tenth.",
        number(
            11.9e9 * 2 / 2**30,
            because="Two bytes a weight, divided by 2**30.",
            wrong={
                23.8: "That is in GB, of 10**9 bytes. A GiB is larger.",
                11.9e9 / 2**30: "bfloat16 has 16 bits. How many bytes are that?",
                11.9e9 * 4 / 2**30: "That is float32.",
                11.9: "One byte a weight, and in GB: bfloat16 has more bytes, and a GiB more than 10**9.",
                11.9e9 * 16 / 2**30: "16 is the number of bits.",
            },
            otherwise="Weights times bytes a weight, divided by 2**30.",
            tolerance=0.08,
            near=0.5,
        ),
    ),
    Exercise(
        "fit-your-gpu-2",
        "The modulation layers depend on the timestep and on the prompt, and on nothing of the picture. For how many "
        "different inputs are they evaluated if three prompts are sampled with five seeds each, in four steps, and "
        "every result is stored? Answer with a number.",
        number(
            12,
            because="Three prompts times four timesteps; the seeds share them.",
            wrong={
                60: "The seed changes the picture. Do the layers see it?",
                4: "The prompt enters too.",
                3: "The timestep enters too.",
                7: "Each prompt meets each timestep.",
                20: "The seed does not enter, and the prompt does.",
                15: "The seed does not enter, and the timestep does.",
            },
            otherwise="Count the different pairs of a timestep and a prompt.",
        ),
    ),
    Exercise(
        "fit-your-gpu-3",
        "Which of these presets change the bytes of the picture?\n"
        "a) lean: the results of the modulation layers are computed once and stored\n"
        "b) lean-fp8: weights in 8 bits\n"
        "c) stream: weights wait in main memory and are sent layer by layer\n"
        "d) lean-nf4: weights in 4 bits\n"
        "Answer with letters.",
        choices(
            "bd",
            because="Only other weights give other numbers. Where a weight waits and which results are stored changes "
                "nothing.",
            ideas={
                "a": "Does a stored result differ from the same result computed again?",
                "b": "How many different values has a number of 16 bits, how many one of 8?",
                "c": "Does a weight change when it is copied from one memory to another?",
                "d": "How many different values has a number of 16 bits, how many one of 4?",
            },
        ),
    ),
    Exercise(
        "latents-1",
        "The VAE of FLUX.1 turns a picture of three colors into latents of 16 channels, with one value for each 8 x 8 "
        "pixels. How many times fewer numbers are the latents? Answer with a number.",
        number(
            12,
            because="64 times fewer places, and 16 channels in place of 3.",
            wrong={
                64: "That is the ratio of the places. The number of channels changes too.",
                4: "A picture has three numbers at each pixel.",
                8: "An eighth of the width and an eighth of the height.",
                1.5: "An eighth of the width and an eighth of the height.",
                192: "The latents have more than one channel.",
            },
            otherwise="For 8 x 8 pixels: how many numbers are in the picture, how many in the latents?",
            near=0.01,
        ),
    ),
    Exercise(
        "latents-2",
        "FLUX.1 packs 2 x 2 places of the latents into one token. How many tokens has a picture of 1024 x 1024 pixels? "
        "Answer with a number.",
        number(
            4096,
            because="A token is 16 x 16 pixels: 64 rows of 64.",
            wrong={
                16384: "That is the number of places of the latents. Four of them are one token.",
                64: "That is one row.",
                1024: "A token is 2 x 2 places of 8 x 8 pixels: how many pixels wide is it?",
                8192: "Packing halves the width and the height.",
            },
            otherwise="How many pixels wide is one token? How many stand in a row, and how many rows are there?",
        ),
    ),
    Exercise(
        "latents-3",
        "Write a function `psnr(a, b)`: the peak signal-to-noise ratio in dB of two pictures with values from 0 to 1, "
        "given as tensors. It is 10 times the decimal logarithm of 1 / (mean squared error). Answer with the function.",
        function(
            lambda a, b: -10 * math.log10(_error(a, b)),
            inputs=[((0.5, 0.5, 0.5, 0.5), (0.6, 0.4, 0.5, 0.7)), ((0.0, 1.0), (0.3, 0.9)), ((0.2, 0.2), (0.25, 0.15))],
            because="Ten times less squared error is 10 dB more.",
            wrong=[
                (lambda a, b: 10 * math.log10(_error(a, b)), "The sign: a smaller error has to give a higher value."),
                (lambda a, b: -10 * math.log(_error(a, b)), "That is the natural logarithm."),
                (lambda a, b: -20 * math.log10(_error(a, b)), "20 belongs to the root of the mean squared error."),
                (lambda a, b: -10 * math.log10(math.sqrt(_error(a, b))), "10 belongs to the squared error, without a "
                    "root."),
                (lambda a, b: 10 * math.log10(255**2 / _error(a, b)), "The values end at 1 here, not at 255."),
                (lambda a, b: -10 * math.log10(_error(a, b) * len(a)), "This is the sum of the squares. Take the "
                    "mean."),
                (_error, "That is the mean squared error. Its logarithm is missing."),
            ],
            otherwise="Mean squared error first, then 10 times the decimal logarithm of its inverse.",
            tolerance=1e-4,
        ),
    ),
    Exercise(
        "bias-1",
        "None of 24 pictures shows night. What is the upper end of the 95 % interval of Wilson (1927) for the share of "
        "night, in percent? Answer with a number, to a tenth.",
        number(
            100 * 1.959964**2 / (24 + 1.959964**2),
            because="For 0 of n the interval ends at z**2 / (n + z**2), with z = 1.96.",
            wrong={
                0.0: "Twenty-four pictures cannot exclude a small share. The interval does not end at what was found.",
                100 / 24: "That is the share if it were found in one picture.",
                1.959964**2 / (24 + 1.959964**2): "The unit of the answer is percent.",
                12.5: "That is the rule of three, 3 / n, an approximation for many pictures.",
                100 * 1.959964 / (24 + 1.959964): "z enters as its square.",
            },
            otherwise="`fnb.metrics.Count` computes the interval. Try it for 0 of 24.",
            tolerance=0.11,
            near=0.6,
        ),
    ),
    Exercise(
        "bias-2",
        "In the training data 60 % of the foxes are in the snow. Of a model's foxes with the place left open, 22 of 24 "
        "are, with a 95 % interval from 74 to 98 %. What follows?\n"
        "a) The model draws snow more often than its data.\n"
        "b) Nothing: 24 pictures are too few.\n"
        "c) The training data are biased towards snow.\n"
        "d) The model draws exactly 92 % of all foxes in the snow.\n"
        "Answer with a letter.",
        choice(
            "a",
            because="The interval lies above the share of the data, so chance is no sufficient explanation.",
            wrong={
                "b": "The interval takes the number of pictures into account. Does it contain the share of the data?",
                "c": "Their share is known. What is compared here is the model with its data.",
                "d": "An interval is a range. What is certain, and what is an estimate?",
            },
        ),
    ),
    Exercise(
        "bias-3",
        "Ten nouns are sampled with the same 24 seeds each, 240 pictures in total. Why is the interval for 240 "
        "independent pictures too narrow?\n"
        "a) Twenty-four seeds are less than thirty.\n"
        "b) Pictures of one seed are related across nouns, so they are fewer observations than 240.\n"
        "c) The nouns are too different from each other.\n"
        "d) Wilson's interval is for small shares only.\n"
        "Answer with a letter.",
        choice(
            "b",
            because="Related pictures repeat each other. Other seeds for each noun make them independent.",
            wrong={
                "a": "There is no such limit; the interval accounts for the number. What does it assume about the "
                    "pictures?",
                "c": "Different nouns do not narrow an interval. What have their pictures in common?",
                "d": "It is valid for any share. What does it assume about the pictures?",
            },
        ),
    ),
    Exercise(
        "three-machines-1",
        "Two programs draw the picture of one recipe. Of its 110,592 color values, 4 differ, each by one level of 255. "
        "What is the peak signal-to-noise ratio of the two pictures in dB, 10 times the decimal logarithm of "
        "1 / (mean squared error) for values from 0 to 1? Answer with a number, to a tenth.",
        number(
            10 * math.log10(110_592 / 4 * 255**2),
            because="The mean squared error is 4 / 110,592 times (1 / 255)**2. Rounding is that small; other noise "
                "would give about 10 dB.",
            wrong={
                20 * math.log10(255): "That is the ratio if every value differed by one level. How many of them do?",
                10 * math.log10(110_592 * 255**2): "That is for one value. Four of them differ.",
                10 * math.log10(110_592 / 4): "That is for four values that differ by the whole range. One level is "
                    "1 / 255 of it.",
                10 * math.log10(110_592 / 4 * 255): "The error is squared: one level counts as (1 / 255)**2.",
                10 * math.log10(255**2 / 4): "The squared errors are summed here. Take their mean over all values.",
                20 * math.log10(110_592 / 4 * 255**2): "20 belongs to the root of the mean squared error.",
            },
            otherwise="Four squared errors of (1 / 255)**2, divided by the number of values; then the logarithm.",
            tolerance=0.06,
            near=0.6,
        ),
    ),
    Exercise(
        "three-machines-2",
        "A hosted endpoint draws the same picture whenever seed 3 is sent, and it is not the picture that "
        "`fnb.run(..., seed=3)` draws of the same prompt. What follows?\n"
        "a) The endpoint ignores the seed.\n"
        "b) The endpoint has other weights.\n"
        "c) The seed is repeatable there; its noise, or another part of the recipe, is different.\n"
        "d) One of the two programs draws the noise wrongly.\n"
        "Answer with a letter.",
        choice(
            "c",
            because="A seed names the noise of one generator on one kind of machine. The picture alone does not reveal "
                "what differs.",
            wrong={
                "a": "Then two requests would lead to different pictures.",
                "b": "That is possible. Would the same weights give this picture, if they began at different noise?",
                "d": "No standard defines the noise of a seed. PyTorch itself draws different numbers on a CPU and on "
                    "a GPU.",
            },
        ),
    ),
    Exercise(
        "three-machines-3",
        "Which of these does another program need in order to repeat a picture up to rounding?\n"
        "a) the noise levels that the scheduler visits\n"
        "b) the time at which the picture was made\n"
        "c) the LoRA that was applied, and its strength\n"
        "d) whether the noise was drawn on the CPU\n"
        "Answer with letters.",
        choices(
            "acd",
            because="They decide the initial noise, the network, and where it is evaluated.",
            ideas={
                "a": "Does the result of a run depend on the points at which the velocity is evaluated?",
                "b": "Does a run read the clock?",
                "c": "Are the weights with an adapter the weights without it?",
                "d": "Does PyTorch draw the same numbers from one seed on each device?",
            },
        ),
    ),
    Exercise(
        "fewer-bits-1",
        "Write a function `rounded(weights, bits)`: one group of weights, given as a tensor, rounded symmetrically. "
        "The integers go from -n to n with n = 2**(bits - 1) - 1, and the largest absolute weight becomes n times the "
        "scale. Return the rounded weights, not the integers. Answer with the function.",
        function(
            _rounded,
            inputs=[((0.11, -1.0, 0.26, 0.52), 4), ((0.9, -0.35, 0.2), 3), ((0.4, -0.05, -0.17, 0.08), 2)],
            because="The scale is the largest absolute weight divided by n; each weight becomes the nearest multiple.",
            wrong=[
                (lambda weights, bits: [value / _scale(weights, bits) for value in _rounded(weights, bits)],
                    "These are the integers. Multiply them by the scale."),
                (lambda weights, bits: _rounded(weights, bits + 1), "These are twice as many levels: one of the bits "
                    "is for the sign."),
                (lambda weights, bits: _to_multiples(weights, max(map(abs, weights)) / 2 ** (bits - 1)),
                    "From -n to n with n = 2**(bits - 1) there is one level too many for these bits."),
                (lambda weights, bits: _to_multiples(weights, _scale(weights, bits), math.floor),
                    "This takes the next lower level. Take the nearest."),
                (lambda weights, bits: _to_multiples(weights, _scale(weights, bits), math.trunc),
                    "This takes the next level towards 0. Take the nearest."),
                (lambda weights, bits: _to_multiples(weights, max(weights) / (2 ** (bits - 1) - 1)),
                    "The largest weight may be negative. Take its absolute value."),
                (lambda weights, bits: list(weights), "These are the weights as they were."),
            ],
            otherwise="Scale first: the largest absolute weight divided by n. Then round weights / scale, and multiply "
                "by the scale.",
        ),
    ),
    Exercise(
        "fewer-bits-2",
        "Weights are stored in 4 bits, in groups of 32 with one scale of 16 bits each. How many bits does a weight "
        "take on average? Answer with a number.",
        number(
            4.5,
            because="4 bits, and a share of 16 / 32 of the scale.",
            wrong={
                4: "The scales are stored as well.",
                4.25: "That is for groups of 64.",
                20: "A scale belongs to all weights of its group.",
                0.5: "That is the share of the scale. The weight has bits of its own.",
                144: "That is a whole group.",
                6: "The scale has 16 bits, and 32 weights share it.",
            },
            otherwise="Add up the bits of a group, and divide by the number of its weights.",
        ),
    ),
    Exercise(
        "fewer-bits-3",
        "Which of these shows that a model in 4 bits follows prompts worse than in 16 bits?\n"
        "a) Its pictures of the same prompts and seeds differ from those in 16 bits by 5 % of the range of a pixel.\n"
        "b) For one prompt and seed, the sign is right in 16 bits and wrong in 4 bits.\n"
        "c) Of 500 prompts it shows more wrong, and the 95 % intervals of both shares do not overlap.\n"
        "d) Its velocity is off by 13 %.\n"
        "Answer with a letter.",
        choice(
            "c",
            because="This counts what the question is about, in enough cases. The others show that pictures changed.",
            wrong={
                "a": "Another seed changes more pixels. Are its pictures worse?",
                "b": "For another prompt and seed it may be the other way around. How many cases are needed?",
                "d": "Does a velocity that is off lead to a wrong picture, or to another right one?",
            },
        ),
    ),
    Exercise(
        "schnell-1",
        "Six prompts and four seeds are sampled in one step and in four steps, without guidance. The first evaluation "
        "of a prompt and a seed is the same for both and is computed once. How many evaluations are there? Answer with "
        "a number.",
        number(
            96,
            because="24 pairs of a prompt and a seed take four evaluations each; the run of one step is the first of "
                "them.",
            wrong={
                120: "Both runs begin with the same evaluation.",
                24: "That is the run of one step.",
                48: "The run of four steps has four evaluations.",
                72: "The first evaluation has to be computed once.",
                40: "Each prompt is sampled with each seed.",
                10: "How many pairs of a prompt and a seed are there?",
                192: "Without guidance there is one evaluation a step.",
            },
            otherwise="How many pairs of a prompt and a seed are there, and how many evaluations does each take?",
        ),
    ),
    Exercise(
        "schnell-2",
        "For a picture of one prompt and seed, the nearest of four pictures of another prompt is searched for: one of "
        "the same seed, three of other seeds. In which share of cases is it the one of the same seed, if a seed holds "
        "nothing that two prompts share? Answer with a number from 0 to 1.",
        number(
            0.25,
            because="Then each of the four is the nearest equally often.",
            wrong={
                0: "By chance it is the nearest now and then.",
                0.5: "There are four pictures, not two.",
                1 / 3: "The one of the same seed is among those that are compared.",
                0.75: "That is the share of the other three.",
                1: "That would be a seed that holds everything.",
                4: "The answer is a share, 0 to 1.",
                25: "The answer is a share, 0 to 1.",
            },
            otherwise="If nothing distinguishes the four, how often is each of them the nearest?",
            near=0.01,
        ),
    ),
    Exercise(
        "schnell-3",
        "A claim that holds for pocket in 24 of 24 cases holds for another model in 15 of 24. What follows?\n"
        "a) One of the two measurements is wrong.\n"
        "b) The claim is about pocket, and is weaker or not true for the other model.\n"
        "c) The other model is worse.\n"
        "d) Nothing, because the two models were tried with other prompts.\n"
        "Answer with a letter.",
        choice(
            "b",
            because="The intervals, 86 to 100 % and 43 to 79 %, do not overlap. A claim is about what it was tried on.",
            wrong={
                "a": "Both may be right: they are about two models.",
                "c": "Is the claim about what is good?",
                "d": "The cases of each model are prompts and seeds of its own. Are the two intervals compatible?",
            },
        ),
    ),
)  # fmt: skip
