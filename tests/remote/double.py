"""A local server in a thread that responds as the hub's router, four providers and BFL do, with configurable faults.

The shapes of its responses are those of the providers' documentation; `test_compat.py` has huggingface_hub read them.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

REPO = "black-forest-labs/FLUX.1-schnell"
MAPPING = {
    "fal-ai": {"status": "live", "providerId": "fal-ai/flux/schnell", "task": "text-to-image"},
    "replicate": {"status": "live", "providerId": "black-forest-labs/flux-schnell", "task": "text-to-image"},
    "together": {"status": "live", "providerId": REPO, "task": "text-to-image"},
    "hf-inference": {"status": "live", "providerId": REPO, "task": "text-to-image"},
}
RATIOS = {("1:1", "1"): (1024, 1024), ("1:1", "0.25"): (512, 512), ("16:9", "0.25"): (672, 384)}


@functools.cache
def picture(seed: int, width: int, height: int, kind: str = "PNG") -> bytes:
    """An encoded picture that depends on the seed."""
    ramp = Image.linear_gradient("L").resize((width, height))
    image = Image.merge("RGB", (ramp, ramp.rotate(180), Image.new("L", (width, height), seed * 37 % 256)))
    buffer = io.BytesIO()
    image.save(buffer, kind, compress_level=1)
    return buffer.getvalue()


@functools.cache
def one_color(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass
class Request:
    """A request that the server received."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def seed(self) -> int:
        body = self.body or {}
        return int((body.get("input") or body if isinstance(body.get("input"), dict) else body).get("seed")
                   if "parameters" not in body else body["parameters"]["seed"])  # fmt: skip


Fault = Callable[["_Handler"], bool]  # responds itself and returns True, or returns False


@dataclass
class Double:
    """The server.

    Arguments:
        faults: by stage, "request", "state" or "picture": called instead of the response, each once, the first first.
        kind: format of the pictures.
        encode: makes a picture from seed, width and height.
        late: how often an accepted request is not ready (replicate and bfl).
        change: changes the JSON of an response to a request.
        delay: seconds before a picture is there.
        on_request: called with the number of requests for pictures so far.
    """

    faults: dict[str, list[Fault]] = field(default_factory=lambda: {"request": [], "state": [], "picture": []})
    kind: str = "PNG"
    encode: Callable[[int, int, int], bytes] | None = None
    late: int = 0
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda response: response
    delay: float = 0.0
    on_request: Callable[[int], None] = lambda count: None
    requests: list[Request] = field(default_factory=list)
    looks: Counter[str] = field(default_factory=Counter)
    working: int = 0
    most_working: int = 0

    def __enter__(self) -> Double:
        double = self

        class Handler(_Handler):
            server_double = double

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def paid(self) -> list[Request]:
        """The requests for pictures."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the requests for pictures, sorted."""
        return sorted(request.seed for request in self.paid)

    def encoded(self, seed: int, width: int, height: int) -> bytes:
        return (self.encode or functools.partial(picture, kind=self.kind))(seed, width, height)


