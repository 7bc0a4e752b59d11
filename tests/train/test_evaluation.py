"""The evaluation: the command on the smallest networks, the cache, samplers, the evaluator and the targets."""

from __future__ import annotations

import errno
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sentencepiece")

from PIL import Image

from fluxnb.errors import StorageError
from fluxnb.flow import schedule
from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY
from fluxnb.train.data.render import Renderer, lay_out
from fluxnb.train.data.world import Scene
from fluxnb.train.evaluation import evaluate
from fluxnb.train.evaluation.acceptance import OPEN, TARGETS, acceptance, as_json, check_limits, summary
from fluxnb.train.evaluation.cache import Measurement, MeasurementCache
from fluxnb.train.evaluation.evaluator import EvalConfig, Evaluator, open_prompts
from fluxnb.train.evaluation.features import RandomFeatures
from fluxnb.train.evaluation.figure import MET, MISSED, figure_of
from fluxnb.train.evaluation.loading import find_student, load_networks, load_student
from fluxnb.train.evaluation.monitor import Monitor
from fluxnb.train.evaluation.sampling import correctness, fixed_noise, fixed_scenes, make_sampler, render_scenes
from fluxnb.train.evaluation.statistics import Estimate
from fluxnb.train.networks.build import build_autoencoder
from fluxnb.train.networks.denoiser import build_denoiser, sample, save_denoiser, save_transformer
from fluxnb.train.networks.judge import Judge, layout_attributes, save_judge
from fluxnb.train.stages.autoencoder import encode
from fluxnb.train.stages.ship import teacher_guidance

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with random networks. The student is the teacher with other weights in its last layer."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    teacher = build_denoiser(TINY.sizes)
    torch.nn.init.normal_(teacher.transformer.proj_out.weight, std=0.1)
    save_denoiser(teacher, out)
    torch.nn.init.normal_(teacher.transformer.proj_out.weight, std=0.2)
    save_transformer(teacher.transformer, out / "student.safetensors")
    build_autoencoder(TINY.sizes).save_pretrained(out / "vae")
    save_judge(Judge(), out / "judge.safetensors")
    return out


@pytest.fixture(scope="module")
def networks(run):
    return load_networks(run, TINY.sizes, CPU)


FEW = ["--preset", "tiny", "--count", "4", "--seeds", "2", "--prompts", "4", "--noises", "3"]


@pytest.fixture(scope="module")
def result(run):
    """The JSON that the command writes."""
    outputs = ["--save", str(run / "result.json"), "--figure", str(run / "result.png"), "--cache", str(run / "cache")]
    main(["evaluate", "--model", str(run), *FEW, *outputs])
    return json.loads((run / "result.json").read_text())


def evaluate_again(run, monkeypatch):
    """Repeat the evaluation; returns the number of settings that are measured, and the JSON."""
    measured, measure, upper_bound = [], evaluate._measure, evaluate._upper_bound
    monkeypatch.setattr(evaluate, "_measure", lambda *given: (measured.append(given[1]), measure(*given))[1])
    monkeypatch.setattr(evaluate, "_upper_bound", lambda *given: (measured.append(given[1]), upper_bound(*given))[1])
    main(["evaluate", "--model", str(run), *FEW, "--save", str(run / "again.json"), "--cache", str(run / "cache")])
    return len(measured), json.loads((run / "again.json").read_text())


@pytest.mark.moderate
def test_an_evaluation_measures_only_what_is_not_cached(run, result, monkeypatch):
    (run / "cache" / "student@4.json").unlink()
    assert evaluate_again(run, monkeypatch) == (1, result)


@pytest.mark.moderate
@pytest.mark.parametrize("damage", ["{", '{"key": 1}', "[]"])
def test_a_damaged_cache_file_is_measured_again(run, result, monkeypatch, damage):
    file = run / "cache" / "teacher, unguided@4.json".replace(", ", "-")
    file.write_text(damage)
    assert evaluate_again(run, monkeypatch) == (1, result)


