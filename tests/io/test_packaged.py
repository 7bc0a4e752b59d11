"""The defaults of the packaged models, which are read from their card."""

from __future__ import annotations

import json

import pytest

from fluxnb.families.defaults import ModelDefaults
from fluxnb.io import packaged
from fluxnb.io.packaged import POCKET, packaged_defaults


@pytest.mark.parametrize("name", ["pocket", "pocket-base"])
def test_the_card_states_every_default(name):
    stated = packaged_defaults(name)
    assert {"size", "steps", "guidance_kind", "max_sequence_length"} <= set(stated)
    assert ModelDefaults(**stated).guidance == stated.get("guidance")


@pytest.mark.parametrize("folder", [POCKET, POCKET / "base"], ids=["student", "teacher"])
def test_the_default_size_is_that_of_the_vae(folder):
    config = json.loads((folder / "vae" / "config.json").read_text())
    assert {packaged_defaults(name)["size"] for name in ("pocket", "pocket-base")} == {config["sample_size"]}


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"defaults": 3}', '{"defaults": {"pocket": 4}}'])
def test_without_a_readable_card_there_are_no_defaults(monkeypatch, tmp_path, text):
    monkeypatch.setattr(packaged, "POCKET", tmp_path)
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    assert packaged_defaults("pocket") == {}