class _Handler(BaseHTTPRequestHandler):
    server_double: Double
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has hung up
            pass

    def do_POST(self) -> None:
        double = self.server_double
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        request = Request("POST", self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        with double._lock:
            double.requests.append(request)
            double.working += 1
            double.most_working = max(double.most_working, double.working)
        try:
            double.on_request(len(double.paid))
            time.sleep(double.delay)
            if not self._faulty("request"):
                self._draw(request)
        finally:
            with double._lock:
                double.working -= 1

    def do_GET(self) -> None:
        double, path = self.server_double, urlsplit(self.path)
        with double._lock:
            double.requests.append(Request("GET", self.path, {k.lower(): v for k, v in self.headers.items()}, None))
        if path.path.startswith("/api/models/"):
            return self.json({"id": REPO, "pipeline_tag": "text-to-image", "inferenceProviderMapping": MAPPING})
        if path.path.startswith("/files/"):
            seed, width, height = map(int, path.path.split("/")[2].split(".")[0].split("-"))
            if not self._faulty("picture"):
                self.data(double.encoded(seed, width, height), f"image/{double.kind.lower()}")
            return None
        id = (parse_qs(path.query).get("id") or [path.path.rsplit("/", 1)[-1]])[0]
        if not re.fullmatch(r"\d+-\d+-\d+", id):  # huggingface_hub reads a list of agents for its headers, too
            return self.json({"error": "there is no such page"}, 404)
        if not self._faulty("state"):
            return self._state(id)
        return None

    def _faulty(self, stage: str) -> bool:
        faults = self.server_double.faults[stage]
        return bool(faults) and faults.pop(0)(self)

    # -------------------------------------------------------------------------------------------------------- responses
    def _draw(self, request: Request) -> None:
        double, body = self.server_double, request.body
        provider = self.path.split("/")[1]
        seed = request.seed
        if provider == "fal-ai":
            width, height = body["image_size"]["width"], body["image_size"]["height"]
            image = {"url": self._link(seed, width, height), "width": width, "height": height}
            self.json(double.change({"images": [image], "timings": {"inference": 0.2}, "seed": seed,
                                     "has_nsfw_concepts": [False], "prompt": body["prompt"]}))  # fmt: skip
        elif provider == "replicate":
            given = body["input"]
            size = RATIOS[given["aspect_ratio"], given["megapixels"]]
            self._state(f"{seed}-{size[0]}-{size[1]}", status=201)
        elif provider == "together":
            encoded = base64.b64encode(double.encoded(seed, body["width"], body["height"])).decode()
            self.json(double.change({"id": "x", "object": "list", "data": [{"index": 0, "b64_json": encoded}]}))
        elif provider == "hf-inference":
            given = body["parameters"]
            self.data(double.encoded(seed, given["width"], given["height"]), f"image/{double.kind.lower()}")
        else:
            id = f"{seed}-{body['width']}-{body['height']}"
            self.json(double.change({"id": id, "polling_url": f"{double.url}/v1/get_result?id={id}", "cost": 1.0}))

    def _state(self, id: str, status: int = 200) -> None:
        double = self.server_double
        with double._lock:
            double.looks[id] += 1
            ready = double.looks[id] > double.late
        link = self._link(*map(int, id.split("-")))
        if self.path.startswith("/replicate"):
            response = {"id": id, "status": "succeeded" if ready else "processing", "output": [link] if ready else None,
                      "error": None, "metrics": {"predict_time": 0.3},
                      "urls": {"get": f"https://api.replicate.com/v1/predictions/{id}"}}  # fmt: skip
        else:
            response = {"id": id, "status": "Ready" if ready else "Pending",
                      "result": {"sample": link, "seed": int(id.split("-")[0])} if ready else None}  # fmt: skip
        self.json(double.change(response), status)

    def _link(self, seed: int, width: int, height: int) -> str:
        return f"{self.server_double.url}/files/{seed}-{width}-{height}.png?signature=s1gned"

    def json(self, value: Any, status: int = 200) -> None:
        self.data(json.dumps(value).encode(), "application/json", status)

    def data(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.begin(len(body), kind, status, **headers)
        self.wfile.write(body)

    def begin(self, length: int, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


# --------------------------------------------------------------------------------------------------------------- faults
def silence(handler: _Handler) -> bool:
    """Nothing is answered before the client hangs up."""
    handler.connection.settimeout(3)
    handler.connection.recv(1)
    handler.close_connection = True
    return True


def truncated(handler: _Handler) -> bool:
    """The connection ends in the middle of the body."""
    handler.begin(10_000, "image/png")
    handler.wfile.write(picture(1, 64, 64)[:500])
    handler.close_connection = True
    return True


def html(handler: _Handler) -> bool:
    """A page in place of the response."""
    handler.data(b"<!doctype html><title>Welcome</title>" + b"x" * 500, "text/html")
    return True


def giant(handler: _Handler) -> bool:
    """A body without an end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.send_header("Connection", "close")
    handler.end_headers()
    for _ in range(10_000):
        handler.wfile.write(bytes(2**16))
    return True


def html_error(handler: _Handler) -> bool:
    """An error with a page of a proxy as its body."""
    handler.data(b"<html><h1>400 Bad Request</h1></html>", "text/html", 400)
    return True


def redirect(handler: _Handler, target: str = "http://127.0.0.1:9/elsewhere") -> bool:
    """A redirect to another host."""
    handler.data(b"", "text/plain", 307, Location=target)
    return True


def refusal(handler: _Handler) -> bool:
    """The content filter refuses the prompt."""
    detail = [{"loc": ["body", "prompt"], "msg": "flagged by a content checker", "type": "content_policy_violation"}]
    handler.json({"detail": detail}, 422)
    return True


def drip(handler: _Handler) -> bool:
    """One byte every few milliseconds, headers included."""
    text = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
    for byte in text + bytes(10_000):
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.005)
    return True


FAULTS: dict[str, Fault] = {
    "silence": silence,
    "truncated": truncated,
    "html": html,
    "giant": giant,
    "html error": html_error,
    "redirect": redirect,
    "refusal": refusal,
    "drip": drip,
}


def status(code: int, body: Any = None, **headers: str) -> Fault:
    """An error with a JSON body."""

    def response(handler: _Handler) -> bool:
        handler.data(json.dumps(body if body is not None else {"error": "no"}).encode(), "application/json", code,
                     **headers)  # fmt: skip
        return True

    return response
