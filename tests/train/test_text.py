"""The T5 encoder is taught to read captions, with the smallest preset."""

import pytest
import torch
from safetensors.torch import load_file

from fluxnb.train.__main__ import main
from fluxnb.train.config import POCKET, TINY
from fluxnb.train.data.stream import draw_chunks
from fluxnb.train.networks import build, judge
from fluxnb.train.networks.denoiser import build_denoiser, load_denoiser, save_denoiser
from fluxnb.train.stages import text
from fluxnb.train.stages.loop import read_log

pytestmark = pytest.mark.moderate


def caption_ids():
    """Token ids of eight captions of the training."""
    (chunk,) = draw_chunks([(TINY.shapes[0][0], 8)], text.SEED)
    return chunk.t5_ids.long()


def test_a_reader_does_not_see_the_order_of_the_tokens():
    torch.manual_seed(0)
    reader, tokens = judge.Reader(64).eval(), torch.randn(2, 9, 64)
    read, shuffled = (reader.read(each) for each in (tokens, tokens[:, torch.randperm(9)]))
    for one, other in zip(read.columns(), shuffled.columns(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with an untrained network, and what the stage made of it."""
    out = tmp_path_factory.mktemp("text")
    torch.manual_seed(3)
    save_denoiser(build_denoiser(TINY.sizes), out, "untrained")
    main(["text", "--preset", "tiny", "--out", str(out), "--pretrained", str(out / "untrained.safetensors")])
    return out


@pytest.mark.slow
def test_only_t5_changes(taught):
    before, after = (load_file(taught / f"{name}.safetensors") for name in ("untrained", "start"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {"text_encoder_2"}


@pytest.mark.slow
def test_the_log_ends_with_what_is_read_from_new_captions(taught):
    log = read_log(taught / "text.jsonl")
    shares = [log[-1][name] for name in ("object", "color", "relation", "sign")]
    assert log[0]["start"] == "untrained.safetensors" and all(0 <= share <= 1 for share in shares)


@pytest.mark.slow
def test_the_log_has_the_difference_by_word_order_of_the_old_and_the_new_encoder(taught):
    log = read_log(taught / "text.jsonl")
    found = [
        text.difference_by_order(load_denoiser(TINY.sizes, taught / f"{name}.safetensors").text_encoder_2)
        for name in ("untrained", "start")
    ]
    assert [log[0]["order_before"], log[-1]["order"]] == pytest.approx(found, rel=0.02, abs=2e-6)


def test_a_bag_of_words_has_no_difference_by_word_order():
    torch.manual_seed(0)
    encoder = build_denoiser(TINY.sizes).text_encoder_2.eval()
    assert text.difference_by_order(encoder) > 1e-4
    torch.nn.init.zeros_(encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    assert text.difference_by_order(encoder) == pytest.approx(0, abs=1e-6)


def test_heads_prefer_the_tokens_at_their_distances():
    encoder = build.build_text_encoder_2(POCKET.sizes)
    attention = encoder.encoder.block[0].layer[0].SelfAttention
    torch.nn.init.zeros_(attention.relative_attention_bias.weight)
    build.prefer_distances(encoder)
    bias = attention.compute_bias(20, 20)[0]  # (heads, attending token, token)
    assert len(bias) == len(build.DISTANCES)
    for head, distances in enumerate(build.DISTANCES):
        preferred = {place - 10 for place in range(20) if bias[head, 10, place] > 0}
        assert preferred == set(distances)


@pytest.mark.slow
def test_the_teacher_can_start_from_an_encoder_that_was_taught_first(tmp_path):
    out = str(tmp_path)
    main(["text", "--preset", "tiny", "--out", out])
    main(["autoencoder", "--preset", "tiny", "--out", out])
    start = ["--pretrained", str(tmp_path / "start.safetensors")]
    main(["teacher", "--preset", "tiny", "--out", out, *start, "--rate", "0"])
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("start", "teacher"))
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)


@pytest.mark.slow
def test_the_new_encoder_comes_close_to_the_one_that_it_imitates(taught, tmp_path, monkeypatch):
    start, distances = taught / "untrained.safetensors", []
    ids = caption_ids()
    old = load_denoiser(TINY.sizes, start).text_encoder_2(ids)[0]
    for weight in (0.0, 1e3):
        monkeypatch.setattr(text, "IMITATION", weight)
        options = ["--pretrained", str(start), "--iterations", "60", "--scenes", "64", "--rate", "1e-2"]
        main(["text", "--preset", "tiny", "--out", str(tmp_path), *options])
        new = load_denoiser(TINY.sizes, tmp_path / "start.safetensors").text_encoder_2(ids)[0]
        distances.append(text.relative_distance(new, old).item())
    assert distances[1] < 0.5 * distances[0]
