"""The same scenes come out of any number of processes, with the tokens that their captions have."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sentencepiece")

from fluxnb.train.config import TINY
from fluxnb.train.data import batches as data
from fluxnb.train.data.batches import draw_chunks, draw_layouts, workers_here
from fluxnb.train.data.tokens import Tokens


@pytest.fixture
def small(monkeypatch):
    """Chunks of four scenes; their sizes go to the workers, so that only this process has to know."""
    monkeypatch.setattr(data, "CHUNK", 4)


def test_two_processes_draw_what_one_does(small):
    alone = list(draw_chunks(10, 5, TINY.sizes, workers=1))
    shared = list(draw_chunks(10, 5, TINY.sizes, workers=2))
    assert [len(chunk) for chunk in shared] == [4, 4, 2]
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.layout.boxes, other.layout.boxes)
        assert torch.equal(one.clip_ids, other.clip_ids) and torch.equal(one.t5_ids, other.t5_ids)


def test_a_chunk_holds_its_own_captions_tokens(small):
    layout, captions = draw_layouts(10, 5, workers=1)
    clip_ids, t5_ids = Tokens.of(TINY.sizes)(captions)
    chunks = list(draw_chunks(10, 5, TINY.sizes, workers=1))
    assert torch.equal(torch.cat([chunk.clip_ids for chunk in chunks]).long(), clip_ids)
    assert torch.equal(torch.cat([chunk.t5_ids for chunk in chunks]).long(), t5_ids)
    assert torch.equal(torch.cat([chunk.layout.letters for chunk in chunks]), layout.letters)


def test_no_token_is_too_large_for_a_short_integer():
    tokens = Tokens.of(TINY.sizes)
    assert max(len(tokens.clip), len(tokens.t5)) < 2**15


def test_ranks_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert workers_here() == 1
