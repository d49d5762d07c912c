"""A language model behind an endpoint that speaks OpenAI's `chat/completions`."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from embodied.egocot.fields import short

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which it is asked again."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_MOST_BYTES, _MOST_SAID = 4_000_000, 4_000
_REFUSED = 400
_ROOM_TO_THINK = 8
"""Times as many tokens where a limit counts those that the model thinks with as well."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for one host: it is not carried on to where that one points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Endpoint:
    """Asks an endpoint, no faster than it allows, and again when it is busy.

    It sends `temperature` 0 and `max_tokens`. OpenAI's reasoning models refuse both with status 400
    (https://platform.openai.com/docs/api-reference/chat/create: `max_tokens` is deprecated): what a
    refusal names as unsupported is then sent no more, or as `max_completion_tokens`.

    Args:
        url: up to and without `/chat/completions`, as in `http://localhost:8000/v1`.
        model: the model's name there.
        key_env: the environment variable that holds the key; none is sent when it is not set.
        rate_per_min: requests a minute at most.
        retries: how often a failed request is sent again, after 1, 2, 4, … seconds, or as long as
            the endpoint asks for; a minute at most.
        timeout_s: for an answer.
        max_tokens: of an answer.
        clock, sleep: replaced in tests.

    Raises:
        ValueError: the URL is none, no model is named, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = "OPENAI_API_KEY",
        rate_per_min: float = 60,
        retries: int = 5,
        timeout_s: float = 120,
        max_tokens: int = 512,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--endpoint is a URL such as http://localhost:8000/v1, got '{url}'")
        if not model:
            raise ValueError("--endpoint needs --endpoint_model, the model's name there")
        if not rate_per_min > 0 or retries < 0:
            raise ValueError(
                f"--rate_per_min is above 0 and --retries at least 0, got {rate_per_min:g} and "
                f"{retries}"
            )
        self.name = model
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._key_env, self._max_tokens = key_env, max_tokens
        self._settings: dict[str, int] = {"temperature": 0, "max_tokens": max_tokens}
        self._pause_s, self._retries, self._timeout_s = 60 / rate_per_min, retries, timeout_s
        self._clock, self._sleep = clock, sleep
        self._next_at = -float("inf")
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, prompt: str) -> str:
        """The model's answer.

        Raises:
            ValueError: the endpoint refuses the request.
            OSError: it does not answer, however often it is asked.
        """
        wait_s, reason = _FIRST_WAIT_S, ""
        for attempt in range(self._retries + 1):
            if attempt:
                self._sleep(wait_s)
            try:
                return self._ask(prompt)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"status {error.code}"
                    if error.code not in RETRIED:
                        raise self._refusal(error.code, _text(error)) from None
                    asked_s = _seconds(error.headers.get("Retry-After"))
            except (HTTPException, OSError, _BadAnswer) as error:
                reason, asked_s = str(error) or type(error).__name__, None
            backed_off_s = _FIRST_WAIT_S * 2**attempt
            wait_s = min(_LONGEST_WAIT_S, backed_off_s if asked_s is None else asked_s)
        raise OSError(
            f"{self._url} did not answer {self._retries + 1} times ({reason}): the answers so far "
            "are kept, run the same command again"
        )

    def _keep_pace(self) -> None:
        wait_s = self._next_at - self._clock()
        if wait_s > 0:
            self._sleep(wait_s)
        self._next_at = max(self._next_at, self._clock()) + self._pause_s

    def _ask(self, prompt: str) -> str:
        """Ask, and again at once without a setting that the model turns out not to support."""
        while True:
            self._keep_pace()
            try:
                return self._send(prompt)
            except urllib.error.HTTPError as error:
                if error.code != _REFUSED:
                    raise
                with error:
                    said = _text(error)
            if not self._give_in(said):
                raise self._refusal(_REFUSED, said)

    def _give_in(self, said: str) -> bool:
        """Change the setting that a refusal says is not supported; False if it names none."""
        named = [n for n in self._settings if f"'{n}'" in said or f'"{n}"' in said]
        if not named or "support" not in said.lower():
            return False
        instead = ""
        del self._settings[named[0]]
        if named[0] == "max_tokens":
            instead = "max_completion_tokens"
            self._settings[instead] = _ROOM_TO_THINK * self._max_tokens
        told = f"sends {instead} instead" if instead else "goes on without it"
        print(f"{self.name} does not support {named[0]}: {told}", file=sys.stderr)
        return True

    def _send(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.name, "messages": messages, **self._settings}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self._timeout_s) as response:
            return _content(response.read(_MOST_BYTES))

    def _refusal(self, status: int, said: str) -> ValueError:
        hint = f"; the key is read from ${self._key_env}" if status in (401, 403) else ""
        return ValueError(f"{self._url} refused with status {status} ({short.repr(said)}){hint}")


class _BadAnswer(Exception):
    """What came is no completion."""


def _text(error: urllib.error.HTTPError) -> str:
    return error.read(_MOST_SAID).decode("utf-8", "replace")


def _content(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        got = short.repr(body.decode("utf-8", "replace"))
        raise _BadAnswer(f"the answer is no chat completion: {got}") from None
    return content if isinstance(content, str) else ""


def _seconds(header: str | None) -> float | None:
    """Of a `Retry-After`; None when it is missing or a date."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None
