"""Every stage runs at its smallest, and the pieces that a training rests on do what they say."""

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
from fluxnb.train.data.batches import draw_layouts
from fluxnb.train.data.render import Renderer, lay_out
from fluxnb.train.data.world import Scene
from fluxnb.train.evaluation.ask import hits, scenes_to_ask
from fluxnb.train.evaluation.judge import Answers, truth
from fluxnb.train.networks.build import build_autoencoder, build_transformer, whiten
from fluxnb.train.stages import loop
from fluxnb.train.stages.autoencoder import train_autoencoder
from fluxnb.train.stages.loop import Average, Pace, Rank, read_log
from fluxnb.train.stages.objective import contrast, draw_sigmas
from fluxnb.train.stages.ship import ship, write_card

CPU = Rank(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole training of a few iterations, shipped."""
    out = tmp_path_factory.mktemp("run")
    for stage in ("autoencoder", "judge", "teacher"):
        main([stage, "--preset", "tiny", "--out", str(out)])
    main(["ship", "--preset", "tiny", "--out", str(out), "--to", str(out / "pocket")])
    return out


def test_a_shipped_run_opens_as_a_plain_pipeline_and_draws(run):
    pipe = FluxPipeline.from_pretrained(run / "pocket" / "base")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a fox", height=128, width=128, num_inference_steps=1, max_sequence_length=48).images[0]
    assert picture.size == (128, 128)


def test_the_card_names_every_file_with_its_checksum(run):
    card = json.loads((run / "pocket" / "card.json").read_text())
    files = {p.relative_to(run / "pocket").as_posix() for p in (run / "pocket").rglob("*") if p.is_file()}
    assert set(card["files"]) == files - {"card.json"}


def test_whitening_changes_no_picture():
    torch.manual_seed(0)
    vae = build_autoencoder(TINY.sizes).eval()
    pictures = torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        whiten(vae, torch.randn(16), torch.rand(16) + 0.5)
        after = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)


@pytest.fixture(scope="module")
def lighter(run, tmp_path_factory):
    """A run with an autoencoder of half the widths that has learned a little of the shipped one's latents."""
    sizes = dataclasses.replace(TINY.sizes, vae_channels=(8, 8, 8, 8))
    schedule = dataclasses.replace(TINY.autoencoder, iterations=40, batch=8, learning_rate=5e-3)
    out = tmp_path_factory.mktemp("lighter")
    preset = dataclasses.replace(TINY, sizes=sizes, autoencoder=schedule)
    train_autoencoder(preset, out, CPU, like=run / "pocket")
    return out


def test_an_autoencoder_like_another_learns_its_latents(lighter):
    assert read_log(lighter / "autoencoder.jsonl")[-1]["missed"] < 0.9  # of the latents' variance; 1 is a blank page


def test_an_autoencoder_like_another_has_widths_of_its_own(lighter):
    assert AutoencoderKL.from_pretrained(lighter / "vae").config.block_out_channels == [8, 8, 8, 8]


def test_the_card_keeps_the_story_of_the_autoencoder_before(run, lighter, tmp_path):
    to = Path(shutil.copytree(run / "pocket", tmp_path / "to"))
    before = json.loads((to / "card.json").read_text())["training"]["autoencoder"]
    write_card(lighter, to)
    told = json.loads((to / "card.json").read_text())["training"]["autoencoder"]
    assert told["like"] == "pocket" and told["before"] == before


def test_a_run_that_is_shipped_twice_did_not_go_on_from_itself(run, lighter, tmp_path):
    to = Path(shutil.copytree(run / "pocket", tmp_path / "to"))
    write_card(lighter, to)
    once = json.loads((to / "card.json").read_text())["training"]
    write_card(lighter, to)
    assert json.loads((to / "card.json").read_text())["training"] == once


def test_an_autoencoder_alone_takes_the_place_of_the_one_before(run, lighter, tmp_path):
    to = Path(shutil.copytree(run / "pocket", tmp_path / "to"))
    teacher = (to / "base" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    ship(lighter, to, TINY.sizes)
    assert FluxPipeline.from_pretrained(to / "base").vae.config.block_out_channels == [8, 8, 8, 8]
    assert (to / "base" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == teacher


def test_what_ships_says_nothing_of_the_machine_it_came_from(run):
    assert not any(str(run) in path.read_text() for path in (run / "pocket").rglob("*.json"))


def test_latents_of_nothing_are_refused(tmp_path):
    with pytest.raises(StorageError, match="--like fluxnb/pocket"):
        train_autoencoder(TINY, tmp_path / "run", CPU, like=tmp_path)


def test_blur_costs_contrast():
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1)
    assert contrast(blurred.diff(dim=2)).mean() < 0.5 * contrast(pictures.diff(dim=2)).mean()


@pytest.mark.parametrize("said", ["heads", "heads=many", "hats=3"])
def test_a_size_that_is_none_is_told_which_there_are(said, capsys):
    with pytest.raises(SystemExit):
        main(["teacher", "--preset", "tiny", "--out", "run", "--sizes", said])
    assert "double_blocks" in capsys.readouterr().err


def test_an_untrained_teacher_answers_zero():
    model = build_transformer(TINY.sizes)
    answer = model(
        hidden_states=torch.randn(1, 64, 64),
        timestep=torch.ones(1),
        pooled_projections=torch.randn(1, 32),
        encoder_hidden_states=torch.randn(1, 48, 32),
        img_ids=torch.zeros(64, 3),
        txt_ids=torch.zeros(48, 3),
    ).sample
    assert answer.abs().max() == 0


def test_a_fifth_of_the_noise_levels_reaches_the_ends():
    sigmas = draw_sigmas(100_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert 0.01 < (sigmas > 0.95).float().mean() < 0.03  # 0.2 x 0.05 and a little of the logit-normal


def test_the_same_seed_draws_the_same_data():
    one, captions = draw_layouts(64, seed=5)
    other, again = draw_layouts(64, seed=5)
    assert captions == again and torch.equal(one.boxes, other.boxes)


def test_two_objects_are_read_from_left_to_right():
    scenes = [Scene(("fox", "cat"), "red", relation="left of"), Scene(("cat", "fox"), "red", relation="right of")]
    answers = truth(lay_out(scenes, random.Random(0)))
    assert answers.first[0] == answers.first[1] and answers.arrangement.tolist() == [1, 1]


def test_a_scene_is_drawn_where_its_layout_says():
    layout = lay_out([Scene(("apple",), "white")], random.Random(3))
    picture = Renderer("cpu")(layout)[0]
    x, y, side = layout.boxes[0, 0].tolist()
    empty = Renderer("cpu")(dataclasses.replace(layout, objects=torch.full((1, 2), -1)))[0]
    touched = (picture - empty).abs().sum(0) > 0.3
    rows, columns = torch.nonzero(touched, as_tuple=True)
    assert abs(float(columns.float().mean()) - x) < 0.1 * side and abs(float(rows.float().mean()) - y) < 0.1 * side


def test_right_answers_score_one_and_swapped_objects_do_not():
    scenes = scenes_to_ask(64, 0, held_out=False)
    right = truth(lay_out(scenes, random.Random(0)))
    letters = torch.nn.functional.one_hot(right.letters, 27)
    assert letters.shape[1] == 14
    assert hits(right, scenes)["everything"].mean() >= 0.9  # an "and" stands in either order, so its order is free
    swapped = Answers(right.arrangement, right.second.clamp(max=127), right.first, right.background, right.letters)
    assert hits(swapped, scenes)["everything"].mean() < 0.5


def test_the_average_forgets_its_start():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = Average(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    for _ in range(200):
        average.update()
    assert average.mean[0].item() == pytest.approx(3.0, abs=1e-3)


def test_the_learning_rate_rises_holds_and_falls_to_zero():
    pace = Pace(Schedule(seconds=0.0, iterations=1000, batch=1, learning_rate=1.0, warmup=10), CPU)
    assert pace.rate(0) == pytest.approx(0.1) and pace.rate(500) == 1.0 and pace.rate(999) < 0.01


def test_a_look_at_pictures_does_not_shorten_a_schedule_by_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    for iteration in (pace := Pace(Schedule(seconds=10.0, batch=1, learning_rate=1.0, cooldown=0.5), CPU, trial=100)):
        clock[0] += 0.01 if iteration != 450 else 1.0  # in the last hundred that are planned by
    assert pace.seconds() == pytest.approx(10.0, rel=0.15)


def test_a_schedule_by_seconds_ends_near_them():
    pace = Pace(Schedule(seconds=0.3, batch=1, learning_rate=1.0), CPU, trial=5)
    import time

    for _ in pace:
        time.sleep(0.002)
    assert 0.2 < pace.seconds() < 1.0
