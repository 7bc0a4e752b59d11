"""A token is in no recipe, file, log, repr, error or traceback."""

from __future__ import annotations

import logging
import pickle
import traceback

import pytest

import fluxnb as fnb
from fluxnb.errors import FluxnbError
from fluxnb.remote.exchange import Message
from tests.remote.conftest import BFL_TOKEN, HUB_TOKEN, TOKENS
from tests.remote.double import FAULTS, status
from tests.remote.test_pictures import NAMES, recipe


def texts_of(problem: BaseException) -> str:
    """An exception as tools display it: with its chain, and with the variables of each frame."""
    found, chain = [], [problem]
    while chain:
        each = chain.pop()
        found += traceback.TracebackException.from_exception(each, capture_locals=True).format()
        found += [repr(each.args), repr(vars(each))]
        chain += [linked for linked in (each.__cause__, each.__context__) if linked is not None]
    return "".join(found)


@pytest.mark.parametrize("fault", [*FAULTS, "401", "echo"])
@pytest.mark.parametrize("name", NAMES)
def test_no_error_holds_the_token(double, name, fault, caplog, monkeypatch):
    echo = status(422, {"detail": f"Invalid key: {HUB_TOKEN} {BFL_TOKEN}", "error": {"message": f"{BFL_TOKEN}"}})
    faults = {**FAULTS, "401": status(401), "echo": echo}
    double.faults["request"] = [faults[fault]]
    # The token itself is a variable of the tests; only what is displayed of ours is searched.
    own = BFL_TOKEN if name == "klein@bfl" else HUB_TOKEN
    caplog.set_level(logging.DEBUG)
    with pytest.raises(FluxnbError) as raised:
        fnb.Remote(name, timeout=0.1).draw(recipe())
    frames = texts_of(raised.value.with_traceback(raised.tb.tb_next))
    assert own not in frames and "s1gned" not in frames
    assert own not in caplog.text


@pytest.mark.moderate
def test_no_file_or_repr_holds_the_token(double, tmp_path):
    for name in NAMES:
        remote = fnb.Remote(name)
        grid = fnb.sweep(remote, prompts="a fox", seeds=3, width=512, height=512, store=tmp_path / "store")
        grid.to_html(tmp_path / f"{name}.html")
        grid[0].save_png(tmp_path / f"{name}.png")
        shown = f"{remote!r} {vars(remote)!r} {grid!r} {grid[0]!r} {fnb.plan(name)!r} {remote.versions}"
        assert not any(token in shown for token in TOKENS)
        pickle.dumps(grid)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 * len(NAMES)
    for path in files:
        assert not any(token.encode() in path.read_bytes() for token in TOKENS)


def test_the_debug_log_of_huggingface_hub_shows_no_token(double, monkeypatch, caplog):
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    monkeypatch.setattr(constants, "HF_DEBUG", True)
    hub_logging.get_logger("huggingface_hub").setLevel(logging.DEBUG)
    logging.getLogger("huggingface_hub").propagate = True
    caplog.set_level(logging.DEBUG)
    try:
        for name in NAMES:
            fnb.Remote(name).draw(recipe())
    finally:
        hub_logging.get_logger("huggingface_hub").setLevel(logging.WARNING)
    assert "Send: curl" in caplog.text
    assert not any(token in caplog.text for token in TOKENS)


def test_a_message_displays_no_headers():
    message = Message(url="https://example.org", headers={"authorization": "Bearer s3cret", "x-key": "k3y"})
    assert "s3cret" not in repr(message) and "k3y" not in repr(message)
    assert message.secrets == ["s3cret", "k3y"]