def test_a_measurement_that_cannot_be_cached_is_reported_and_returned(tmp_path, monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(full))
    measurement = Measurement({})
    assert MeasurementCache(tmp_path).get("teacher@28", lambda: measurement) is measurement
    assert "teacher@28 is not cached" in capsys.readouterr().err and not (tmp_path / "teacher@28.json").exists()


@pytest.mark.moderate
def test_measurements_of_other_weights_are_not_used(run, result, monkeypatch):
    student = run / "student.safetensors"
    before = student.read_bytes()
    other = build_denoiser(TINY.sizes)
    save_transformer(other.transformer, student)
    again, _ = evaluate_again(run, monkeypatch)
    student.write_bytes(before)
    assert again == sum(label.startswith("student@") for label in result["settings"])


# ------------------------------------------------------------------------------------------------ the command
@pytest.mark.moderate
def test_the_command_evaluates_student_teacher_and_upper_bounds(result):
    labels = {"student@4", "student@1", "teacher@28", "teacher@4", "teacher@1", "renders", "reconstructions"}
    assert labels <= set(result["settings"])


@pytest.mark.moderate
def test_every_limit_has_an_estimate_of_the_student(result):
    settings = result["settings"]
    for target in TARGETS:
        for limits, label in ((target.four, "student@4"), (target.one, "student@1")):
            assert limits is None or target.limited in settings[label], (target.title, label)
    assert result["summary"]["of"] == sum((t.four is not None) + (t.one is not None) for t in TARGETS)


@pytest.mark.moderate
def test_a_share_states_its_number_of_pictures(result):
    share = result["settings"]["student@4"]["object/seen"]
    assert share["n"] == 8 and share["how"] == "wilson" and share["low"] <= share["value"] <= share["high"]


@pytest.mark.moderate
def test_the_figure_is_written(run, result):
    assert Image.open(run / "result.png").width > 1000


def test_the_error_for_a_missing_judge_names_the_command(tmp_path):
    with pytest.raises(StorageError, match="train judge"):
        load_networks(tmp_path, TINY.sizes, CPU)


def test_a_missing_student_raises_an_error(tmp_path, networks):
    with pytest.raises(StorageError, match="no transformer"):
        load_student(tmp_path, networks.denoiser)
    assert find_student(tmp_path) is None


@pytest.mark.moderate
def test_a_student_is_the_same_from_a_file_and_from_a_folder(run, tmp_path, networks):
    from_file = load_student(run / "student.safetensors", networks.denoiser)
    from_file.transformer.save_pretrained(tmp_path / "transformer")
    from_folder = load_student(tmp_path, networks.denoiser)
    both = zip(from_file.transformer.parameters(), from_folder.transformer.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)
    assert not torch.equal(from_file.transformer.proj_out.weight, networks.denoiser.transformer.proj_out.weight)


@pytest.mark.moderate
def test_the_monitor_measures_what_the_student_is_selected_by(networks):
    monitor = Monitor(networks.judge, Renderer(CPU), networks.vae, networks.tokens, count=4)
    networks.denoiser.train()
    facts = monitor(networks.denoiser, steps=(1, 2))
    assert networks.denoiser.training  # the mode is restored
    networks.denoiser.eval()
    assert {"fd_1", "fd_2", "object_1", "everything_2", "sign_2", "fd_floor"} <= set(facts)
    assert all(math.isfinite(value) for value in facts.values())


@pytest.mark.parametrize(
    ("files", "guidance"),
    [
        ({}, 2.0),
        ({"pairs.jsonl": '{"captions": 8}\n{"pairs": 8, "guidance": 1.5}'}, 1.5),
        ({"card.json": '{"defaults": {"pocket-base": {"guidance": 3.0}}}'}, 3.0),
        ({"card.json": '{"name": "pocket"}'}, 2.0),
    ],
)
def test_the_guidance_of_a_teacher_is_read_from_its_card_or_its_pairs(tmp_path, files, guidance):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert teacher_guidance(tmp_path, 2.0) == guidance


