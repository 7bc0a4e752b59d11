"""The requests of one endpoint: sending, retries, and which hosts receive the token.

A request for a picture is sent again after 429 and 503 alone, with which a provider states that it accepted nothing.
Reading the state of an accepted request and downloading its picture cost nothing and are repeated after a failed
connection too. The token goes to the endpoint's own host, and no redirect is followed with it. A picture is downloaded
without the token.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from fluxnb.errors import InputError
from fluxnb.remote.compat import hub_message
from fluxnb.remote.endpoints import HUB_VARIABLE, Endpoint
from fluxnb.remote.exchange import Broken, Message, Response, exchange, hub_session, own_session, pause
from fluxnb.remote.pictures import LARGEST_FILE
from fluxnb.remote.responses import Wait

__all__ = ["Client"]

BFL = "https://api.bfl.ai"
PAUSES = (1.0, 2.0, 4.0)  # seconds before each further attempt where the provider states none
LONGEST_PAUSE = 60.0  # seconds; a provider that requests more is not waited for
BUSY = (429, 503)
REDIRECTS = 3
OWN_NETWORK = (".local", ".internal", ".localhost")
LARGEST_RESPONSE = LARGEST_FILE * 4 // 3 + 2**16  # a picture in base64, and what surrounds it

Outcome = Response | Broken


class Client:
    """Sends requests to an endpoint.

    Arguments:
        endpoint: receives them.
        seconds: for one exchange.
    """

    def __init__(self, endpoint: Endpoint, seconds: float) -> None:
        self._endpoint, self._seconds = endpoint, seconds

    def require_token(self) -> str:
        """The environment variable of the token.

        Raises:
            InputError: there is no token, or one that a request cannot hold.
        """
        variable, usable = self._checked_token()
        if not variable:
            possible = " or ".join(self._endpoint.variables)
            raise InputError(
                f"{self._endpoint.name} without a token",
                f"it is read from {possible}",
                f'type os.environ["{self._endpoint.variables[0]}"] = "..." with a token of {self._endpoint.provider}',
            )
        if not usable:
            raise InputError(f"the token in {variable}", "it has characters that no token has", "copy it again")
        return variable

    def preview(self, prompt: str, parameters: Mapping[str, Any]) -> Message | Broken:
        """The request for a picture with a placeholder for its token, which is not read."""
        variable, _ = self._endpoint.token_in_use()
        return self._message(prompt, parameters, token="hf_placeholder" if variable == HUB_VARIABLE else "placeholder")

    def request(self, prompt: str, parameters: Mapping[str, Any], stopped: Callable[[], bool]) -> Outcome:
        """Request a picture. What was or may have been accepted is not sent again."""
        message = self._message(prompt, parameters)
        if isinstance(message, Broken):
            return message
        return _repeated(lambda: self._send(message), _is_busy, stopped)

    def look_up(self, accepted: Wait) -> Outcome:
        """Read the state of an accepted request."""
        sent = self._message("-", {})
        if isinstance(sent, Broken):
            return sent
        url = accepted.url or f"{sent.url.partition('/v1/')[0]}/v1/predictions/{accepted.id}"
        if not _receives_token(url, urlsplit(sent.url)):
            return Broken("the address of its state belongs to another host, which must not receive the token")
        headers = {name: value for name, value in sent.headers.items() if name not in ("content-type", "prefer")}
        return _repeated(lambda: self._send(Message(url=url, headers=headers)), _is_busy_or_broken)

    def download(self, url: str) -> Outcome:
        """Download a picture, without the token."""
        sent = self._message("-", {})
        if isinstance(sent, Broken):
            return sent
        return _repeated(lambda: self._follow(url, urlsplit(sent.url)), _is_busy_or_broken)

    # --------------------------------------------------------------------------------------------------------- messages
    def _token(self) -> tuple[str, str]:
        """The name of the variable and the token, both empty if there is none."""
        endpoint = self._endpoint
        if endpoint.variable != HUB_VARIABLE and (token := os.environ.get(endpoint.variable, "").strip()):
            return endpoint.variable, token
        if not endpoint.routed:
            return "", ""
        from huggingface_hub import get_token

        token = (get_token() or "").strip()
        return (HUB_VARIABLE, token) if token else ("", "")

    def _checked_token(self) -> tuple[str, bool]:
        """The name of the variable, and whether the token is one that a header can hold."""
        variable, token = self._token()
        return variable, re.fullmatch(r"[!-~]{1,4096}", token) is not None

    def _message(self, prompt: str, parameters: Mapping[str, Any], *, token: str = "") -> Message | Broken:
        """A request with the given token, or else with that of the environment."""
        token = token or self._token()[1]
        endpoint = self._endpoint
        if endpoint.provider != "bfl":
            try:
                return hub_message(endpoint, prompt, parameters, token)
            except Exception as problem:  # its traceback would hold the token
                return Broken(f"this version of huggingface_hub builds no request ({type(problem).__name__})", False)
        headers = {"x-key": token, "accept": "application/json"}
        return Message(url=f"{BFL}/v1/{endpoint.id}", body={"prompt": prompt, **parameters}, headers=headers)

    # ---------------------------------------------------------------------------------------------------------- sending
    def _send(self, message: Message) -> Outcome:
        session = own_session() if "x-key" in message.headers else hub_session()
        return exchange(session, message, limit=LARGEST_RESPONSE, seconds=self._seconds)

    def _follow(self, url: str, own: SplitResult) -> Outcome:
        for _ in range(REDIRECTS + 1):
            if not _may_be_downloaded(url, own):
                return Broken("the link to its picture leads to an address that is not downloaded from")
            outcome = exchange(hub_session(), Message(url=url), limit=LARGEST_FILE, seconds=self._seconds)
            if isinstance(outcome, Broken) or not 300 <= outcome.status < 400:
                return outcome
            try:
                url = urljoin(url, outcome.location)
            except ValueError:
                url = ""
        return Broken(f"the link to its picture is redirected more than {REDIRECTS} times")


# -------------------------------------------------------------------------------------------------------------- retries
def _repeated(
    send: Callable[[], Outcome], again: Callable[[Outcome], bool], stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """The outcome of an exchange, repeated while `again` holds, with the pauses that the provider states or PAUSES."""
    outcome = send()
    for wait in PAUSES:
        if not again(outcome):
            break
        stated = outcome.retry_after if isinstance(outcome, Response) else None
        wait = wait if stated is None else stated
        if wait > LONGEST_PAUSE or not pause(wait, stopped):
            break
        outcome = send()
    return outcome


def _is_busy(outcome: Outcome) -> bool:
    return isinstance(outcome, Response) and outcome.status in BUSY


def _is_busy_or_broken(outcome: Outcome) -> bool:
    """Whether to repeat an exchange that costs nothing."""
    return isinstance(outcome, Broken) or _is_busy(outcome)


# ---------------------------------------------------------------------------------------------------------------- hosts
def _parts(url: str) -> SplitResult:
    """The parts of an address of a response, all empty if it is invalid."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _receives_token(url: str, own: SplitResult) -> bool:
    """Whether a host is the endpoint's own, or for bfl one of its regions."""
    target = _parts(url)
    if (target.scheme, target.netloc) == (own.scheme, own.netloc):
        return True
    region = re.fullmatch(r"[a-z0-9.-]+\.bfl\.ai", target.hostname or "") is not None
    return region and target.scheme == "https" and own.hostname == "api.bfl.ai" and "@" not in target.netloc


def _may_be_downloaded(url: str, own: SplitResult) -> bool:
    """Whether a link is encrypted and leads into the internet, or to the endpoint's own host."""
    target = _parts(url)
    if (target.scheme, target.netloc) == (own.scheme, own.netloc):
        return True
    name = (target.hostname or "").removesuffix(".")
    if target.scheme != "https" or "@" in target.netloc or "." not in name or name.endswith(OWN_NETWORK):
        return False
    try:
        return ipaddress.ip_address(name).is_global
    except ValueError:
        # Resolvers also read names that end with a number as addresses, such as 127.1.
        return re.search(r"\.(\d+|0x[0-9a-f]*)\Z", name) is None
