"""All stages at their smallest size, and the parts they share."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentencepiece")

from diffusers import AutoencoderKL, FluxPipeline

from fluxnb.errors import StorageError
from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY, Schedule
from fluxnb.train.data.dataset import draw_layouts
from fluxnb.train.data.render import Renderer, lay_out
from fluxnb.train.data.world import Scene
from fluxnb.train.evaluation.sampling import correctness, fixed_scenes
from fluxnb.train.networks.build import build_autoencoder, build_transformer, whiten
from fluxnb.train.networks.denoiser import save_transformer
from fluxnb.train.networks.judge import Attributes, layout_attributes
from fluxnb.train.stages import loop
from fluxnb.train.stages.autoencoder import train_autoencoder
from fluxnb.train.stages.loop import Average, Pace, Rank, read_log
from fluxnb.train.stages.losses import contrast, draw_sigmas
from fluxnb.train.stages.ship import ship, write_card

CPU = Rank(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A shipped training of a few iterations."""
    out = tmp_path_factory.mktemp("run")
    for stage in ("autoencoder", "judge", "teacher"):
        main([stage, "--preset", "tiny", "--out", str(out)])
    main(["ship", "--preset", "tiny", "--out", str(out), "--to", str(out / "pocket")])
    return out


@pytest.mark.slow
def test_a_shipped_run_loads_with_diffusers_and_samples(run):
    pipe = FluxPipeline.from_pretrained(run / "pocket" / "base")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a fox", height=128, width=128, num_inference_steps=1, max_sequence_length=48).images[0]
    assert picture.size == (128, 128)


@pytest.mark.slow
def test_the_card_lists_every_file(run):
    card = json.loads((run / "pocket" / "card.json").read_text())
    files = {p.relative_to(run / "pocket").as_posix() for p in (run / "pocket").rglob("*") if p.is_file()}
    assert set(card["files"]) == files - {"card.json"}


@pytest.mark.slow
def test_a_student_shipped_beside_its_teacher_is_a_folder_that_diffusers_loads(run, tmp_path):
    to = Path(shutil.copytree(run / "pocket", tmp_path / "to"))
    assert not (to / "model_index.json").exists()  # a teacher alone is in `base`
    save_transformer(build_transformer(TINY.sizes), tmp_path / "student.safetensors")
    ship(tmp_path, to, TINY.sizes)
    assert FluxPipeline.from_pretrained(to).vae.config.block_out_channels == [
        *FluxPipeline.from_pretrained(to / "base").vae.config.block_out_channels
    ]


def test_whitening_does_not_change_pictures():
    torch.manual_seed(0)
    vae = build_autoencoder(TINY.sizes).eval()
    pictures = torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        whiten(vae, torch.randn(16), torch.rand(16) + 0.5)
        after = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)


@pytest.fixture(scope="module")
def narrower(run, tmp_path_factory):
    """A run with a narrower autoencoder, trained briefly on the latents of the shipped one."""
    sizes = dataclasses.replace(TINY.sizes, vae_channels=(8, 8, 8, 8))
    schedule = dataclasses.replace(TINY.autoencoder, iterations=40, batch=8, learning_rate=5e-3)
    out = tmp_path_factory.mktemp("narrower")
    preset = dataclasses.replace(TINY, sizes=sizes, autoencoder=schedule)
    train_autoencoder(preset, out, CPU, like=run / "pocket")
    return out


@pytest.mark.slow
def test_an_autoencoder_learns_the_latents_of_a_reference(narrower):
    assert read_log(narrower / "autoencoder.jsonl")[-1]["latent_error"] < 0.9  # 1 is the error of a constant encoder


@pytest.mark.slow
def test_an_autoencoder_with_a_reference_has_the_widths_of_its_preset(narrower):
    assert AutoencoderKL.from_pretrained(narrower / "vae").config.block_out_channels == [8, 8, 8, 8]


@pytest.mark.slow
def test_the_card_keeps_the_training_of_the_previous_autoencoder(run, narrower, tmp_path):
    to = Path(shutil.copytree(run / "pocket", tmp_path / "to"))
    before = json.loads((to / "card.json").read_text())["training"]["autoencoder"]
    write_card(narrower, to)
    training = json.loads((to / "card.json").read_text())["training"]["autoencoder"]
    assert training["like"] == "pocket" and training["previous"] == before


@pytest.mark.slow
def test_shipping_a_run_twice_does_not_change_the_card(run, narrower, tmp_path):
    to = Path(shutil.copytree(run / "pocket", tmp_path / "to"))
    write_card(narrower, to)
    once = json.loads((to / "card.json").read_text())["training"]
    write_card(narrower, to)
    assert json.loads((to / "card.json").read_text())["training"] == once