@pytest.mark.moderate
def test_the_default_guidance_of_an_evaluation_is_that_of_the_preset(result):
    assert result["config"]["guidance"] == TINY.distillation.guidance


@pytest.mark.moderate
def test_the_guidance_command_prints_one_line_per_strength(run, capsys, monkeypatch):
    monkeypatch.setattr(Monitor, "__call__", lambda self, model, steps, guidance: {f"fd_{steps[0]}": guidance})
    main(["guidance", "--model", str(run), "--preset", "tiny", "--count", "4", "--strengths", "1", "2", "--steps", "3"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"guidance": 1.0, "fd_3": 1.0}, {"guidance": 2.0, "fd_3": 2.0}]


# ------------------------------------------------------------------------------------------------------------- sampling
def test_a_picture_does_not_depend_on_the_other_pictures_of_its_batch(networks):
    sampler = make_sampler(networks.denoiser, networks.vae, networks.tokens, device=CPU, steps=4)
    noise = fixed_noise(3, 0)
    together, alone = sampler(["a fox", "a cat", "a key"], noise), sampler(["a cat"], noise[1:2])
    assert (together.pictures[1:2] - alone.pictures).abs().max() * 127.5 < 2


def test_the_noise_estimate_of_one_step_is_the_given_noise(networks):
    noise = 1.5 * fixed_noise(2, 0)
    samples = make_sampler(networks.denoiser, networks.vae, networks.tokens, device=CPU, steps=1)(
        ["a fox", "a cat"], noise
    )
    assert torch.allclose(samples.noise_rms, noise.square().mean((1, 2, 3)).sqrt(), atol=1e-4)


def test_the_sampler_agrees_with_four_steps_of_sample(networks):
    noise, captions = fixed_noise(2, 0), networks.tokens(["a fox", "a cat"])
    samples = make_sampler(networks.denoiser, networks.vae, networks.tokens, device=CPU, steps=4)(
        ["a fox", "a cat"], noise
    )
    assert torch.allclose(samples.latents, sample(networks.denoiser, *captions, noise, schedule(4)), atol=1e-5)


def test_scenes_differ_by_seed_and_match_their_split():
    seen, other = fixed_scenes(32, 7, held_out=False), fixed_scenes(32, 8, held_out=False)
    assert seen != other and not any(scene.held_out for scene in seen)
    assert all(scene.held_out for scene in fixed_scenes(32, 7, held_out=True))


def test_factors_have_flags_only_for_scenes_that_have_them():
    scenes = [Scene(("fox",), "red"), Scene(("cat",), "snow", sign="hi")]
    correct = correctness(layout_attributes(lay_out(scenes, random.Random(0))), scenes)
    assert len(correct["letters"]) == 2 and len(correct["sign"]) == 1 and len(correct["relation"]) == 0


def test_the_description_of_a_small_evaluation_warns_about_distances():
    assert "too few" in EvalConfig(count=64).describe() and "too few" not in EvalConfig().describe()


def test_open_prompts_are_distinct_and_not_held_out():
    prompts = open_prompts(16)
    assert len({scene.caption(with_background=background) for scene, background in prompts}) == 16
    assert not any(scene.held_out for scene, _ in prompts)
    assert [background for _, background in prompts[:4]] == [False, True, False, False]


@pytest.fixture(scope="module")
def evaluator(networks):
    return Evaluator(networks.judge, Renderer(CPU), networks.vae, EvalConfig(count=4, seeds=1, prompts=4, noises=6))


