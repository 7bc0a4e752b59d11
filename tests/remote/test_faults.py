"""Faults of each provider: an error in three parts, one request, and no picture that was paid for is lost."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from datetime import UTC
from types import SimpleNamespace

import pytest

import fluxnb as fnb
from fluxnb.errors import RunError
from fluxnb.remote import client, exchange
from fluxnb.remote.handle import Withheld
from tests.remote.conftest import TOKENS
from tests.remote.double import FAULTS, Double, redirect, status
from tests.remote.test_pictures import LINKED, NAMES, SIZE, recipe


def failed(remote, **fields) -> RunError:
    with pytest.raises(RunError) as raised:
        remote.draw(recipe(**fields))
    problem = raised.value
    assert problem.given and problem.possible and problem.remedy
    assert not any(token in str(problem) for token in TOKENS) and "s1gned" not in str(problem)
    assert problem.__cause__ is None and problem.__context__ is None
    return problem


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(exchange, "LONGEST_ERROR", 2**12)
    monkeypatch.setattr(client, "PAUSES", (0.01,))
    monkeypatch.setattr(client, "LARGEST_FILE", 2**21)
    monkeypatch.setattr(client, "LARGEST_RESPONSE", 2**21)
    return lambda name: fnb.Remote(name, timeout=0.15)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_of_a_request_is_an_error_and_the_request_is_not_sent_again(double, impatient, name, fault):
    double.faults["request"] = [FAULTS[fault]] * 5
    started = time.perf_counter()
    problem = failed(impatient(name))
    assert time.perf_counter() - started < 2
    assert isinstance(problem, Withheld) == (fault == "refusal")
    assert len(double.paid) == 1


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", LINKED)
def test_a_picture_that_does_not_arrive_is_downloaded_by_the_next_call(double, impatient, name, fault):
    double.faults["picture"] = [FAULTS[fault]] * 2
    remote = impatient(name)
    assert "call again on this handle" in failed(remote).remedy.lower()
    double.faults["picture"] = []
    assert remote.draw(recipe()).image.size == SIZE
    assert len(double.paid) == 1


@pytest.mark.parametrize("fault", ["silence", "truncated", "drip"])
@pytest.mark.parametrize("name", LINKED)
def test_a_download_is_repeated_once_its_connection_fails(double, impatient, name, fault):
    double.faults["picture"] = [FAULTS[fault]]
    assert impatient(name).draw(recipe()).image.size == SIZE
    assert len(double.paid) == 1


@pytest.mark.parametrize("name", ["schnell@replicate", "klein@bfl"])
def test_an_accepted_request_that_is_not_ready_in_time_is_looked_up_by_the_next_call(double, impatient, name):
    double.late = 10**6
    remote = impatient(name)
    assert "not ready" in failed(remote).possible
    double.late = 0
    assert remote.draw(recipe()).image.size == SIZE
    assert len(double.paid) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "does not accept the token in"),
        (402, "no credit"),
        (403, "may not use it"),
        (404, "has no model"),
        (422, "refuses the request"),
        (500, "may have accepted"),
        (504, "may have accepted"),
    ],
)
def test_an_error_of_a_provider_is_explained(double, name, code, words):
    double.faults["request"] = [status(code, {"error": "the reason"})] * 2
    problem = failed(fnb.Remote(name))
    assert words in problem.possible and "the reason" in problem.possible and str(code) in problem.possible
    assert len(double.paid) == 1


def test_a_field_that_a_provider_refuses_is_named(double):
    detail = [{"loc": ["body", "num_inference_steps"], "msg": "must be at most 12", "input": "a nsfw prompt"}]
    double.faults["request"] = [status(422, {"detail": detail})]
    problem = failed(fnb.Remote("schnell@fal-ai"))
    assert "num_inference_steps" in problem.possible and "at most 12" in problem.possible
    assert not isinstance(problem, Withheld) and "nsfw" not in problem.possible


def test_a_connection_that_is_made_after_the_deadline_is_shut_down():
    ours, theirs = socket.socketpair()
    with ours, theirs, exchange._Deadline(60.0) as deadline:
        deadline._end()
        opened = SimpleNamespace(get_extra_info=lambda name: ours)
        deadline.trace("connection.connect_tcp.complete", {"return_value": opened})
        assert theirs.recv(1) == b""


# ------------------------------------------------------------------------------------------------------------- retries
@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("name", NAMES)
def test_a_busy_provider_is_requested_again(double, name, code):
    double.faults["request"] = [status(code)] * 3
    assert fnb.Remote(name).draw(recipe()).image.size == SIZE
    assert len(double.paid) == 4


def test_a_busy_provider_is_requested_four_times_at_most(double):
    double.faults["request"] = [status(429)] * 9
    assert "busy" in failed(fnb.Remote("schnell@fal-ai")).possible
    assert len(double.paid) == 4


@pytest.mark.parametrize("headers", [{"Retry_After": "1"}, {"RateLimit": '"api";r=0;t=1'}])
def test_the_wait_that_a_provider_states_is_kept(double, monkeypatch, headers):
    waits = []
    monkeypatch.setattr(client, "pause", lambda seconds, stopped: waits.append(seconds) or True)
    double.faults["request"] = [status(429, **headers)]
    fnb.Remote("schnell@fal-ai").draw(recipe())
    assert waits == [1.0]


def test_a_long_wait_is_an_error(double):
    double.faults["request"] = [status(503, Retry_After="3600")]
    assert "busy for 3600 s" in failed(fnb.Remote("schnell@fal-ai")).possible
    assert len(double.paid) == 1


def test_a_wait_may_be_a_date():
    from datetime import datetime, timedelta
    from email.utils import format_datetime

    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert 27 < exchange._retry_after({"retry-after": date}) <= 30
    assert exchange._retry_after({"retry-after": "soon"}) is None


# ----------------------------------------------------------------------------------------------------- hosts and sizes
@pytest.mark.parametrize("name", LINKED)
def test_a_redirect_of_a_picture_is_not_followed_to_an_unencrypted_host(double, name):
    with Double() as other:
        double.faults["picture"] = [lambda handler: redirect(handler, f"{other.url}/files/3-512-512.png")] * 4
        failed(fnb.Remote(name, timeout=1))
        assert other.requests == []


@pytest.mark.parametrize("name", NAMES)
def test_a_redirect_of_a_request_is_not_followed(double, name):
    with Double() as other:
        double.faults["request"] = [lambda handler: redirect(handler, f"{other.url}{handler.path}")]
        assert "redirects" in failed(fnb.Remote(name)).possible
        assert other.requests == []


def test_a_picture_is_downloaded_without_the_token(double):
    for name in LINKED:
        fnb.Remote(name).draw(recipe())
    downloads = [request for request in double.requests if request.path.startswith("/files/")]
    assert len(downloads) == 3
    assert not any(token in str(request.headers) for request in downloads for token in TOKENS)


def test_three_redirects_of_a_picture_are_followed_on_the_same_host(double):
    link = "/files/3-512-512.png"
    double.faults["picture"] = [lambda handler: redirect(handler, link)] * 3
    assert fnb.Remote("schnell@fal-ai").draw(recipe()).image.size == SIZE
    double.faults["picture"] = [lambda handler: redirect(handler, link)] * 16
    assert "redirected more than 3 times" in failed(fnb.Remote("schnell@fal-ai"), seed=4).possible


@pytest.mark.parametrize(
    "link",
    [
        "http://example.org/a.png",
        "https://localhost/a.png",
        "https://10.0.0.1/a.png",
        "https://169.254.169.254/latest",
        "https://[::1]/a.png",
        "https://user@example.org/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "https://[",
        "https://localhost./a.png",
        "https://files.localhost/a.png",
        "https://files.internal./a.png",
        "https://127.0.0.1./a.png",
        "https://127.1/a.png",
        "https://0x7f.0x1/a.png",
    ],
)
def test_a_picture_is_not_downloaded_from_this_link(link):
    from urllib.parse import urlsplit

    assert not client._may_be_downloaded(link, urlsplit("https://fal.run/fal-ai"))
    assert client._may_be_downloaded("https://v3.fal.media/files/a.png", urlsplit("https://fal.run/fal-ai"))


@pytest.mark.parametrize("address", ["https://[", "https://a.example.org:port/", "https://\ud800.example.org/", "\0"])
def test_an_address_that_is_invalid_is_an_error(double, monkeypatch, address):
    images = {"images": [{"url": address}]}
    double.change = lambda response: {**response, **images, "output": [address], "polling_url": address}
    for name in LINKED:
        failed(fnb.Remote(name, timeout=1))
    double.change = lambda response: response
    double.faults["picture"] = [lambda handler: redirect(handler, "https://[")] * 4 * len(LINKED)
    for name in LINKED:
        failed(fnb.Remote(name, timeout=1), seed=4)


def test_the_token_of_bfl_goes_to_its_regions_alone(double):
    from urllib.parse import urlsplit

    own = urlsplit("https://api.bfl.ai/v1/flux-2-klein-4b")
    assert client._receives_token("https://api.eu.bfl.ai/v1/get_result?id=1", own)
    for other in (
        "https://bfl.ai.example.org/x",
        "http://api.eu.bfl.ai/x",
        "https://notbfl.ai/",
        "https://a@b.bfl.ai/",
        "https://example.org\\.bfl.ai/",
        "https://example.org%2f.bfl.ai/",
        "https://[b.bfl.ai/",
    ):
        assert not client._receives_token(other, own)
    double.change = lambda response: {**response, "polling_url": "https://example.org/v1/get_result?id=1"}
    assert "must not receive the token" in failed(fnb.Remote("klein@bfl")).possible


def test_a_compressed_answer_is_limited_by_its_decompressed_size(double, impatient):
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(bytes(2**25)) + packer.flush()
    double.faults["request"] = [lambda handler: handler.data(bomb, "image/png", Content_Encoding="gzip") or True]
    assert "larger than" in failed(impatient("schnell@hf-inference")).possible


def test_an_answer_in_gzip_is_read(double):
    response = gzip.compress(json.dumps({"images": [{"url": f"{double.url}/files/3-512-512.png"}]}).encode())
    double.faults["request"] = [
        lambda handler: handler.data(response, "application/json", Content_Encoding="gzip") or True
    ]
    assert fnb.Remote("schnell@fal-ai").draw(recipe()).image.size == SIZE


@pytest.mark.parametrize(
    "response",
    [
        b"[" * 100_000,
        b'{"images": 3}',
        b'{"images": [{"url": 3}]}',
        b'{"data": [{"b64_json": "%%"}]}',
        b'{"id": "../../x", "status": "processing"}',
        b'{"id": {}, "status": []}',
        b'{"status": "Ready", "result": []}',
        b"null",
        b"",
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_of_another_form_is_an_error(double, name, response):
    double.faults["request"] = [lambda handler: handler.data(response, "application/json") or True]
    failed(fnb.Remote(name))
    assert len(double.paid) == 1


def test_the_message_of_a_failed_prediction_is_reported(double):
    double.change = lambda response: {**response, "status": "failed", "output": None, "error": "CUDA error"}
    assert "CUDA error" in failed(fnb.Remote("schnell@replicate")).possible
    double.change = lambda response: {**response, "status": "failed", "output": None, "error": "NSFW content detected"}
    assert isinstance(failed(fnb.Remote("schnell@replicate")), Withheld)
    double.change = lambda response: {**response, "status": "Content Moderated"}
    assert isinstance(failed(fnb.Remote("klein@bfl")), Withheld)


def test_an_expired_link_lets_the_next_call_request_another_picture(double):
    remote = fnb.Remote("schnell@fal-ai")
    double.faults["picture"] = [status(404)]
    assert "expired" in failed(remote).remedy
    assert remote.draw(recipe()).image.size == SIZE
    assert len(double.paid) == 2
