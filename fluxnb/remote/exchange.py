"""One HTTP request and its response, within a time and a size.

An exchange returns what went wrong instead of raising it. The exceptions of HTTP libraries hold the request with its
token, and tracebacks hold the variables of the functions they pass, so neither may reach a caller.
"""

from __future__ import annotations

import functools
import json
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["Broken", "Message", "Response", "exchange", "hub_session", "own_session", "pause"]

CHUNK = 2**16
LONGEST_ERROR = 2**16  # bytes; the body of an error is cut there
# The exceptions of HTTP libraries for a request of which nothing was sent, by name: hub versions use different ones.
UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
UNSENT |= {"InvalidURL", "OfflineModeIsEnabled"}


@dataclass(frozen=True, kw_only=True)
class Message:
    """A request. Its headers, which may hold a token, are not in its repr.

    Arguments:
        url: of the endpoint.
        body: sent as JSON by POST; None for a GET.
        headers: with the token, if there is one.
    """

    url: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> list[str]:
        """The tokens in the headers."""
        found = [value for name, value in self.headers.items() if name.lower() in ("authorization", "x-key")]
        return [value.removeprefix("Bearer ").removeprefix("Key ") for value in found]


@dataclass(frozen=True, kw_only=True)
class Response:
    """A complete response.

    Arguments:
        status: HTTP status.
        kind: media type, such as "image/png".
        body: the decoded body, without the token even if the other side repeated it.
        retry_after: seconds that the other side requests before the next attempt, None if it states none.
        location: target of a redirect.
    """

    status: int
    kind: str
    body: bytes = field(repr=False)
    retry_after: float | None = None
    location: str = ""

    @property
    def content(self) -> Any:
        """The body as JSON, None if it is not JSON."""
        with suppress(ValueError, RecursionError):
            return json.loads(self.body)
        return None


@dataclass(frozen=True)
class Broken:
    """An exchange without a complete response.

    Arguments:
        reason: what went wrong.
        sent: whether the other side may have received the request.
    """

    reason: str
    sent: bool = True


def exchange(session: Any, message: Message, *, limit: int, seconds: float) -> Response | Broken:
    """Send a request and read its response. Redirects are not followed, and nothing is sent again.

    Arguments:
        session: an httpx client.
        message: the request.
        limit: largest body in bytes; a larger one is not read.
        seconds: from the connection to the last byte, however slowly the bytes come.
    """
    headers = {**message.headers, "accept-encoding": "identity", "connection": "close"}
    with _Deadline(seconds) as deadline:
        try:
            opened = session.stream(
                "GET" if message.body is None else "POST",
                message.url,
                json=message.body,
                headers=headers,
                follow_redirects=False,
                timeout=seconds,
                extensions={"trace": deadline.trace},
            )
            with opened as response:
                body = _read(response, limit, deadline)
            for secret in filter(None, message.secrets):
                body = body.replace(secret.encode(), b"***")
            return Response(
                status=response.status_code,
                kind=response.headers.get("content-type", "").split(";")[0].strip().lower()[:80],
                body=body,
                retry_after=_retry_after(response.headers),
                location=response.headers.get("location", ""),
            )
        except _ReadError as problem:
            return Broken(str(problem))
        except Exception as problem:
            return _broken(problem, deadline, seconds)


class _ReadError(Exception):
    """A body that is not read to its end."""


def _read(response: Any, limit: int, deadline: _Deadline) -> bytes:
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", ""):
        raise _ReadError(f"the response is compressed with {coding[:20]!r}, which was not requested")
    unpack: Callable[[bytes, int], bytes] | None = zlib.decompressobj(31).decompress if coding == "gzip" else None
    is_error, body = response.status_code >= 300, bytearray()
    limit = min(limit, LONGEST_ERROR) if is_error else limit
    for chunk in response.iter_raw(CHUNK):
        body += chunk if unpack is None else unpack(chunk, limit + 1 - len(body))
        if len(body) > limit:
            if is_error:
                return bytes(body[:limit])
            raise _ReadError(f"the response is larger than {limit / 2**20:.0f} MiB")
        if deadline.passed:
            raise _ReadError("the response did not end in time")
    return bytes(body)


def _broken(problem: Exception, deadline: _Deadline, seconds: float) -> Broken:
    names = [base.__name__ for base in type(problem).__mro__]
    sent = not UNSENT & set(names)
    if deadline.passed or "TimeoutException" in names:
        return Broken(f"no complete response within {seconds:g} s", sent)
    if "OfflineModeIsEnabled" in names:
        return Broken("HF_HUB_OFFLINE is set, so nothing is sent", sent)
    # The class alone: the text of the exception may hold a link with a signature.
    return Broken(f"the connection failed ({names[0]})", sent)


class _Deadline:
    """Ends an exchange after some seconds by shutting its connection down.

    The time-outs of HTTP libraries begin again with each byte that arrives.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, information: Mapping[str, Any]) -> None:
        """Note the socket of a new connection, and that of its encryption; called by httpx."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.append(information["return_value"].get_extra_info("socket"))
            if self.passed:  # before there was a connection to shut down
                self._end()

    def _end(self) -> None:
        self.passed = True  # first: a connection that is noted from now on is shut down by `trace`
        for connected in self._sockets:
            with suppress(OSError):
                # The method of the base class: that of an encrypted socket changes it under the thread that reads.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the next attempt, from Retry-After (seconds or a date) or from RateLimit."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    with suppress(ValueError, TypeError, OverflowError):
        date = parsedate_to_datetime(text)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    limit = re.search(r"\bt\s*=\s*(\d{1,9})", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


# ------------------------------------------------------------------------------------------------------------- sessions
def hub_session() -> Any:
    """The client of huggingface_hub, with the proxies and certificates that the user gave it."""
    from huggingface_hub import get_session

    return get_session()


@functools.cache
def own_session() -> Any:
    """A client of the same library, for hosts whose token the debug log of huggingface_hub would not hide."""
    client = next(base for base in type(hub_session()).__mro__ if base.__name__ == "Client")
    library = sys.modules[client.__module__.partition(".")[0]]
    return library.Client()


def pause(seconds: float, stopped: Callable[[], bool]) -> bool:
    """Wait; returns False as soon as `stopped` returns True."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stopped():
            return False
        time.sleep(min(left, 0.05))
    return not stopped()
