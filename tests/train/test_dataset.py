"""Datasets: independence of the number of workers, and tokenized captions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sentencepiece")

from fluxnb.train.config import TINY
from fluxnb.train.data import dataset
from fluxnb.train.data.dataset import default_workers, draw_chunks, draw_layouts
from fluxnb.train.data.tokens import Tokens


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of four scenes. Workers receive the size of each chunk, so patching this process is enough."""
    monkeypatch.setattr(dataset, "CHUNK", 4)


@pytest.mark.moderate
def test_one_and_two_workers_draw_the_same_chunks(small_chunks):
    one_worker = list(draw_chunks(10, 5, TINY.sizes, workers=1))
    two_workers = list(draw_chunks(10, 5, TINY.sizes, workers=2))
    assert [len(chunk) for chunk in two_workers] == [4, 4, 2]
    for one, other in zip(one_worker, two_workers, strict=True):
        assert torch.equal(one.layout.boxes, other.layout.boxes)
        assert torch.equal(one.clip_ids, other.clip_ids) and torch.equal(one.t5_ids, other.t5_ids)


def test_chunks_hold_the_token_ids_of_their_captions(small_chunks):
    layout, captions = draw_layouts(10, 5, workers=1)
    clip_ids, t5_ids = Tokens.of(TINY.sizes)(captions)
    chunks = list(draw_chunks(10, 5, TINY.sizes, workers=1))
    assert torch.equal(torch.cat([chunk.clip_ids for chunk in chunks]).long(), clip_ids)
    assert torch.equal(torch.cat([chunk.t5_ids for chunk in chunks]).long(), t5_ids)
    assert torch.equal(torch.cat([chunk.layout.letters for chunk in chunks]), layout.letters)


def test_token_ids_fit_in_int16():
    tokens = Tokens.of(TINY.sizes)
    assert max(len(tokens.clip), len(tokens.t5)) < 2**15


def test_the_ranks_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert default_workers() == 1
