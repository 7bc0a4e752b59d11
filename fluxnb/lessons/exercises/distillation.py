"""Exercises of the notebooks about distillation: what it does, too few steps, a critic, a teacher and its student."""

from __future__ import annotations

import math
from typing import Any

from fluxnb.flow import schedule
from fluxnb.lessons.answers import Exercise, choice, choices, function, number

__all__ = ["EXERCISES"]


def _squares(a: Any, b: Any) -> list[float]:
    return [(x - y) ** 2 for x, y in zip(a, b, strict=True)]


EXERCISES = (
    Exercise(
        "distillation-1",
        "A teacher takes 28 steps with classifier-free guidance, which evaluates the network twice in each step. Its "
        "student takes 4 steps without guidance. How many times fewer evaluations does the student need? Answer with a "
        "number.",
        number(
            14,
            because="56 evaluations against 4.",
            wrong={
                7: "That is the ratio of the steps. How often does the teacher evaluate in each of them?",
                28: "Guidance doubles the evaluations of the teacher alone.",
                56: "That is the number of the teacher's evaluations. The question is for the ratio.",
                3.5: "Guidance makes the teacher slower, not the student.",
                52: "That is the difference. The question is for the ratio.",
            },
            otherwise="Count the evaluations of one picture for both, and divide.",
        ),
    ),
    Exercise(
        "distillation-2",
        "Why is guidance not applied to a student that was distilled from a guided teacher?\n"
        "a) With and without the prompt, its velocities are equal.\n"
        "b) The pictures it learned from were guided already, and it was not trained with an empty prompt.\n"
        "c) It has no text encoder.\n"
        "d) Its paths are straight, and guidance needs bent ones.\n"
        "Answer with a letter.",
        choice(
            "b",
            because="Guidance is part of what it learned, and its answer to an empty prompt was never trained.",
            wrong={
                "a": "Measure it: the two velocities differ at least as much as the teacher's. What is each of "
                    "them worth?",
                "c": "It reads the same prompts as its teacher, with the same encoders.",
                "d": "The formula of guidance does not mention the path. What did the student see in training?",
            },
        ),
    ),
    Exercise(
        "distillation-3",
        "Which of these losses are at their minimum only if the student takes each noise to the picture that the "
        "teacher makes of that same noise?\n"
        "a) the squared distance of the student's picture from the teacher's picture of the same noise\n"
        "b) the loss of a critic that sees single pictures\n"
        "c) the sum of a and b\n"
        "d) the squared distance of the velocity from `noise - picture`, for pairs drawn independently\n"
        "Answer with letters.",
        choices(
            "ac",
            because="Only pairs of a noise and its picture state which belongs to which.",
            ideas={
                "a": "A loss that compares two pictures of one noise depends on which noise leads where.",
                "b": "A critic that sees pictures without their noise cannot notice that two of them were exchanged.",
                "c": "A sum is smallest where each part is smallest, if both can be at once.",
                "d": "If noise and picture are drawn independently, nothing in the pair states which belong together.",
            },
        ),
    ),
    Exercise(
        "few-steps-1",
        "Write a function `shifted(sigma, shift)`, the time shift of SD3 and FLUX: it leaves 0 and 1 where they are, "
        "and for a shift above 1 it raises the levels between. Answer with the function.",
        function(
            lambda sigma, shift: shift * sigma / (1 + (shift - 1) * sigma),
            inputs=[(0.5, 3.0), (0.25, 1.6), (0.75, 0.5), (1.0, 3.0), (0.0, 2.0)],
            because="It is the level whose ratio of noise to picture, sigma / (1 - sigma), is `shift` times larger.",
            wrong=[
                (lambda sigma, shift: shift * sigma, "At sigma 1 this leaves the range. Which level has to stay at 1?"),
                (lambda sigma, shift: sigma / (shift - (shift - 1) * sigma),
                 "This is the inverse: it lowers the levels where it should raise them."),
                (lambda sigma, shift: sigma**shift, "A power keeps 0 and 1, and it lowers the levels for a shift "
                    "above 1."),
                (lambda sigma, shift: sigma ** (1 / shift),
                 "The ends and the direction are right. The shift multiplies the ratio sigma / (1 - sigma)."),
                (lambda sigma, shift: sigma, "This changes nothing. The shift has to enter."),
            ],
            otherwise="Multiply the ratio r = sigma / (1 - sigma) by the shift, and convert it back: sigma = r / (1 "
                "+ r).",
        ),
    ),
    Exercise(
        "few-steps-2",
        "Four even steps with a time shift of 3: how many of the four evaluations are at a sigma above 0.7? Answer "
        "with a number.",
        number(
            sum(sigma > 0.7 for sigma in schedule(4, shift=3.0)[:-1]),
            because="The levels are 1, 0.9, 0.75 and 0.5.",
            wrong={
                2: "That is the number without a shift. The shift raises the levels.",
                4: "The last of the four even levels is 0.25. Where does the shift move it?",
                1: "Above 0.7 there is more than the first level, even without a shift.",
            },
            otherwise="Apply the shift to 1, 0.75, 0.5 and 0.25, and count.",
        ),
    ),
    Exercise(
        "few-steps-3",
        "A prompt leaves the place open. A flow draws many places in 28 steps, and nearly one and the same "
        "background for "
        "all seeds in 4. Why?\n"
        "a) The first long step follows an average over all places, and is over before one was chosen.\n"
        "b) Fewer steps use less of the prompt.\n"
        "c) Four steps draw other noise than 28.\n"
        "d) The one place is the most frequent in the training data.\n"
        "Answer with a letter.",
        choice(
            "a",
            because="At high noise the velocity points to the mean of all places; a long step goes there, past the "
                "choice.",
            wrong={
                "b": "Every evaluation reads the whole prompt. What does the velocity point to at high noise?",
                "c": "The seed decides the noise, and both begin at the same.",
                "d": "Then 28 steps would draw it most often too. What differs between a short and a long step?",
            },
        ),
    ),
    Exercise(
        "critic-1",
        "The data are two numbers: 1 with probability 3/4 and -1 with probability 1/4. At sigma 1 a point is at x = 2. "
        "Which velocity has the smallest expected squared error there? Answer with a number.",
        number(
            1.5,
            because="At sigma 1, x is the noise, which is independent of the data: v = x - mean of the data.",
            wrong={
                2.0: "The two numbers are not equally likely.",
                1.0: "At sigma 1, x does not determine which of the two numbers belongs to it.",
                3.0: "At sigma 1, x does not determine which of the two numbers belongs to it.",
                -1.5: "The velocity points from the data to the noise.",
                0.5: "That is the mean of the data. The velocity is a difference.",
                2.5: "The mean of the data is on the same side of 0 as x.",
            },
            otherwise="The velocity is `noise - data`. What is its mean, given x at sigma 1?",
        ),
    ),
    Exercise(
        "critic-2",
        "Before a critic compares points of the student with points of the teacher, noise is added to both. If it is "
        "much noise, what can the best critic still detect?\n"
        "a) that each blob is too wide\n"
        "b) that some blobs are drawn too often\n"
        "c) both, equally well\n"
        "d) neither, even with little noise\n"
        "Answer with a letter.",
        choice(
            "b",
            because="Noise hides what is small. The shares of the blobs are large-scale and stay visible longest.",
            wrong={
                "a": "Noise that is wider than a blob hides the width of the blob.",
                "c": "One of the two faults is small compared with the noise, and the other is not.",
                "d": "With little noise both are visible, each in its own way.",
            },
        ),
    ),
    Exercise(
        "critic-3",
        "A student takes each noise to the picture that its teacher makes of the opposite noise, `-noise`. What "
        "notices?\n"
        "a) a critic that sees single pictures\n"
        "b) a distance between the two distributions of pictures\n"
        "c) the cosine between a noise and the picture that it leads to, compared with the teacher's\n"
        "d) the sharpness of the pictures\n"
        "Answer with a letter.",
        choice(
            "c",
            because="`-noise` is as likely as `noise`, so the pictures are the same as a set. Only the pairs are "
                "turned.",
            wrong={
                "a": "Each single picture is a perfect picture of the teacher.",
                "b": "`-noise` is as likely as `noise`. Which pictures are drawn, and how often?",
                "d": "Each picture is as sharp as the teacher's.",
            },
        ),
    ),
    Exercise(
        "teacher-and-student-1",
        "Write a function `rms(a, b)`: the root mean square of the differences of two sets of latents, given as "
        "tensors. Answer with the function.",
        function(
            lambda a, b: math.sqrt(sum(_squares(a, b)) / len(a)),
            inputs=[((0.0, 0.0, 0.0), (1.0, -1.0, 3.0)), ((1.0, 2.0), (1.0, 2.0)), ((0.5, -1.0), (-0.5, 2.0))],
            because="Difference, square, mean, root, in this order.",
            wrong=[
                (lambda a, b: sum(_squares(a, b)) / len(a), "This is the mean square. One operation is missing."),
                (lambda a, b: math.sqrt(sum(_squares(a, b))),
                 "This is the Euclidean distance, which grows with the number of values. Take the mean."),
                (lambda a, b: sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a),
                 "This is the mean of the absolute differences. Squares weigh large differences more."),
                (lambda a, b: abs(sum(x - y for x, y in zip(a, b, strict=True)) / len(a)),
                 "Positive and negative differences cancel here. Square them first."),
            ],
            otherwise="Read the name from right to left: square, mean, root.",
        ),
    ),
    Exercise(
        "teacher-and-student-2",
        "The student's picture of a seed is as far from the teacher's picture of that seed as from its pictures of "
        "other seeds, and all pictures of both are good. What follows?\n"
        "a) The student keeps which noise leads to which picture.\n"
        "b) The student does not keep it, and may still draw the same distribution.\n"
        "c) The student draws another distribution.\n"
        "d) The two models read the seed as different noise.\n"
        "Answer with a letter.",
        choice(
            "b",
            because="The map from noise to picture and the distribution of pictures are two things.",
            wrong={
                "a": "If it preserved that, which of the two distances would be smaller?",
                "c": "The distances of single pictures do not determine how often each picture is drawn.",
                "d": "The noise of a seed does not depend on the model; the notebook compares `x_T`.",
            },
        ),
    ),
    Exercise(
        "teacher-and-student-3",
        "For each of 8 seeds, the student's picture is compared with the teacher's pictures of all 8 seeds. For how "
        "many seeds is the nearest one that of the same seed, on average, if the student keeps nothing of the map? "
        "Answer with a number.",
        number(
            1,
            because="By chance each of the eight is the nearest with probability 1/8, for each of eight seeds.",
            wrong={
                4: "The nearest is one of eight pictures, not one of two.",
                0: "Chance finds the same seed now and then.",
                8: "That is the number for a map that is preserved completely.",
                0.125: "That is the probability for one seed. There are eight.",
            },
            otherwise="What is the probability for one seed if each of the eight pictures is equally likely the "
                "nearest?",
            near=0.05,
        ),
    ),
)  # fmt: skip
