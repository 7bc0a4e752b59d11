"""Tokenizers and training stages of the second pocket, with the smallest preset."""

import dataclasses
import hashlib
import inspect
import json
import random
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

import fluxnb as fnb
from fluxnb.records.latents import pack, unpack
from fluxnb.train.data import captions, scenes, stream, vocabulary
from fluxnb.train.networks.denoiser import save_transformer
from fluxnb.train.pocket2 import config, distillation, networks, samples, ship, teacher
from fluxnb.train.pocket2.__main__ import main
from fluxnb.train.stages.loop import Rank, read_log

pytestmark = pytest.mark.slow

TINY = config.TINY
CPU = Rank(0, 1, torch.device("cpu"))


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


def test_a_decoder_is_trained_further_while_its_latents_stay(run, tmp_path):
    main(["autoencoder", "--preset", "tiny", "--out", str(tmp_path), "--pretrained", str(run / "vae")])
    before, after = (AutoencoderKL.from_pretrained(folder / "vae").state_dict() for folder in (run, tmp_path))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_decoder_that_was_trained_further_does_not_name_the_folder_it_came_from(run, tmp_path):
    main(["autoencoder", "--preset", "tiny", "--out", str(tmp_path), "--pretrained", str(run / "vae")])
    assert (tmp_path / "vae" / "config.json").read_text() == (run / "vae" / "config.json").read_text()


@pytest.mark.parametrize("added", [1, 3])
def test_added_blocks_change_nothing_and_have_gradients(run, added):
    few = networks.load_denoiser(TINY.sizes, run / "teacher.safetensors")
    sizes = dataclasses.replace(TINY.sizes, single_blocks=TINY.sizes.single_blocks + added)
    many = networks.load_denoiser(sizes, run / "teacher.safetensors")
    pooled, sequence = few.encode(*vocabulary.Tokenizers()(["a cat"]))
    x = torch.randn(1, 12, few.transformer.config.in_channels, generator=torch.Generator().manual_seed(0))
    before, after = (each(x, torch.tensor([0.5]), pooled, sequence, (3, 4)) for each in (few, many))
    torch.testing.assert_close(after, before)
    after.square().mean().backward()
    last = [block.proj_out.weight.grad.abs().max() for block in many.transformer.single_transformer_blocks]
    assert len(last) == sizes.single_blocks and min(last) > 0


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
    start = ["--pretrained", str(run / "teacher.safetensors"), "--iterations", "2"]
    shutil.copytree(run / "vae", tmp_path / "vae")
    main(["teacher", "--preset", "tiny", "--out", str(tmp_path), *start])
    log = read_log(tmp_path / "teacher.jsonl")
    assert log[0]["start"] == "teacher.safetensors" and log[-1]["iterations"] == 2
    trained = networks.load_denoiser(TINY.sizes, tmp_path / "teacher.safetensors")
    assert log[-1]["order"] == pytest.approx(networks.difference_by_order(trained.text_encoder_2), rel=0.02, abs=2e-6)


def test_batches_have_about_the_same_number_of_tokens(run):
    rank, shapes = CPU, config.SHAPES[:3]
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


def test_a_student_is_distilled_from_the_teacher_and_differs_from_it(run):
    main(["student", "--preset", "tiny", "--out", str(run)])
    teacher = networks.load_denoiser(TINY.sizes, run / "teacher.safetensors").transformer.state_dict()
    for name in ("warm", "student"):
        state = load_file(run / f"{name}.safetensors")
        assert set(state) == set(teacher)
        assert any(not torch.equal(value.float(), teacher[key]) for key, value in state.items())
    main(["samples", "--preset", "tiny", "--out", str(run), "--steps", "1", "--transformer", "student"])
    assert (run / "samples-student.png").stat().st_size > 1000


def test_ladd_alone_has_no_reflow(run, tmp_path):
    shutil.copyfile(run / "teacher.safetensors", tmp_path / "teacher.safetensors")
    main(["student", "--preset", "tiny", "--out", str(tmp_path), "--ladd-only"])
    assert (tmp_path / "ladd.safetensors").is_file() and not (tmp_path / "warm.safetensors").exists()


def test_a_pair_is_the_teachers_sample_from_its_noise(run):
    model = networks.load_denoiser(TINY.sizes, run / "teacher.safetensors")
    with torch.no_grad():  # a new network predicts zero, and noise would be its picture
        model.transformer.proj_out.weight.normal_(std=0.2)
    tables = distillation.draw_pairs(model, TINY, CPU)
    assert [table.shape for table in tables] == [shape for shape, _ in TINY.shapes]
    table = tables[1]  # not square
    clip, t5 = (ids[:4].long() for ids in (table.pairs.clip_ids, table.pairs.t5_ids))
    noise = unpack(table.pairs.noise[:4].float(), table.shape.height, table.shape.width)
    settings = TINY.distillation
    empty = tuple(ids for ids in vocabulary.Tokenizers()([""]))
    again = teacher.sample(model, clip, t5, noise, settings.teacher_steps, guidance=settings.guidance, empty=empty)
    assert torch.allclose(pack(again), table.pairs.clean[:4].float(), atol=1e-2)
    assert not torch.allclose(table.pairs.clean, table.pairs.noise, atol=0.1)


