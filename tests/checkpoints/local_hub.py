"""A local hub in a thread: it answers the requests of huggingface_hub for one repository, with configurable faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "beef"


@dataclass
class Hub:
    """A repository and its faults.

    Arguments:
        folder: the repository's files.
        refuse: HTTP status of every response, 401, 403, 404 or 500; 0 for none.
        gated: whether error responses state that the model is gated.
        token: if set, the token that requests must have.
        broken: names of files whose connection breaks half-way, and how often.
        damaged: names of files that are sent with one wrong byte.
        requests: paths of the requests so far.
    """

    folder: Path
    refuse: int = 0
    gated: bool = False
    token: str = ""
    broken: Counter[str] = field(default_factory=Counter)
    damaged: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Hub:
        local_hub = self

        class Handler(_Handler):
            hub = local_hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


def connect(hub: Hub, monkeypatch: Any, cache: Path) -> None:
    """Make huggingface_hub use the local hub in place of its own, with an empty cache and no token."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # the client waits a second before each retry
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**14)  # what has arrived counts from one chunk on
    monkeypatch.setenv("HF_TOKEN", "")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path).strip("/")
        hub.requests.append(path)
        if hub.refuse:
            return self.refusal(hub.refuse, "GatedRepo" if hub.gated else "RepoNotFound" if hub.refuse < 500 else "")
        if hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
            return self.refusal(401, "GatedRepo")
        if "/resolve/" in path:
            return self.file(path.split("/resolve/")[1].split("/", 1)[1], body)
        if "/tree/" in path:
            return self.json([self.entry(name) for name in hub.names()])
        if path.startswith("api/models/"):
            siblings = [{"rfilename": name} for name in hub.names()]
            return self.json(
                {"id": "fluxnb-tests/fox", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            )
        return self.refusal(404, "RepoNotFound")

    def refusal(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def json(self, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def entry(self, name: str) -> dict[str, Any]:
        raw = (self.hub.folder / name).read_bytes()
        made: dict[str, Any] = {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
        if name.endswith(".safetensors"):
            made["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 130}
        return made

    def file(self, name: str, body: bool) -> None:
        hub, path = self.hub, self.hub.folder / name
        if not path.is_file():
            return self.refusal(404, "EntryNotFound")
        raw = path.read_bytes()
        large = name.endswith(".safetensors")
        etag = hashlib.sha256(raw).hexdigest() if large else hashlib.sha1(raw).hexdigest()
        if name in hub.damaged:
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        total, begin = len(raw), 0
        if requested := self.headers.get("range"):
            hub.ranges.append(f"{name} {requested}")
            begin = int(requested.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        if large:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(total))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        if not body:
            return
        hub.sent[name] += 1
        if hub.broken[name] > 0:
            hub.broken[name] -= 1
            self.wfile.write(raw[begin : begin + (total - begin) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(raw[begin:])
