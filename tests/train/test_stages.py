"""Training stages up to the teacher, with the smallest preset."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL

from fluxnb.train.__main__ import main
from fluxnb.train.config import POCKET, SHAPES, TINY
from fluxnb.train.networks.denoiser import build_denoiser, load_denoiser, save_denoiser
from fluxnb.train.stages import teacher
from fluxnb.train.stages.loop import Average, Rank, read_log
from fluxnb.train.stages.text import difference_by_order

pytestmark = pytest.mark.slow

CPU = Rank(0, 1, torch.device("cpu"))


def test_a_decoder_is_trained_further_while_its_latents_stay(run, tmp_path):
    main(["autoencoder", "--preset", "tiny", "--out", str(tmp_path), "--pretrained", str(run / "vae")])
    before, after = (AutoencoderKL.from_pretrained(folder / "vae").state_dict() for folder in (run, tmp_path))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_decoder_that_was_trained_further_does_not_name_the_folder_it_came_from(run, tmp_path):
    main(["autoencoder", "--preset", "tiny", "--out", str(tmp_path), "--pretrained", str(run / "vae")])
    assert (tmp_path / "vae" / "config.json").read_text() == (run / "vae" / "config.json").read_text()


def test_each_stage_reads_the_files_of_the_previous_one(run):
    vae = AutoencoderKL.from_pretrained(run / "vae")
    assert vae.config.latent_channels == 16 and vae.config.sample_size == TINY.sizes.default_size
    model = load_denoiser(TINY.sizes, run / "teacher.safetensors")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    main(["samples", "--preset", "tiny", "--out", str(run), "--steps", "1", "--size", "32", "48"])
    assert (run / "samples.png").stat().st_size > 1000


def test_training_of_the_teacher_continues_from_a_file(run, tmp_path):
    model = load_denoiser(TINY.sizes, run / "teacher.safetensors")
    save_denoiser(model, tmp_path)
    again = load_denoiser(TINY.sizes, tmp_path / "teacher.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    start = ["--pretrained", str(run / "teacher.safetensors"), "--iterations", "2"]
    shutil.copytree(run / "vae", tmp_path / "vae")
    main(["teacher", "--preset", "tiny", "--out", str(tmp_path), *start])
    log = read_log(tmp_path / "teacher.jsonl")
    assert log[0]["start"] == "teacher.safetensors" and log[-1]["iterations"] == 2
    trained = load_denoiser(TINY.sizes, tmp_path / "teacher.safetensors")
    assert log[-1]["order"] == pytest.approx(difference_by_order(trained.text_encoder_2), rel=0.02, abs=2e-6)


def test_batches_have_about_the_same_number_of_tokens(run):
    rank, shapes = CPU, SHAPES[:3]
    sized = [(s, torch.zeros(4, 16, s.height // 8, s.width // 8)) for s, _ in shapes]
    tables = [teacher.Table(s, z, torch.zeros(4, 77).short(), torch.zeros(4, 48).short()) for s, z in sized]
    preset = dataclasses.replace(POCKET, tokens=65536, shapes=shapes, paddings=((48, 0.5), (512, 0.5)))
    batches = teacher.draw_batches(tables, preset, rank, (torch.ones(1, 77).short(), torch.zeros(1, 48).short()))
    for _, batch in zip(range(20), batches, strict=False):
        per_row = batch.latents[0, 0].numel() // 4 + batch.t5_ids.shape[1]
        assert 0.9 * 65536 <= len(batch.sigmas) * per_row <= 65536


def test_the_compile_stage_times_a_step_of_every_shape(tmp_path, capsys):
    main(["compile", "--preset", "tiny", "--out", str(tmp_path)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["shape"], line["padding"]) for line in lines] == [
        ([64, 64], 48), ([32, 48], 48), ([64, 64], 64), ([32, 48], 64),
    ]  # fmt: skip


def test_the_validation_measures_the_averaged_weights_and_restores_the_live_ones():
    torch.manual_seed(0)
    model, shape = build_denoiser(TINY.sizes), TINY.shapes[0][0]
    average = Average(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = [tensor.clone() for tensor in (*average.live, *average.mean)]
    latents, ids = torch.randn(3, 16, 8, 8), torch.zeros(3, 48, dtype=torch.int16)
    mean = average.mean[0].sum()
    table = teacher.Table(shape, latents, ids, ids)
    measured = teacher.validate(lambda batch: average.live[0].sum().expand(len(batch.sigmas)), [table], average)
    assert measured == {"validation_64x64": pytest.approx(mean.item())}
    assert all(torch.equal(a, b) for a, b in zip(before, (*average.live, *average.mean), strict=True))
