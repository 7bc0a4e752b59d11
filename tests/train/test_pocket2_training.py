"""Tokenizers and training stages of the second pocket, with the smallest preset."""

import dataclasses
import json
import random

import pytest
import torch
from diffusers import AutoencoderKL

from fluxnb.train.data import captions, scenes, stream, vocabulary
from fluxnb.train.pocket2 import config, networks, teacher
from fluxnb.train.pocket2.__main__ import main

pytestmark = pytest.mark.slow

TINY = config.TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    main(["autoencoder", "--preset", "tiny", "--out", str(out)])
    main(["teacher", "--preset", "tiny", "--out", str(out)])
    return out


def test_every_caption_word_is_one_token_and_no_caption_is_truncated():
    tokenizers = vocabulary.Tokenizers()
    rng = random.Random(0)
    texts = [captions.caption(scenes.partial_scene(rng), rng) for _ in range(2000)]
    assert max(map(len, tokenizers.t5(texts).input_ids)) <= vocabulary.CAPTION_TOKENS
    assert max(map(len, tokenizers.clip(texts).input_ids)) <= teacher.CLIP_USED
    assert all(len(tokenizers.t5.tokenize(word)) == 1 for word in vocabulary.words())


def test_tokens_preserve_every_letter_of_a_sign():
    tokenizers = vocabulary.Tokenizers()
    ids = tokenizers.t5("a cat holding a sign that says qxzvw jk").input_ids
    assert tokenizers.t5.decode(ids, skip_special_tokens=True) == "a cat holding a sign that says qxzvw jk"


def test_a_chunk_depends_only_on_seed_and_number():
    shape, _ = TINY.shapes[0]
    one, two = (next(iter(stream.draw_chunks([(shape, 5)], 7, workers=1))) for _ in range(2))
    assert torch.equal(one.t5_ids, two.t5_ids) and torch.equal(one.layout.noise, two.layout.noise)


def test_pooling_ignores_tokens_after_the_end_token():
    model = networks.build_denoiser(TINY.sizes).eval()
    clip, t5 = vocabulary.Tokenizers()(["a red fox in the snow"])
    full, short = (model.encode(ids, t5)[0] for ids in (clip, clip[:, : teacher.CLIP_USED]))
    torch.testing.assert_close(full, short)


def test_noise_levels_shift_with_the_number_of_tokens():
    generator = torch.Generator().manual_seed(0)
    few, many = (teacher.draw_sigmas(20000, n, torch.device("cpu"), generator) for n in (64, 256))
    assert few.min() > 0 and few.max() < 1 and many.mean() > few.mean() + 0.05


def test_each_stage_reads_the_files_of_the_previous_one(run):
    vae = AutoencoderKL.from_pretrained(run / "vae")
    assert vae.config.latent_channels == 16 and vae.config.sample_size == TINY.sizes.default_size
    model = networks.load_denoiser(TINY.sizes, run / "teacher.safetensors")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    main(["samples", "--preset", "tiny", "--out", str(run), "--steps", "1", "--size", "32", "48"])
    assert (run / "samples.png").stat().st_size > 1000


def test_training_of_the_teacher_continues_from_a_file(run, tmp_path):
    model = networks.load_denoiser(TINY.sizes, run / "teacher.safetensors")
    networks.save_denoiser(model, tmp_path)
    again = networks.load_denoiser(TINY.sizes, tmp_path / "teacher.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    start = ["--start", str(run / "teacher.safetensors"), "--iterations", "2"]
    main(["teacher", "--preset", "tiny", "--out", str(run), *start])


def test_batches_have_about_the_same_number_of_tokens(run):
    from fluxnb.train.stages.loop import Rank

    rank, shapes = Rank(0, 1, torch.device("cpu")), config.SHAPES[:3]
    sized = [(s, torch.zeros(4, 16, s.height // 8, s.width // 8)) for s, _ in shapes]
    tables = [teacher.Table(s, z, torch.zeros(4, 77).short(), torch.zeros(4, 48).short()) for s, z in sized]
    preset = dataclasses.replace(config.POCKET, tokens=65536, shapes=shapes, paddings=((48, 0.5), (512, 0.5)))
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