@pytest.mark.moderate
def test_measurements_are_deterministic(networks, evaluator):
    sampler = make_sampler(networks.denoiser, networks.vae, networks.tokens, device=CPU, steps=2)
    one, again = (evaluator.score(7, "seen", evaluator.sample(sampler, 7, "seen")) for _ in range(2))
    assert one.numbers == again.numbers and np.array_equal(one.mean, again.mean)
    assert np.array_equal(evaluator.diversity(sampler).vendi, evaluator.diversity(sampler).vendi)


@pytest.mark.moderate
def test_renders_are_diverse_and_have_no_alignment(evaluator):
    diversity = evaluator.diversity(None)
    assert diversity.align is None and (diversity.vendi > 1).all() and len(diversity.entropy) == 4


def test_random_features_are_deterministic_and_respond_to_blur():
    pictures = render_scenes(Renderer(CPU), fixed_scenes(4, 0, held_out=False), random.Random(0))
    one, other = RandomFeatures(CPU)(pictures), RandomFeatures(CPU)(pictures)
    blurred = RandomFeatures(CPU)(torch.nn.functional.avg_pool2d(pictures, 3, 1, 1))
    assert torch.equal(one, other) and one.shape == (4, 128)
    assert (blurred - one).abs().mean() > 1e-3


@pytest.mark.moderate
def test_latents_do_not_depend_on_the_batch():
    vae, renderer = build_autoencoder(TINY.sizes).eval(), Renderer(CPU)
    layout = lay_out(fixed_scenes(3, 0, held_out=False), random.Random(0))
    assert torch.allclose(encode(vae, renderer, layout)[:1], encode(vae, renderer, layout[:1]), atol=1e-4)


# ----------------------------------------------------------------------------------------------------- acceptance
def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half, 100, "seeds")


def test_a_verdict_follows_the_estimate_and_is_certain_if_the_interval_agrees():
    limits = (0.95, OPEN)
    inside, edge, outside = (check_limits(limits, estimate(value)) for value in (0.98, 0.951, 0.90))
    assert (inside.met, inside.certain) == (True, True)
    assert (edge.met, edge.certain) == (True, False)
    assert (outside.met, outside.certain) == (False, True)


def test_a_missing_estimate_does_not_meet_a_limit():
    for missing in (None, estimate(math.nan)):
        assert check_limits((0.0, 1.0), missing).met is None
    rows = acceptance({"renders": {}})
    assert summary(rows)["met"] == 0 and not summary(rows)["required_met"]


def make_table(**changes: float) -> dict[str, dict[str, Estimate]]:
    good = {"object/seen : teacher": 1.0, "fd : teacher": 1.1, "entropy : teacher": 0.9} | changes
    quantities = {name: estimate(value) for name, value in good.items()}
    displayed = {target.displayed: estimate(0.5) for target in TARGETS}
    return {name: {**displayed, **quantities} for name in ("student@4", "student@1")} | {"renders": displayed}


def test_one_missed_required_target_prevents_shipping():
    assert summary(acceptance(make_table()))["required_met"]
    assert not summary(acceptance(make_table(**{"fd : teacher": 1.4})))["required_met"]


def test_open_limits_and_missing_numbers_are_null_in_json():
    table = make_table(**{"entropy : teacher": math.nan})
    text = json.dumps(as_json(table, acceptance(table)), allow_nan=False)
    assert "null" in text


def test_the_figure_marks_met_and_missed_targets_with_symbols():
    table = make_table(**{"fd : teacher": 1.4, "entropy : teacher": 0.5})
    rows = acceptance(table)
    words = [text.get_text() for text in figure_of(table, rows, note="a few").texts]
    verdicts = [row.four.met for row in rows if row.four] + [row.one.met for row in rows if row.one]
    assert sum(word in (MET, f"{MET}?") for word in words) == verdicts.count(True)
    assert sum(word in (MISSED, f"{MISSED}?") for word in words) == verdicts.count(False)
    assert all(row.target.title in " ".join(words) for row in rows)