def test_a_longer_padding_changes_the_sequence_and_not_the_pooled_vector(run):
    model = networks.load_denoiser(TINY.sizes, run / "teacher.safetensors")
    pairs = distillation.draw_pairs(model, TINY, CPU)[0].pairs
    rows = torch.arange(2)
    (pooled, sequence), (again, longer) = (distillation.encode(model, pairs, rows, n) for n in (48, 64))
    assert torch.equal(pooled, again) and sequence.shape[1] == 48 and longer.shape[1] == 64


def test_a_shipped_student_is_loaded_by_diffusers_and_draws_the_pictures_of_the_run(run, tmp_path):
    main(["ship", "--preset", "tiny", "--out", str(run), "--to", str(tmp_path / "teacher")])
    pipe = FluxPipeline.from_pretrained(tmp_path / "teacher")
    pipe.set_progress_bar_config(disable=True)
    model = networks.load_denoiser(TINY.sizes, run / "teacher.safetensors")
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = vocabulary.Tokenizers()(["a red fox"])
    expected = pack(teacher.sample(model, *ids, noise, 2))
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 48}
    latents = pipe("a red fox", latents=pack(noise), output_type="latent", **settings).images
    torch.testing.assert_close(latents, expected, atol=5e-3, rtol=0)  # half precision


def test_a_shipped_folder_has_settings_of_the_classes_of_diffusers_alone(run, tmp_path):
    main(["ship", "--preset", "tiny", "--out", str(run), "--to", str(tmp_path / "teacher")])
    for name, kind in (("transformer", FluxTransformer2DModel), ("vae", AutoencoderKL)):
        stored = json.loads((tmp_path / "teacher" / name / "config.json").read_text())
        assert {key for key in stored if not key.startswith("_")} <= set(inspect.signature(kind).parameters)


def test_a_shipped_folder_has_the_default_size_of_the_preset(run, tmp_path):
    main(["ship", "--preset", "tiny", "--out", str(run), "--to", str(tmp_path / "teacher")])
    flux = fnb.load(FluxPipeline.from_pretrained(tmp_path / "teacher"))
    assert flux.defaults.size == TINY.sizes.default_size


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory):
    """A shipped pair, of a run with logs of two trainings of the teacher and with notes."""
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(run, whole, dirs_exist_ok=True)
    main(["judge", "--preset", "tiny", "--out", str(whole)])
    student = networks.build_denoiser(TINY.sizes).transformer
    save_transformer(student, whole / "student.safetensors")
    (whole / "teacher.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in 2 * read_log(run / "teacher.jsonl"))
    )
    (whole / "notes.json").write_text(json.dumps({"hardware": "a machine"}))
    main(["ship", "--preset", "tiny", "--out", str(whole), "--to", str(whole / "pair"), "--pair"])
    return whole / "pair"


def test_a_shipped_pair_is_loaded_as_student_and_teacher(pair):
    student, teacher_of_it = FluxPipeline.from_pretrained(pair), FluxPipeline.from_pretrained(pair / "base")
    shared = [student.vae, student.text_encoder, student.text_encoder_2]
    for one, other in zip(
        shared, [teacher_of_it.vae, teacher_of_it.text_encoder, teacher_of_it.text_encoder_2], strict=True
    ):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    weights = teacher_of_it.transformer.state_dict()
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in student.transformer.state_dict().items())
    assert fnb.load(student).defaults.size == TINY.sizes.default_size


def test_the_card_of_a_pair_has_the_checksum_of_every_file(pair):
    files = {path.relative_to(pair).as_posix(): path for path in pair.rglob("*") if path.is_file()}
    del files["card.json"]
    card = json.loads((pair / "card.json").read_text())
    assert card["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert card["hardware"] == "a machine" and card["defaults"]["pocket-base"]["steps"] == 28


def test_the_card_of_a_pair_adds_up_the_trainings_of_a_log(run, pair):
    once = ship.summarize(read_log(run / "teacher.jsonl"))
    card = json.loads((pair / "card.json").read_text())["training"]["teacher"]
    assert card["seconds"] == pytest.approx(2 * once["seconds"]) and len(card["runs"]) == 2
    last = max(iteration for iteration, _ in once["validation"]["validation_64x64"])
    assert [iteration for iteration, _ in card["validation"]["validation_64x64"]][-1] == last + TINY.teacher.iterations


def test_a_loss_curve_in_a_card_is_short():
    log = [{"iteration": n, "loss": 1.0} for n in range(1000)] + [{"iterations": 1000, "seconds": 5.0}]
    assert 40 <= len(ship.summarize(log)["loss"]) <= ship.CURVE


@pytest.mark.parametrize(
    ("options", "guidance"),
    [([], TINY.distillation.guidance), (["--transformer", "student"], 1.0), (["--guidance", "3"], 3.0)],
    ids=["teacher", "student", "given"],
)
def test_a_sheet_of_samples_has_the_guidance_of_its_model(options, guidance, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(samples, "save_sheet", lambda *given, **settings: found.update(settings))
    main(["samples", "--preset", "tiny", "--out", str(tmp_path), *options])
    assert found["guidance"] == guidance