@pytest.mark.slow
def test_a_run_with_only_an_autoencoder_replaces_only_the_autoencoder(run, narrower, tmp_path):
    to = Path(shutil.copytree(run / "pocket", tmp_path / "to"))
    teacher = (to / "base" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    ship(narrower, to, TINY.sizes)
    assert FluxPipeline.from_pretrained(to / "base").vae.config.block_out_channels == [8, 8, 8, 8]
    assert (to / "base" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == teacher


@pytest.mark.slow
def test_shipped_files_hold_no_path_of_the_training_machine(run):
    assert not any(str(run) in path.read_text() for path in (run / "pocket").rglob("*.json"))


def test_a_reference_without_an_autoencoder_is_rejected(tmp_path):
    with pytest.raises(StorageError, match="--like fluxnb/pocket"):
        train_autoencoder(TINY, tmp_path / "run", CPU, like=tmp_path)


def test_blur_reduces_contrast():
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1)
    assert contrast(blurred.diff(dim=2)).mean() < 0.5 * contrast(pictures.diff(dim=2)).mean()


@pytest.mark.parametrize("text", ["heads", "heads=many", "hats=3"])
def test_an_invalid_size_lists_the_valid_names(text, capsys):
    with pytest.raises(SystemExit):
        main(["teacher", "--preset", "tiny", "--out", "run", "--sizes", text])
    assert "double_blocks" in capsys.readouterr().err


def test_an_untrained_teacher_predicts_zero():
    model = build_transformer(TINY.sizes)
    velocity = model(
        hidden_states=torch.randn(1, 64, 64),
        timestep=torch.ones(1),
        pooled_projections=torch.randn(1, 32),
        encoder_hidden_states=torch.randn(1, 48, 32),
        img_ids=torch.zeros(64, 3),
        txt_ids=torch.zeros(48, 3),
    ).sample
    assert velocity.abs().max() == 0


def test_the_uniform_fifth_of_noise_levels_covers_the_highest_ones():
    sigmas = draw_sigmas(100_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert 0.01 < (sigmas > 0.95).float().mean() < 0.03  # 0.2 x 0.05, and a share of the logit-normal


def test_a_seed_determines_the_data():
    one, captions = draw_layouts(64, seed=5)
    other, again = draw_layouts(64, seed=5)
    assert captions == again and torch.equal(one.boxes, other.boxes)


def test_the_first_of_two_objects_is_the_left_one():
    scenes = [Scene(("fox", "cat"), "red", relation="left of"), Scene(("cat", "fox"), "red", relation="right of")]
    attributes = layout_attributes(lay_out(scenes, random.Random(0)))
    assert attributes.first[0] == attributes.first[1] and attributes.arrangement.tolist() == [1, 1]


@pytest.mark.moderate
def test_an_object_is_rendered_in_its_box():
    layout = lay_out([Scene(("apple",), "white")], random.Random(3))
    picture = Renderer("cpu")(layout)[0]
    x, y, side = layout.boxes[0, 0].tolist()
    empty = Renderer("cpu")(dataclasses.replace(layout, objects=torch.full((1, 2), -1)))[0]
    touched = (picture - empty).abs().sum(0) > 0.3
    rows, columns = torch.nonzero(touched, as_tuple=True)
    assert abs(float(columns.float().mean()) - x) < 0.1 * side and abs(float(rows.float().mean()) - y) < 0.1 * side


def test_correct_attributes_score_high_and_swapped_objects_low():
    scenes = fixed_scenes(64, 0, held_out=False)
    right = layout_attributes(lay_out(scenes, random.Random(0)))
    letters = torch.nn.functional.one_hot(right.letters, 27)
    assert letters.shape[1] == 14
    assert correctness(right, scenes)["everything"].mean() >= 0.9  # the order of "and" is random
    swapped = Attributes(right.arrangement, right.second.clamp(max=127), right.first, right.background, right.letters)
    assert correctness(swapped, scenes)["everything"].mean() < 0.5


def test_the_average_converges_to_constant_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = Average(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    for _ in range(200):
        average.update()
    assert average.mean[0].item() == pytest.approx(3.0, abs=1e-3)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    pace = Pace(Schedule(seconds=0.0, iterations=1000, batch=1, learning_rate=1.0, warmup=10), CPU)
    assert pace.rate(0) == pytest.approx(0.1) and pace.rate(500) == 1.0 and pace.rate(999) < 0.01


def test_a_pause_for_monitoring_does_not_shorten_a_schedule_in_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    for iteration in (pace := Pace(Schedule(seconds=10.0, batch=1, learning_rate=1.0, cooldown=0.5), CPU, trial=100)):
        clock[0] += 0.01 if iteration != 450 else 1.0  # within the last hundred iterations used for planning
    assert pace.seconds() == pytest.approx(10.0, rel=0.15)


def test_a_schedule_in_seconds_takes_about_that_long():
    pace = Pace(Schedule(seconds=0.3, batch=1, learning_rate=1.0), CPU, trial=5)
    import time

    for _ in pace:
        time.sleep(0.002)
    assert 0.2 < pace.seconds() < 1.0
