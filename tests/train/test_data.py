"""The same scenes come out of any number of processes, with the tokens that their captions have."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("sentencepiece")

from fluxnb.train import data
from fluxnb.train.config import TINY
from fluxnb.train.data import cores, draw_chunks, draw_layouts
from fluxnb.train.tokens import Tokens


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


def test_a_containers_share_of_the_machine_is_kept_to(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores(tmp_path / "cpu.max") == 1


def test_a_container_without_a_limit_has_every_core_it_is_allowed(tmp_path):
    (tmp_path / "cpu.max").write_text("max 100000\n")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores(tmp_path / "cpu.max") == allowed


def test_ranks_of_one_machine_share_its_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert cores(tmp_path / "none") == 1
