"""The exercises of the notebooks: right answers, typical wrong ones, and no answer given away."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.lessons.check import EXERCISES
from fluxnb.planning.presets import PRESETS


def run(prompt: str, noise: list[float], steps: int = 4) -> SimpleNamespace:
    """What the judge of trajectories reads of one."""

    class Run(SimpleNamespace):
        def __len__(self) -> int:
            return steps

    return Run(prompt=prompt, x_T=torch.tensor(noise))


def slerp(a, b, share):
    theta = torch.arccos((a / a.norm() * b / b.norm()).sum())
    return (torch.sin((1 - share) * theta) * a + torch.sin(share * theta) * b) / torch.sin(theta)


def posterior_mean(x, sigma, points):
    weights = torch.softmax(-(((x - (1 - sigma) * points) / sigma) ** 2) / 2, 0)
    return (weights * points).sum()


def heun(v, x, sigma, sigma_next):
    step = sigma_next - sigma
    first = v(x, sigma)
    return x + step / 2 * (first + v(x + step * first, sigma_next))


def scale(weights, bits):
    return abs(weights).max() / (2 ** (bits - 1) - 1)


def multiples(weights, step, nearest=torch.round):
    return nearest(weights / step) * step


def rounded(weights, bits):
    weights = torch.as_tensor(weights)
    return multiples(weights, scale(weights, bits))


# For each exercise: right answers, then wrong answers with a word of the idea that the verdict names.
ANSWERS = {
    "quickstart-1": ([lambda x, v, sigma: x - sigma * v, lambda x, v, s: x - v * s],
                     [(lambda x, v, s: x - v, "sigma 1 to sigma 0"), (lambda x, v, s: x + s * v, "points"),
                      (lambda x, v, s: x + (1 - s) * v, "noise estimate"), (lambda x, v, s: 0.0, "direction"),
                      (lambda x, v, s: None, "return"), (lambda x, v: x, "TypeError"), (0.5, "a function")]),
    "quickstart-2": ([1, 1.0, torch.tensor(1.0), np.float32(1)],
                     [(5, "exchanged"), (0.75, "three quarters"), (0.3333333, "negative"), (0.5, "blend"),
                      (17, "formula"), ("one", "number"), (math.nan, "number"), (True, "number")]),
    "quickstart-3": (["b", "B", "b)", ["b"]], [("a", "noise enters"), ("c", "decodes"), ("d", "larger"),
                                               ("e", "letters"), ("ab", "letters"), (2, "letters")]),
    "step-by-step-1": ([lambda x, v, a, b: x + (b - a) * v],
                       [(lambda x, v, a, b: x + (a - b) * v, "more noise"), (lambda x, v, a, b: x - a * v, "at once"),
                        (lambda x, v, a, b: x - b * v, "length of a step"), (lambda x, v, a, b: x + v, "per unit")]),
    "step-by-step-2": ([0.75], [(0.5, "after the step"), (1, "from 0"), (0.25, "two levels"), (0, "stopped"),
                                (3, "five levels")]),
    "step-by-step-3": (["b"], [("a", "left of v"), ("c", "sigma"), ("d", "index")]),
    "seeds-and-steps-1": ([14], [(18, "same noise"), (13, "computed once"), (8, "another x"), (12, "x has to"),
                                 (10, "of its own"), (99, "Count those once")]),
    "seeds-and-steps-2": ([0.5], [(0, "four of four"), (0.625, "last evaluation"), (0.375, "further"), (4, "0 to 1"),
                                  (0.9, "sigma")]),
    "seeds-and-steps-3": ([(run("a fox", [1.0]), run("a cat", [1.0]))],
                          [((run("a fox", [1.0]), run("a fox", [1.0])), "same prompt"),
                           ((run("a fox", [1.0]), run("a cat", [2.0])), "different noises"),
                           ((run("a fox", [1.0]), run("a cat", [1.0, 2.0])), "size"),
                           ((run("a fox", [1.0]), run("a cat", [1.0], 2)), "step counts"), (3, "two trajectories")]),
    "bent-paths-1": ([2, 2.0], [(-1, "velocity"), (0, "nearer"), (4, "choose"), (1, "the noise"), (3, "against"),
                                (0.5, "no part"), (7, "mean")]),
    "bent-paths-2": ([posterior_mean],
                     [(lambda x, s, p: p.mean(), "all points"),
                      (lambda x, s, p: p[((x - (1 - s) * p) ** 2).argmin()], "likeliest"),
                      (lambda x, s, p: (torch.softmax(-(((x - p) / s) ** 2) / 2, 0) * p).sum(), "moved towards 0"),
                      (lambda x, s, p: (torch.softmax(-((x - (1 - s) * p) ** 2) / 2, 0) * p).sum(), "another standard"),
                      (lambda x, s, p: (torch.softmax(-(((x - (1 - s) * p) / s) ** 2), 0) * p).sum(), "factor"),
                      (lambda x, s, p: x, "weigh the point"), (3, "a function")]),
    "bent-paths-3": (["b"], [("a", "drawn as before"), ("c", "directly"), ("d", "squared error")]),
    "distillation-1": ([14], [(7, "ratio of the steps"), (28, "teacher alone"), (56, "ratio"), (3.5, "slower"),
                              (52, "difference"), (1, "divide")]),
    "distillation-2": (["b"], [("a", "Measure"), ("c", "encoders"), ("d", "formula")]),
    "distillation-3": (["ac", "a, c", {"a", "c"}, "a and c"],
                       [("a", "sum"), ("abc", "exchanged"), ("b", "two pictures"), ("acd", "independently"),
                        (1, "letters")]),
    "few-steps-1": ([lambda s, a: a * s / (1 + (a - 1) * s)],
                    [(lambda s, a: a * s, "leaves the range"), (lambda s, a: s / (a - (a - 1) * s), "inverse"),
                     (lambda s, a: s**a, "power"), (lambda s, a: s ** (1 / a), "ratio"), (lambda s, a: s, "nothing"),
                     (lambda s, a: 1 / 0, "ZeroDivisionError")]),
    "few-steps-2": ([3], [(2, "without a shift"), (4, "last"), (1, "first level"), (0, "Apply")]),
    "few-steps-3": (["a"], [("b", "whole prompt"), ("c", "seed"), ("d", "28 steps")]),
    "critic-1": ([1.5], [(2, "equally likely"), (1, "which of the two"), (3, "which of the two"), (-1.5, "points"),
                         (0.5, "difference"), (2.5, "same side"), (7, "mean")]),
    "critic-2": (["b"], [("a", "wider"), ("c", "small"), ("d", "visible")]),
    "critic-3": (["c"], [("a", "perfect"), ("b", "likely"), ("d", "sharp")]),
    "teacher-and-student-1": ([lambda a, b: (a - b).pow(2).mean().sqrt(), lambda a, b: np.sqrt(np.mean((a - b) ** 2)),
                               lambda a, b: math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))],
                              [(lambda a, b: (a - b).pow(2).mean(), "One operation"),
                               (lambda a, b: (a - b).norm(), "Take the mean"),
                               (lambda a, b: (a - b).abs().mean(), "absolute"),
                               (lambda a, b: (a - b).mean().abs(), "cancel")]),
    "teacher-and-student-2": (["b"], [("a", "smaller"), ("c", "how often"), ("d", "x_T")]),
    "teacher-and-student-3": ([1], [(4, "one of two"), (0, "now and then"), (8, "completely"), (0.125, "one seed"),
                                    (5, "probability")]),
    "guidance-1": ([lambda c, u, w: u + w * (c - u), lambda c, u, w: w * c + (1 - w) * u],
                   [(lambda c, u, w: c + w * (c - u), "beyond c already"), (lambda c, u, w: w * c, "longer"),
                    (lambda c, u, w: c + w * (u - c), "away"), (lambda c, u, w: c + w * u, "correction"),
                    (lambda c, u, w: (c + w * u) / (1 + w), "mean")]),
    "guidance-2": ([28], [(56, "classifier-free"), (98, "scale"), (29, "none of its own"), (1, "one step")]),
    "guidance-3": (["ab"], [("a", "beyond"), ("abc", "evaluations"), ("abd", "weight"), ("b", "the rest")]),
    "seeds-1": ([slerp], [(lambda a, b, t: (1 - t) * a + t * b, "shorter"),
                          (lambda a, b, t: slerp(b, a, t), "exchanged"),
                          (lambda a, b, t: math.cos(1.5707963 * t) * a + math.sin(1.5707963 * t) * b, "angle")]),
    "seeds-2": ([0.707, 0.5**0.5, torch.tensor(0.7071)], [(0.72, "close"), (0.5, "variance"), (1, "less"),
                                                         (2, "sum"), (1.41421, "sum"), (0.25, "two of them")]),
    "seeds-3": (["b"], [("a", "remove"), ("c", "applied"), ("d", "before")]),
    "backwards-1": ([5], [(15, "left out"), (20, "left out"), (4, "share"), (1, "share")]),
    "backwards-2": ([-0.2, 0.4 - 0.6], [(0.2, "exchanged"), (0.4, "noise"), (-0.6, "picture"), (1, "negative"),
                                        (1.6, "mixture"), (9, "blend")]),
    "backwards-3": (["a"], [("b", "random"), ("c", "VAE"), ("d", "Rounding")]),
    "solvers-1": ([15], [(16, "last"), (8, "evaluations"), (4, "more steps"), (17, "saves"), (3, "Count")]),
    "solvers-2": ([4], [(2, "order 1"), (8, "single step"), (0.25, "ratio"), (0.5, "ratio"), (3, "power")]),
    "solvers-3": ([heun], [(lambda v, x, a, b: x + (b - a) * v(x, a), "Euler"),
                           (lambda v, x, a, b: x + (b - a) * v(x + (b - a) / 2 * v(x, a), (a + b) / 2), "midpoint"),
                           (lambda v, x, a, b: x + (b - a) * (v(x, a) + v(x, b)) / 2, "old x"),
                           (lambda v, x, a, b: x + (b - a) * v(x + (b - a) * v(x, a), b), "far end"),
                           (lambda v, x, a, b: x + (b - a) * (v(x, a) + v(x + (b - a) * v(x, a), b)), "twice")]),
    "fit-your-gpu-1": ([22.17, 22.2, 11.9e9 * 2 / 2**30], [(23.8, "GB"), (11.08, "16 bits"), (44.33, "float32"),
                                                           (22.5, "close"), (1, "divided")]),
    "fit-your-gpu-2": ([12], [(60, "seed"), (4, "prompt"), (3, "timestep"), (7, "each"), (20, "prompt"),
                              (15, "timestep"), (1, "pairs")]),
    "fit-your-gpu-3": (["bd"], [("b", "4"), ("abd", "stored"), ("bcd", "copied"), ("d", "8")]),
    "latents-1": ([12], [(64, "channels"), (4, "three"), (8, "width"), (1.5, "width"), (192, "one channel"),
                         (9, "8 x 8")]),
    "latents-2": ([4096], [(16384, "places"), (64, "one row"), (1024, "wide"), (8192, "halves"), (1, "rows")]),
    "latents-3": ([lambda a, b: -10 * torch.log10((a - b).pow(2).mean()),
                   lambda a, b: 10 * np.log10(1 / np.mean((a - b) ** 2))],
                  [(lambda a, b: 10 * torch.log10((a - b).pow(2).mean()), "sign"),
                   (lambda a, b: -10 * torch.log((a - b).pow(2).mean()), "natural"),
                   (lambda a, b: -20 * torch.log10((a - b).pow(2).mean()), "root"),
                   (lambda a, b: 10 * torch.log10(255**2 / (a - b).pow(2).mean()), "255"),
                   (lambda a, b: (a - b).pow(2).mean(), "logarithm"),
                   (lambda a, b: -10 * torch.log10((a - b).pow(2).sum()), "sum")]),
    "bias-1": ([13.8, 13.797], [(0, "exclude"), (4.1667, "one picture"), (0.138, "percent"), (12.5, "rule of three"),
                                (13.3, "close"), (50, "fnb.metrics.Count")]),
    "bias-2": (["a"], [("b", "contain"), ("c", "compared"), ("d", "estimate")]),
    "bias-3": (["b"], [("a", "limit"), ("c", "common"), ("d", "valid")]),
    "fewer-bits-1": ([rounded, lambda w, b: rounded(np.array(w.tolist()), b)],
                     [(lambda w, b: (w / w.abs().max() * (2 ** (b - 1) - 1)).round(), "Multiply them"),
                      (lambda w, b: rounded(w, b + 1), "sign"),
                      (lambda w, b: multiples(w, w.abs().max() / 2 ** (b - 1)), "one level too many"),
                      (lambda w, b: multiples(w, scale(w, b), torch.floor), "next lower"),
                      (lambda w, b: multiples(w, scale(w, b), torch.trunc), "towards 0"),
                      (lambda w, b: multiples(w, w.max() / (2 ** (b - 1) - 1)), "negative"),
                      (lambda w, b: w, "as they were"), (4, "a function")]),
    "fewer-bits-2": ([4.5], [(4, "scales"), (4.25, "groups of 64"), (20, "all weights"), (0.5, "of its own"),
                             (144, "whole group"), (5, "divide")]),
    "fewer-bits-3": (["c"], [("a", "Another seed"), ("b", "the other way around"), ("d", "another right one")]),
    "schnell-1": ([96], [(120, "same evaluation"), (24, "one step"), (48, "four evaluations"), (72, "once"),
                         (40, "each seed"), (192, "guidance"), (7, "pairs")]),
    "schnell-2": ([0.25], [(0, "now and then"), (0.5, "not two"), (1 / 3, "among those"), (0.75, "other three"),
                           (1, "everything"), (25, "a share"), (0.9, "how often")]),
    "schnell-3": (["b"], [("a", "Both"), ("c", "good"), ("d", "intervals")]),
    "three-machines-1": ([92.55, 92.5, 92.5474], [(48.13, "every value"), (98.57, "Four of them"), (44.42, "range"),
                                                  (68.48, "squared"), (42.11, "mean"), (185.09, "root"),
                                                  (92.1, "close"), (10, "divided")]),
    "three-machines-2": (["c"], [("a", "two requests"), ("b", "noise"), ("d", "standard")]),
    "three-machines-3": (["acd", "a, c, d"], [("abcd", "clock"), ("ac", "device"), ("ad", "adapter"), ("cd", "points"),
                                              ("b", "points")]),
}  # fmt: skip
RIGHT = [(name, answer) for name, (right, _) in ANSWERS.items() for answer in right]
WRONG = [(name, *pair) for name, (_, wrong) in ANSWERS.items() for pair in wrong]


def label(value: object) -> str | None:
    return value if isinstance(value, str) else None


def test_every_exercise_has_right_and_wrong_answers_here():
    assert set(ANSWERS) == set(EXERCISES)
    assert all(len(right) >= 1 and len(wrong) >= 3 for right, wrong in ANSWERS.values())


def test_there_are_three_exercises_for_each_notebook():
    notebooks = [each.notebook for each in fnb.exercises()]
    assert len(set(notebooks)) == 18 and all(notebooks.count(name) == 3 for name in notebooks)
    assert [each.name for each in fnb.exercises("bias")] == ["bias-1", "bias-2", "bias-3"]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=label)
def test_a_right_answer_is_right(name, answer):
    verdict = fnb.check(name, answer)
    assert verdict.status == "right" and verdict and len(verdict.message) > 15


@pytest.mark.parametrize(("name", "answer", "idea"), WRONG, ids=label)
def test_a_wrong_answer_is_met_with_the_idea_that_it_lacks(name, answer, idea):
    verdict = fnb.check(name, answer)
    assert verdict.status in ("nearly", "not yet") and not verdict
    assert idea.lower() in verdict.message.lower()


@pytest.mark.parametrize(("name", "answer", "idea"), WRONG, ids=label)
def test_a_verdict_on_a_wrong_answer_does_not_state_the_right_one(name, answer, idea):
    message, right = fnb.check(name, answer).message, ANSWERS[name][0][0]
    if isinstance(right, int | float):
        numbers = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", message)]
        assert right not in numbers
    elif isinstance(right, str) and len(right) == 1 and "letters" not in message:
        (option,) = re.findall(rf"^{right}\) (.*)$", EXERCISES[name].question, re.MULTILINE)
        assert option.rstrip(".") not in message


@pytest.mark.parametrize("name", EXERCISES)
def test_the_form_of_an_answer_is_part_of_the_question(name):
    exercise = EXERCISES[name]
    form = exercise.question.rsplit("Answer with", 1)[1]
    assert any(word in form for word in ("number", "letter", "function", "both"))
    assert ("Answer with a letter" in exercise.question) <= (exercise.question.count("\n") == 5)


@pytest.mark.parametrize("answer", [None, ...], ids=["none", "ellipsis"])
def test_without_an_answer_the_question_is_displayed(answer):
    verdict = fnb.check("guidance-2", answer)
    assert verdict.status == "open" and verdict.message == EXERCISES["guidance-2"].question and not verdict


def test_trajectories_of_one_seed_and_two_prompts_are_a_right_answer(toy):
    one, other = (fnb.run(toy, prompt, seed=1, steps=1) for prompt in ("a fox", "a cat"))
    assert fnb.check("seeds-and-steps-3", (one, other))
    assert fnb.check("seeds-and-steps-3", [one, fnb.run(toy, "a cat", seed=2, steps=1)]).status == "not yet"
    assert fnb.check("seeds-and-steps-3", one).status == "not yet"


def test_a_function_that_is_right_for_some_inputs_is_nearly_right():
    verdict = fnb.check("few-steps-1", lambda sigma, shift: 3 * sigma / (1 + 2 * sigma))
    assert verdict.status == "nearly" and "inputs, and not for sigma=" in verdict.message


def test_a_set_of_letters_with_one_mistake_is_nearly_right():
    assert fnb.check("distillation-3", "a").status == "nearly"
    assert fnb.check("distillation-3", "bd").status == "not yet"


def test_the_presets_of_an_exercise_are_exact_and_lossy_as_it_states():
    exact = {"a": "lean", "b": "lean-fp8", "c": "stream", "d": "lean-nf4"}
    lossy = "".join(letter for letter, name in exact.items() if not PRESETS[name].exact)
    assert fnb.check("fit-your-gpu-3", lossy)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("guidnce-2", 'fnb.check("guidance-2", answer)'), ("few steps", 'fnb.check("few-steps-1", answer)'),
     ("guidance-9", 'fnb.check("guidance-1", answer)'), ("xyzzy", "fnb.exercises()")],
)  # fmt: skip
def test_an_unknown_exercise_is_answered_in_three_parts(name, remedy):
    for call in (lambda: fnb.check(name, 3), lambda: fnb.exercises(name)):
        with pytest.raises(InputError) as caught:
            call()
        assert remedy in caught.value.remedy and caught.value.possible and len(str(caught.value)) < 500


def test_a_verdict_displays_as_text_and_as_html_with_escaped_text():
    verdict = fnb.check("quickstart-1", lambda x, v, sigma: int("<b>"))
    assert repr(verdict).startswith("quickstart-1: Not yet. For x=0.5")
    assert (
        "<b>" not in verdict._repr_html_().replace("<b>quickstart-1</b>", "") and "&lt;b&gt;" in verdict._repr_html_()
    )
    assert max(map(len, repr(fnb.exercises()).split("\n"))) <= 104
    assert fnb.exercises("guidance")._repr_html_().count("<div") == 3
    assert "<code>guided(c, u, w)</code>" in fnb.exercises("guidance-1")._repr_html_()
