"""The server process of the tests whose processes are killed."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def server(toy_folder, tmp_path_factory):
    from tests.grid.test_killed import Server  # imports fluxnb, which the shape checks of pytest come before

    server = Server(toy_folder, tmp_path_factory.mktemp("reports"))
    yield server
    server.process.stdin.close()
    server.process.wait(20)
