"""The T5 encoder of the second pocket is taught to read captions, with the smallest preset."""

import math

import pytest
import torch
from safetensors.torch import load_file

from fluxnb.train.data.layouts import LETTERS
from fluxnb.train.pocket2 import judge, networks, text
from fluxnb.train.pocket2.__main__ import main
from fluxnb.train.pocket2.config import TINY
from fluxnb.train.stages.loop import Rank, read_log

pytestmark = pytest.mark.moderate

CPU = Rank(0, 1, torch.device("cpu"))


def test_a_reader_does_not_see_the_order_of_the_tokens():
    torch.manual_seed(0)
    reader, tokens = judge.Reader(64).eval(), torch.randn(2, 9, 64)
    read, shuffled = (reader.read(each) for each in (tokens, tokens[:, torch.randperm(9)]))
    for one, other in zip(read.columns(), shuffled.columns(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_every_letter_of_a_sign_is_one_attribute_of_the_loss():
    sizes = [(1, classes) for classes in judge.CLASSES.values()] + [(1, judge.SLOTS, len(LETTERS))]
    logits = judge.Attributes(*(torch.zeros(size) for size in sizes))
    target = judge.Attributes(*(torch.zeros(size[:-1], dtype=torch.long) for size in sizes))
    expected = sum(map(math.log, judge.CLASSES.values())) + judge.SLOTS * math.log(len(LETTERS))
    assert judge.attribute_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with an untrained network, and what the stage made of it."""
    out = tmp_path_factory.mktemp("text")
    torch.manual_seed(3)
    networks.save_denoiser(networks.build_denoiser(TINY.sizes), out, "untrained")
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
def test_the_teacher_can_start_from_an_encoder_that_was_taught_first(tmp_path):
    out = str(tmp_path)
    main(["text", "--preset", "tiny", "--out", out])
    main(["autoencoder", "--preset", "tiny", "--out", out])
    start = ["--pretrained", str(tmp_path / "start.safetensors")]
    main(["teacher", "--preset", "tiny", "--out", out, *start, "--rate", "0"])
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("start", "teacher"))
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "closer"), [(0.0, False), (1e4, True)])
def test_a_pretrained_encoder_changes_less_the_more_its_change_weighs(taught, tmp_path, monkeypatch, weight, closer):
    monkeypatch.setattr(text, "PRESERVE", weight)
    start = taught / "untrained.safetensors"
    options = ["--pretrained", str(start), "--iterations", "40", "--scenes", "16"]
    main(["text", "--preset", "tiny", "--out", str(tmp_path), *options])
    ids = torch.arange(2, 26)[None]
    old, new = (
        networks.load_denoiser(TINY.sizes, file).text_encoder_2(ids)[0]
        for file in (start, tmp_path / "start.safetensors")
    )
    change = ((new - old).square().mean() / old.square().mean()).item()
    assert (change < 0.01) == closer
