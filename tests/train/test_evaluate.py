"""The evaluation: its arithmetic against what can be known, and the whole command on the smallest networks."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sentencepiece")

from fluxnb.errors import StorageError
from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY
from fluxnb.train.data.render import Renderer, lay_out
from fluxnb.train.evaluation.acceptance import OPEN, TARGETS, acceptance, as_json, judge_target, summary
from fluxnb.train.evaluation.ask import hits, noise_for, painter, render_scenes, scenes_to_ask
from fluxnb.train.evaluation.examiner import Asked, Examiner, free_questions
from fluxnb.train.evaluation.features import Untrained
from fluxnb.train.evaluation.figure import MET, MISSED, figure_of
from fluxnb.train.evaluation.gather import another, gather, guidance_of, student_beside
from fluxnb.train.evaluation.judge import Judge, save_judge
from fluxnb.train.evaluation.kept import Kept, Reading
from fluxnb.train.evaluation.measure import (
    Estimate,
    alignment,
    bootstrap,
    entropy,
    frechet,
    gradient_energy,
    over_seeds,
    ratio,
    ratio_of_shares,
    vendi,
    wilson,
)
from fluxnb.train.networks.build import build_autoencoder
from fluxnb.train.networks.files import build_denoiser, save_denoiser, save_transformer
from fluxnb.train.stages.autoencoder import encode
from fluxnb.train.stages.loop import Rank
from fluxnb.train.stages.watch import Watch

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with random networks; the student is the teacher with other weights in its last layer."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    teacher = build_denoiser(TINY.sizes)
    torch.nn.init.normal_(teacher.transformer.proj_out.weight, std=0.1)
    save_denoiser(teacher, out)
    torch.nn.init.normal_(teacher.transformer.proj_out.weight, std=0.2)
    save_transformer(teacher.transformer, out / "student.safetensors", Rank(0, 1, CPU))
    build_autoencoder(TINY.sizes).save_pretrained(out / "vae")
    save_judge(Judge(), out / "judge.safetensors")
    return out


@pytest.fixture(scope="module")
def networks(run):
    return gather(run, TINY.sizes, CPU)


FEW = ["--preset", "tiny", "--count", "4", "--seeds", "2", "--prompts", "4", "--noises", "3"]


@pytest.fixture(scope="module")
def found(run):
    """What the command writes."""
    main(["evaluate", "--model", str(run), *FEW, "--save", str(run / "found.json"), "--figure", str(run / "found.png"),
          "--keep", str(run / "kept")])  # fmt: skip
    return json.loads((run / "found.json").read_text())


def drawn_again(run, monkeypatch):
    """The labels that an evaluation of the same folder reads anew, and what it writes."""
    from fluxnb.train.evaluation import evaluate

    drawn, read, true = [], evaluate._drawn, evaluate._true
    monkeypatch.setattr(evaluate, "_drawn", lambda *given: (drawn.append(given[1]), read(*given))[1])
    monkeypatch.setattr(evaluate, "_true", lambda *given: (drawn.append(given[1]), true(*given))[1])
    main(["evaluate", "--model", str(run), *FEW, "--save", str(run / "again.json"), "--keep", str(run / "kept")])
    return len(drawn), json.loads((run / "again.json").read_text())


def test_an_evaluation_goes_on_with_the_readings_that_are_kept(run, found, monkeypatch):
    (run / "kept" / "student@4.json").unlink()
    assert drawn_again(run, monkeypatch) == (1, found)


@pytest.mark.parametrize("damage", ["{", '{"key": 1}', "[]"])
def test_a_kept_reading_that_is_damaged_is_read_anew(run, found, monkeypatch, damage):
    file = run / "kept" / "teacher, unguided@4.json".replace(", ", "-")
    file.write_text(damage)
    assert drawn_again(run, monkeypatch) == (1, found)


def test_a_reading_that_cannot_be_kept_is_told_and_not_lost(tmp_path, monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(full))
    reading = Reading({})
    assert Kept(tmp_path).reading("teacher@28", lambda: reading) is reading
    assert "teacher@28 is not kept" in capsys.readouterr().err and not (tmp_path / "teacher@28.json").exists()


def test_readings_of_other_weights_are_not_taken(run, found, monkeypatch):
    student = run / "student.safetensors"
    before = student.read_bytes()
    other = build_denoiser(TINY.sizes)
    save_transformer(other.transformer, student, Rank(0, 1, CPU))
    again, _ = drawn_again(run, monkeypatch)
    student.write_bytes(before)
    assert again == sum(label.startswith("student@") for label in found["settings"])


# ------------------------------------------------------------------------------------------------ the whole command
def test_the_command_puts_student_teacher_and_renders_side_by_side(found):
    labels = {"student@4", "student@1", "teacher@28", "teacher@4", "teacher@1", "renders", "reconstructions"}
    assert labels <= set(found["settings"])


def test_every_target_is_judged_when_there_is_a_student(found):
    settings = found["settings"]
    for target in TARGETS:
        for limits, label in ((target.four, "student@4"), (target.one, "student@1")):
            assert limits is None or target.judged in settings[label], (target.words, label)
    assert found["summary"]["of"] == sum((t.four is not None) + (t.one is not None) for t in TARGETS)


def test_a_share_says_how_many_pictures_it_rests_on(found):
    share = found["settings"]["student@4"]["object/seen"]
    assert share["n"] == 8 and share["how"] == "wilson" and share["low"] <= share["value"] <= share["high"]


def test_the_figure_is_written(run, found):
    from PIL import Image

    assert Image.open(run / "found.png").width > 1000


def test_a_folder_without_a_judge_says_how_to_get_one(tmp_path):
    with pytest.raises(StorageError, match="train judge"):
        gather(tmp_path, TINY.sizes, CPU)


def test_a_student_that_is_not_there_is_said(tmp_path, networks):
    with pytest.raises(StorageError, match="no transformer"):
        another(tmp_path, networks.denoiser)
    assert student_beside(tmp_path) is None


def test_a_student_loads_the_same_from_a_file_and_from_a_folder(run, tmp_path, networks):
    from_file = another(run / "student.safetensors", networks.denoiser)
    from_file.transformer.save_pretrained(tmp_path / "transformer")
    from_folder = another(tmp_path, networks.denoiser)
    both = zip(from_file.transformer.parameters(), from_folder.transformer.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)
    assert not torch.equal(from_file.transformer.proj_out.weight, networks.denoiser.transformer.proj_out.weight)


def test_the_watch_gives_what_the_student_is_chosen_by(networks):
    watch = Watch(networks.judge, Renderer(CPU), networks.vae, networks.tokens, count=4)
    networks.denoiser.train()
    facts = watch(networks.denoiser, steps=(1, 2))
    assert networks.denoiser.training  # left as it was found
    networks.denoiser.eval()
    assert {"fd_1", "fd_2", "object_1", "everything_2", "sign_2", "fd_floor"} <= set(facts)
    assert all(math.isfinite(value) for value in facts.values())


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ({}, 2.0),
        ({"pairs.jsonl": '{"captions": 8}\n{"pairs": 8, "guidance": 1.5}'}, 1.5),
        ({"card.json": '{"defaults": {"pocket-base": {"guidance": 3.0}}}'}, 3.0),
        ({"card.json": '{"name": "pocket"}'}, 2.0),
    ],
)
def test_a_teachers_guidance_is_read_from_what_it_comes_with(tmp_path, said, known):
    for name, text in said.items():
        (tmp_path / name).write_text(text)
    assert guidance_of(tmp_path, 2.0) == known


def test_an_evaluation_guides_the_teacher_as_its_preset_does_where_nothing_else_is_known(found):
    assert found["asked"]["guidance"] == TINY.distillation.guidance


def test_the_strengths_of_guidance_are_told_a_line_each(run, capsys, monkeypatch):
    monkeypatch.setattr(Watch, "__call__", lambda self, model, steps, guidance: {f"fd_{steps[0]}": guidance})
    main(["guidance", "--model", str(run), "--preset", "tiny", "--count", "4", "--strengths", "1", "2", "--steps", "3"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"guidance": 1.0, "fd_3": 1.0}, {"guidance": 2.0, "fd_3": 2.0}]


# ------------------------------------------------------------------------------------------------------- the asking
def test_the_same_noise_gives_the_same_picture_whatever_stands_beside_it(networks):
    paint = painter(networks.denoiser, networks.vae, networks.tokens, CPU, steps=4)
    noise = noise_for(3, 0)
    together, alone = paint(["a fox", "a cat", "a key"], noise), paint(["a cat"], noise[1:2])
    assert (together.pictures[1:2] - alone.pictures).abs().max() * 127.5 < 2


def test_one_step_believes_exactly_the_noise_it_was_given(networks):
    noise = 1.5 * noise_for(2, 0)
    drawn = painter(networks.denoiser, networks.vae, networks.tokens, CPU, steps=1)(["a fox", "a cat"], noise)
    assert torch.allclose(drawn.noise_rms, noise.square().mean((1, 2, 3)).sqrt(), atol=1e-4)


def test_four_steps_taken_apart_are_four_steps(networks):
    from fluxnb.flow import schedule
    from fluxnb.train.stages.teacher import sample

    noise, words = noise_for(2, 0), networks.tokens(["a fox", "a cat"])
    drawn = painter(networks.denoiser, networks.vae, networks.tokens, CPU, steps=4)(["a fox", "a cat"], noise)
    assert torch.allclose(drawn.latents, sample(networks.denoiser, *words, noise, schedule(4)), atol=1e-5)


def test_seeds_ask_different_scenes_and_parts_do_not_mix():
    seen, other = scenes_to_ask(32, 7, held_out=False), scenes_to_ask(32, 8, held_out=False)
    assert seen != other and not any(scene.held_out for scene in seen)
    assert all(scene.held_out for scene in scenes_to_ask(32, 7, held_out=True))


def test_letters_are_counted_only_where_there_are_letters():
    from fluxnb.train.data.world import Scene
    from fluxnb.train.evaluation.judge import truth

    scenes = [Scene(("fox",), "red"), Scene(("cat",), "snow", sign="hi")]
    found = hits(truth(lay_out(scenes, random.Random(0))), scenes)
    assert len(found["letters"]) == 2 and len(found["sign"]) == 1 and len(found["relation"]) == 0


def test_a_table_from_few_scenes_says_that_its_distances_mean_little():
    assert "too few" in Asked(count=64).words() and "too few" not in Asked().words()


def test_a_free_question_leaves_something_open_and_none_is_held_out():
    questions = free_questions(16)
    assert len({scene.caption(say_background=said) for scene, said in questions}) == 16
    assert not any(scene.held_out for scene, _ in questions)
    assert [said for _, said in questions[:4]] == [False, True, False, False]


@pytest.fixture(scope="module")
def examiner(networks):
    return Examiner(networks.judge, Renderer(CPU), networks.vae, Asked(count=4, seeds=1, prompts=4, noises=6))


def test_the_same_question_gives_the_same_numbers(networks, examiner):
    paint = painter(networks.denoiser, networks.vae, networks.tokens, CPU, steps=2)
    one, again = (examiner.marks(7, "seen", examiner.draw(paint, 7, "seen")) for _ in range(2))
    assert one.numbers == again.numbers and np.array_equal(one.mean, again.mean)
    assert np.array_equal(examiner.freedom(paint).vendi, examiner.freedom(paint).vendi)


def test_renders_use_the_freedom_that_captions_leave(examiner):
    free = examiner.freedom(None)
    assert free.align is None and (free.vendi > 1).all() and len(free.entropy) == 4


# --------------------------------------------------------------------------------------------------- the arithmetic
@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share_and_stays_a_share(n, data):
    hit = data.draw(st.integers(0, n))
    share = wilson(hit, n)
    assert 0 <= share.low <= share.value <= share.high <= 1 and share.low < share.high


def test_a_share_of_nothing_is_no_number():
    assert math.isnan(wilson(0, 0).value)


def test_wilson_covers_as_often_as_it_says():
    rng, n, p = np.random.default_rng(0), 60, 0.9
    drawn = [wilson(int(hit), n) for hit in rng.binomial(n, p, 2000)]
    assert 0.93 < np.mean([share.low <= p <= share.high for share in drawn]) < 0.98


def test_three_seeds_have_a_wide_interval_and_one_has_none():
    three = over_seeds([1.0, 2.0, 3.0])
    assert three.value == 2 and three.high - 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert math.isnan(over_seeds([1.0]).low)


def test_a_bootstrap_keeps_pairs_together():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.5
    paired = bootstrap(ratio, np.stack((first, first), 1))
    loose = bootstrap(ratio, np.stack((first, rng.permutation(first)), 1))
    assert paired.low == paired.high == 1.0 and loose.high - loose.low > 0.1


def test_no_miss_among_few_is_not_certainty():
    few, many = (ratio_of_shares(np.ones((n, 2), bool)) for n in (36, 5000))
    assert few.value == many.value == 1.0
    assert few.low < 0.95 < 0.998 < many.low


def test_a_ratio_of_shares_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), []
    for _ in range(300):
        second = rng.random(300) < 0.9
        first = np.where(rng.random(300) < 0.9, second, rng.random(300) < 0.5)  # 0.86, and most of them the same
        found = ratio_of_shares(np.stack((first, second), 1))
        covered.append(found.low <= 0.86 / 0.9 <= found.high)
    assert 0.9 < np.mean(covered) < 0.99


def test_a_ratio_of_ratios_is_wider_than_either():
    rng = np.random.default_rng(0)
    pairs = rng.random((500, 2)) < 0.9
    other = rng.random((500, 2)) < 0.9
    one, both = ratio_of_shares(pairs), ratio_of_shares(pairs, other)
    assert both.value == pytest.approx(ratio(pairs) / ratio(other)) and both.high - both.low > one.high - one.low


def test_a_ratio_to_nothing_is_no_number():
    assert (
        math.isnan(ratio_of_shares(np.zeros((4, 2))).value)
        and math.isnan(ratio(np.zeros((4, 2))))
        and math.isnan(ratio(np.zeros((0, 2))))
    )


def test_the_distance_of_a_set_to_itself_is_zero_and_to_a_shifted_one_the_square():
    features = torch.randn(4000, 8, generator=seeded())
    assert frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet(features, features + 2) == pytest.approx(8 * 4, rel=1e-6)


def test_the_distance_between_two_gaussians_is_the_one_of_the_formula():
    narrow = torch.randn(200_000, 2, generator=seeded())
    wide = 3 * torch.randn(200_000, 2, generator=seeded(1))
    assert frechet(narrow, wide) == pytest.approx(2 * (3 - 1) ** 2, rel=0.02)


def test_entropy_is_the_logarithm_of_equal_chances_and_zero_without_choice():
    assert entropy(torch.arange(16)) == pytest.approx(math.log(16))
    assert entropy(torch.zeros(9)) == 0


def test_vendi_counts_what_is_different():
    far = 1000 * torch.eye(6)
    assert vendi(far, 1.0) == pytest.approx(6, rel=1e-3)
    assert vendi(far[[0, 0, 0, 1, 1, 1]], 1.0) == pytest.approx(2, rel=1e-3)
    assert vendi(torch.zeros(6, 6), 1.0) == pytest.approx(1, rel=1e-3)


def test_blur_lowers_the_gradient_energy_by_what_it_averages_away():
    pictures = torch.randn(64, 3, 32, 32, generator=seeded())
    blurred = torch.nn.functional.avg_pool2d(pictures, 2, 1)
    assert gradient_energy(pictures).mean() == pytest.approx(4, rel=0.05)  # two axes, each the variance of a difference
    assert gradient_energy(blurred).mean() == pytest.approx(0.5, rel=0.05)  # four pixels at a quarter, each axis


def test_alignment_is_one_for_a_picture_that_is_its_noise_and_turns_with_it():
    noise = torch.randn(2, 64, 300, generator=seeded())
    assert alignment(noise, 5 + 0.1 * noise).min() > 0.98
    assert alignment(noise, 5 - 0.1 * noise).max() < -0.98
    free = torch.randn(2, 64, 300, generator=seeded(1))
    assert alignment(noise, free).abs().max() < 0.05


def test_untrained_features_are_the_same_every_time_and_see_a_blur():
    pictures = render_scenes(Renderer(CPU), scenes_to_ask(4, 0, held_out=False), random.Random(0))
    one, other = Untrained(CPU)(pictures), Untrained(CPU)(pictures)
    blurred = Untrained(CPU)(torch.nn.functional.avg_pool2d(pictures, 3, 1, 1))
    assert torch.equal(one, other) and one.shape == (4, 128)
    assert (blurred - one).abs().mean() > 1e-3


def test_an_estimate_of_the_latents_is_the_same_for_one_scene_and_many():
    vae, renderer = build_autoencoder(TINY.sizes).eval(), Renderer(CPU)
    layout = lay_out(scenes_to_ask(3, 0, held_out=False), random.Random(0))
    assert torch.allclose(encode(vae, renderer, layout)[:1], encode(vae, renderer, layout[:1]), atol=1e-4)


# ----------------------------------------------------------------------------------------------------- the verdicts
def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half, 100, "seeds")


def test_a_verdict_is_by_the_estimate_and_sure_by_the_interval():
    limits = (0.95, OPEN)
    inside, edge, outside = (judge_target(limits, estimate(value)) for value in (0.98, 0.951, 0.90))
    assert (inside.met, inside.sure) == (True, True)
    assert (edge.met, edge.sure) == (True, False)
    assert (outside.met, outside.sure) == (False, True)


def test_what_was_not_measured_is_not_met():
    for nothing in (None, estimate(math.nan)):
        assert judge_target((0.0, 1.0), nothing).met is None
    rows = acceptance({"renders": {}})
    assert summary(rows)["met"] == 0 and not summary(rows)["musts_met"]


def a_table(**four: float) -> dict[str, dict[str, Estimate]]:
    good = {"object/seen : teacher": 1.0, "fd : teacher": 1.1, "entropy : teacher": 0.9} | four
    quantities = {name: estimate(value) for name, value in good.items()}
    shown = {target.shown: estimate(0.5) for target in TARGETS}
    return {name: {**shown, **quantities} for name in ("student@4", "student@1")} | {"renders": shown}


def test_one_missed_must_is_enough_not_to_ship():
    assert summary(acceptance(a_table()))["musts_met"]
    assert not summary(acceptance(a_table(**{"fd : teacher": 1.4})))["musts_met"]


def test_open_limits_and_missing_numbers_become_null():
    table = a_table(**{"entropy : teacher": math.nan})
    text = json.dumps(as_json(table, acceptance(table)), allow_nan=False)
    assert "null" in text


def test_the_figure_says_met_and_missed_without_colour():
    table = a_table(**{"fd : teacher": 1.4, "entropy : teacher": 0.5})
    rows = acceptance(table)
    words = [text.get_text() for text in figure_of(table, rows, note="a few").texts]
    verdicts = [row.four.met for row in rows if row.four] + [row.one.met for row in rows if row.one]
    assert sum(word in (MET, f"{MET}?") for word in words) == verdicts.count(True)
    assert sum(word in (MISSED, f"{MISSED}?") for word in words) == verdicts.count(False)
    assert all(dataclasses.asdict(row.target)["words"] in " ".join(words) for row in rows)
