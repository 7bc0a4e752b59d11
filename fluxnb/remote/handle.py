"""The Remote handle: pictures of a hosted endpoint, requested one by one."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from PIL import Image

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError, RunError, UnavailableError
from fluxnb.families.defaults import ModelDefaults
from fluxnb.io.comfyui import estimated_tokens
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.remote.client import BUSY, Client, Outcome
from fluxnb.remote.endpoints import ENDPOINTS, Endpoint, endpoint_of, parameters, resolve
from fluxnb.remote.exchange import Broken, Response, pause
from fluxnb.remote.pictures import decode, is_one_color
from fluxnb.remote.responses import PARSERS, Link, Parsed, Picture, Refused, Unclear, Wait, explanation, is_refusal

__all__ = ["FLAGS", "Drawing", "Remote", "RemoteWarning", "Withheld"]

WITHHELD, ONE_COLOR, OTHER_SEED = FLAGS = ("withheld by the filter", "one color", "drawn with another seed")
POLL = 0.5  # seconds before each request for the state of an accepted one
MOST_CONCURRENT = 32
GONE = (403, 404, 410)  # of a link that has expired
Ended = Picture | Link | Refused | Unclear  # a response after which the provider does no more
FINISHED_ONLY = "an endpoint gives the finished picture alone"


class RemoteWarning(UserWarning):
    """A picture was withheld or is unusual, a prompt is longer than the model reads, or an error ended a paid sweep."""


class Withheld(RunError):
    """The provider's content filter withheld a picture and sent none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A picture of an endpoint.

    Arguments:
        image: the picture.
        recipe: its recipe. Width and height are those of the picture, even if others were requested.
        seconds: from the request to the decoded picture.
        flagged: what is unusual about it, of `FLAGS`; "" for nothing.
    """

    image: Image.Image
    recipe: ResolvedRecipe
    seconds: float
    flagged: str = ""


class Remote:
    """A model that a hosted endpoint runs; each picture is a paid request. Also returned by `fnb.load`.

    `fnb.sweep`, `fnb.stream`, `fnb.explore` and `fnb.lab` work on it. An endpoint gives the finished picture alone, so
    that everything about steps is refused: `fnb.run`, `fnb.recording`, `keep=`, attention. Its seeds are not the seeds
    here, since the provider draws other noise.

    The token is read from the environment for each request, and is part of no recipe, file, error or repr. A picture is
    requested again only if the provider stated that it was busy (429, 503). The next call on this handle resumes what
    was accepted and could not be downloaded.

    Arguments:
        name: "schnell" at "fal-ai", "together", "replicate" or "hf-inference", "klein" at "fal-ai" or "bfl", written
            as "schnell@fal-ai"; with the provider's own name of the model as "schnell@fal-ai:fal-ai/flux/schnell".
        concurrent: requests at a time, 1 to 32.
        timeout: seconds for one request, and for the picture of an accepted one.

    Raises:
        InputError: a name of no endpoint, or a number out of range. No request is sent.

    Example:
        >>> Remote("schnell@fal-ai")
        Remote('schnell@fal-ai', fal-ai/flux/schnell)
    """

    preview: None = None  # there are no latents
    vocabulary: None = None  # nor a list of the words of its training data
    dtype = "remote"

    @entry_point(name='name="schnell@fal-ai"', concurrent="concurrent=2", timeout="timeout=120")
    def __init__(self, name: str, *, concurrent: int = 2, timeout: float = 120.0) -> None:
        endpoint = endpoint_of(name)
        if endpoint is None:
            known = ", ".join(each.name for each in ENDPOINTS)
            raise InputError(f"name={name!r}", f"the endpoints are {known}", 'try "schnell@fal-ai"')
        if not 1 <= concurrent <= MOST_CONCURRENT:
            raise InputError(f"concurrent={concurrent}", f"1 to {MOST_CONCURRENT} are possible", "try concurrent=2")
        if not 0 < timeout < float("inf"):
            raise InputError(f"timeout={timeout}", "a number of seconds above 0 is needed", "try timeout=120")
        self.endpoint: Endpoint = endpoint
        self.concurrent, self.timeout = int(concurrent), float(timeout)
        # Pictures that were paid for and that no caller has received: a sweep ended before.
        self.undelivered: dict[ResolvedRecipe, Drawing] = {}
        self._accepted: dict[ResolvedRecipe, Wait | Link] = {}
        self._slots = threading.BoundedSemaphore(self.concurrent)
        self._client = Client(endpoint, self.timeout)

    def __repr__(self) -> str:
        return f"Remote({self.model!r}, {self.revision})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UnavailableError(f"{name} of {self.model}", FINISHED_ONLY, self._remedy)

    # ------------------------------------------------------------------------------------------------------ description
    @property
    def model(self) -> str:
        """The name of model and provider, such as "schnell@fal-ai"."""
        return self.endpoint.name

    @property
    def revision(self) -> str:
        """The provider's own name of the model."""
        return self.endpoint.id

    @property
    def provider(self) -> str:
        """The provider, who draws the pictures."""
        return self.endpoint.provider

    @property
    def defaults(self) -> ModelDefaults:
        """Default size, steps and text length of the model."""
        return self.endpoint.defaults

    @property
    def versions(self) -> dict[str, str]:
        """Part of the keys of a store; no library of this machine has a part in the picture."""
        return {"drawn by": self.provider}

    def refusal(self, function: str) -> InputError:
        """The error for a function that needs a model on this machine."""
        return InputError(f"{function} of {self.model}", FINISHED_ONLY, self._remedy)

    @property
    def _remedy(self) -> str:
        return f'use fnb.sweep(remote, prompts=["a fox"]), or fnb.load("{self.endpoint.model}") here'

    def resolve(self, recipe: Recipe) -> ResolvedRecipe:
        """The recipe with the model's defaults filled in.

        Raises:
            InputError: a value that the endpoint does not honor.
        """
        return resolve(self.endpoint, recipe)

    @entry_point("recipe")
    def request_of(self, recipe: Recipe) -> dict[str, Any]:
        """The request for a recipe, as "url" and "body". It is not sent, and no token is part of it.

        Raises:
            InputError: a value that the endpoint does not honor.
            RunError: this version of huggingface_hub builds no request.

        Example:
            >>> remote = Remote("schnell@fal-ai")
            >>> remote.request_of(Recipe(prompt="a fox", seed=3))["body"]["seed"]
            3
        """
        resolved = self.resolve(recipe)
        message = self._client.preview(resolved.prompt, parameters(self.endpoint, resolved))
        if isinstance(message, Broken):
            raise RunError(f"a request of {self.model}", message.reason, "try another version of huggingface_hub")
        return {"url": message.url, "body": dict(message.body or {})}

    def length_warning(self, prompt: str) -> str:
        """A sentence for a prompt that may be longer than the model reads, "" for others. No tokenizer is loaded."""
        limit, estimate = self.defaults.max_sequence_length, estimated_tokens(prompt)
        if self.endpoint.model != "schnell" or estimate <= limit:  # the estimate is for T5
            return ""
        return (
            f"a prompt of {estimate} tokens or somewhat fewer, as estimated from its words: {self.model} reads {limit} "
            "and ignores the rest. Put what matters first, or shorten the prompt."
        )

    def require_token(self) -> None:
        """Raise InputError if there is no token; no request is sent."""
        self._client.require_token()

    # ---------------------------------------------------------------------------------------------------------- drawing
    @entry_point("recipe")
    def draw(self, recipe: Recipe, *, stopped: Callable[[], bool] = lambda: False) -> Drawing:
        """Request one picture, and wait for it. `fnb.sweep` does so for several, with a store and Ctrl-C.

        Arguments:
            recipe: what to draw.
            stopped: called while the provider is busy; returning True ends the waiting.

        Raises:
            InputError: a value that the endpoint does not honor, or no token.
            RunError: no picture; the message states whether the request may have been paid for.

        Example:
            >>> remote.draw(fnb.Recipe(prompt="a fox", seed=3)).image               # doctest: +SKIP
        """
        resolved, variable = self.resolve(recipe), self._client.require_token()
        with self._slots:
            outcome = self._drawing(resolved, variable, stopped)  # returns errors, see `exchange`
        if isinstance(outcome, FluxnbError):
            raise outcome
        return outcome

    def _drawing(self, recipe: ResolvedRecipe, variable: str, stopped: Callable[[], bool]) -> Drawing | FluxnbError:
        started = time.perf_counter()
        errors = _Errors(self.endpoint, recipe, variable)
        parsed = self._accepted.get(recipe) or self._request(recipe, errors, stopped)
        ended = self._wait(recipe, parsed, errors) if isinstance(parsed, Wait) else parsed
        loaded = self._download(recipe, ended, errors) if isinstance(ended, Link) else ended
        if isinstance(loaded, Picture):
            return self._checked(recipe, loaded, errors, started)
        if isinstance(loaded, FluxnbError):
            return loaded
        self._accepted.pop(recipe, None)
        return errors.withheld(loaded.reason) if isinstance(loaded, Refused) else errors.unclear(loaded)

    def _request(self, recipe: ResolvedRecipe, errors: _Errors, stopped: Callable[[], bool]) -> Parsed | FluxnbError:
        if stopped():
            return errors.of_request(Broken("it was stopped before", sent=False))
        outcome = self._client.request(recipe.prompt, parameters(self.endpoint, recipe), stopped)
        return self._read(outcome) or errors.of_request(outcome)

    def _read(self, outcome: Outcome) -> Parsed | None:
        """The meaning of a response, None for an error."""
        if isinstance(outcome, Broken):
            return None
        if outcome.status >= 300:
            return Refused(explanation(outcome)) if is_refusal(outcome) else None
        return PARSERS[self.provider](outcome)

    def _wait(self, recipe: ResolvedRecipe, accepted: Wait, errors: _Errors) -> Ended | FluxnbError:
        """Look an accepted request up until it has ended; it has been paid for, so nothing stops the waiting."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            self._accepted[recipe] = accepted
            pause(min(POLL, self.timeout / 4), lambda: False)
            outcome = self._client.look_up(accepted)
            parsed = self._read(outcome)
            if parsed is None:
                return self._lost(recipe, outcome, errors)
            if not isinstance(parsed, Wait):
                return parsed
            accepted = dataclasses.replace(parsed, url=parsed.url or accepted.url)
        return errors.of_accepted(Broken(f"it is not ready after {self.timeout:g} s"))

    def _download(self, recipe: ResolvedRecipe, link: Link, errors: _Errors) -> Picture | FluxnbError:
        self._accepted[recipe] = link
        outcome = self._client.download(link.url)
        if isinstance(outcome, Response) and 200 <= outcome.status < 300:
            return Picture(data=outcome.body, seed=link.seed, withheld=link.withheld)
        return self._lost(recipe, outcome, errors)

    def _lost(self, recipe: ResolvedRecipe, outcome: Outcome, errors: _Errors) -> RunError:
        """The error for an accepted request, which the next call resumes unless it has expired."""
        if isinstance(outcome, Response) and outcome.status in GONE:
            self._accepted.pop(recipe, None)
        return errors.of_accepted(outcome)

    def _checked(
        self, recipe: ResolvedRecipe, picture: Picture, errors: _Errors, started: float
    ) -> Drawing | FluxnbError:
        image = decode(picture.data)
        if isinstance(image, str) and recipe in self._accepted:  # downloaded, so that it can be downloaded again
            return errors.of_accepted(Broken(image))
        if isinstance(image, str):
            return errors.unclear(Unclear(image))
        self._accepted.pop(recipe, None)
        actual = recipe
        if image.size != (recipe.width, recipe.height):
            try:
                actual = dataclasses.replace(recipe, width=image.width, height=image.height)
            except InputError:
                return errors.unclear(Unclear(f"its picture has {image.width} x {image.height} pixels"))
        other_seed = picture.seed not in (None, recipe.seed)
        unusual = {WITHHELD: picture.withheld, ONE_COLOR: is_one_color(image), OTHER_SEED: other_seed}
        flagged = next((flag for flag, applies in unusual.items() if applies), "")
        return Drawing(image=image, recipe=actual, seconds=time.perf_counter() - started, flagged=flagged)


class _Errors:
    """The errors of one picture. They are returned, and raised where no variable holds the token."""

    def __init__(self, endpoint: Endpoint, recipe: ResolvedRecipe, variable: str) -> None:
        self._endpoint, self._variable = endpoint, variable
        self._given = f"{endpoint.name}, seed {recipe.seed}"

    def withheld(self, reason: str) -> Withheld:
        stated = f" ({reason})" if reason else ""
        return Withheld(
            self._given,
            f"the picture was withheld by the filter of {self._endpoint.provider}{stated}",
            "change the prompt or the seed",
        )

    def unclear(self, parsed: Unclear) -> RunError:
        return RunError(
            self._given,
            f"the response of {self._endpoint.provider} gives no picture: {parsed.reason}. It may have been paid for",
            f"look at your account at {self._endpoint.provider} before you call again",
        )

    def of_accepted(self, outcome: Outcome) -> RunError:
        """For a request that was accepted, whose picture did not arrive."""
        reason = outcome.reason if isinstance(outcome, Broken) else f"the response is HTTP {outcome.status}"
        again = not (isinstance(outcome, Response) and outcome.status in GONE)
        return RunError(
            self._given,
            f"{self._endpoint.provider} accepted the request, and its picture did not arrive: {reason}",
            "call again on this handle, which looks the picture up and requests no other"
            if again
            else "call again to request another one; this one has expired",
        )

    def of_request(self, outcome: Outcome) -> RunError:
        """For a request that was not accepted, or whose fate is unknown."""
        provider = self._endpoint.provider
        if isinstance(outcome, Broken):
            if not outcome.sent:
                return RunError(self._given, f"nothing was sent: {outcome.reason}", "check the network, and call again")
            return RunError(
                self._given,
                f"{outcome.reason}. The request may have been accepted and paid for, so it is not sent again",
                f"look at your account at {provider} before you call again",
            )
        possible, remedy = self._of_status(outcome)
        stated = explanation(outcome)
        return RunError(self._given, f"{possible} (HTTP {outcome.status}{f': {stated}' if stated else ''})", remedy)

    def _of_status(self, response: Response) -> tuple[str, str]:
        endpoint, provider = self._endpoint, self._endpoint.provider
        if response.status in BUSY:
            wait = "" if response.retry_after is None else f" for {response.retry_after:.0f} s"
            return f"{provider} is busy{wait}", "call again later; with a store, finished pictures are not paid again"
        if 300 <= response.status < 400:
            return f"{provider} redirects, which is not followed with a token", "check the name of the model"
        table: dict[int, tuple[str, str]] = {
            401: (f"{provider} does not accept the token in {self._variable}", f"set {self._variable} to a valid one"),
            402: (f"the account of {self._variable} has no credit", "add credit there, or use another endpoint"),
            403: (
                f"the account of {self._variable} may not use it",
                f"check its balance at {provider} and the terms of {endpoint.repo}",
            ),
            404: (
                f"{provider} has no model {endpoint.id!r}",
                f'type fnb.load("{endpoint.name}:...") with the name on the page of {endpoint.repo} on the hub',
            ),
        }
        refused = (f"{provider} refuses the request", "change what it names, or use another endpoint")
        failed = (
            f"{provider} failed, and may have accepted the request",
            f"look at your account at {provider} before you call again",
        )
        return table.get(response.status, refused if response.status < 500 else failed)
