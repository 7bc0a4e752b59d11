"""A run of the smallest preset, which the tests of the stages share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A folder with an autoencoder and a teacher."""
    from fluxnb.train.__main__ import main

    out = tmp_path_factory.mktemp("run")
    main(["autoencoder", "--preset", "tiny", "--out", str(out)])
    main(["teacher", "--preset", "tiny", "--out", str(out)])
    return out
