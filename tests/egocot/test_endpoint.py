"""The endpoint's client, against a server on this machine that misbehaves as real ones do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from embodied.egocot.build.endpoint import Endpoint

Reply = tuple[int, dict[str, str], bytes]


def said(content: Any) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"content": content}}]}).encode()


class Server:
    """Gives its replies one after the other, the last one for ever; keeps what it was sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: list[Reply] = [said("yes")]
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TEST_KEY", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.requests.append((self.path, dict(self.headers), json.loads(body)))
            status, headers, content = made.replies[min(len(made.requests), len(made.replies)) - 1]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield made
    http.shutdown()
    http.server_close()
    thread.join()


class Clock:
    """Time that passes only while someone sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []  # type: ignore[var-annotated]

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.now += seconds


def client(server: Server, clock: Clock, **changes: Any) -> Endpoint:
    settings = {"key_env": "TEST_KEY", "rate_per_min": 1e9, "retries": 3, **changes}
    return Endpoint(server.url, "llm-9", clock=clock, sleep=clock.sleep, **settings)


def test_what_is_sent_and_what_comes_back(server: Server, monkeypatch: Any) -> None:
    ask = client(server, Clock())
    assert ask("打开?") == "yes" and ask.name == "llm-9"
    monkeypatch.setenv("TEST_KEY", "secret")
    ask("again")
    (path, headers, body), (_, with_key, _) = server.requests
    assert path == "/v1/chat/completions" and body["model"] == "llm-9"
    assert body["messages"] == [{"role": "user", "content": "打开?"}] and body["temperature"] == 0
    assert "Authorization" not in headers and with_key["Authorization"] == "Bearer secret"


def test_a_busy_endpoint_is_asked_again_later_and_later(server: Server) -> None:
    busy: Reply = (503, {}, b"")
    server.replies = [busy, (429, {"Retry-After": "7"}, b""), (200, {}, b"<html>"), said("at last")]
    clock = Clock()
    assert client(server, clock)("?") == "at last"
    assert clock.slept == [1, 7, 4]


def test_an_endpoint_that_never_answers_is_given_up(server: Server) -> None:
    server.replies = [(500, {}, b"")]
    clock = Clock()
    with pytest.raises(OSError, match=r"did not answer 4 times \(status 500\): .* kept, run"):
        client(server, clock)("?")
    assert clock.slept == [1, 2, 4] and len(server.requests) == 4
    server.replies = [(200, {}, b'{"choices": []}')]
    with pytest.raises(OSError, match=r"the answer is no chat completion: '\{\"choices\": \[\]\}'"):
        client(server, clock, retries=0)("?")
    with pytest.raises(OSError, match="refused"):
        Endpoint("http://127.0.0.1:9/v1", "x", retries=0, sleep=clock.sleep)("?")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"refused with status 401 \('no key'\); the key is read from \$TEST_KEY"),
        (404, r"refused with status 404 \('no key'\)$"),
        (302, r"refused with status 302"),
    ],
)
def test_a_refusal_ends_it_at_once(server: Server, status: int, message: str) -> None:
    server.replies = [(status, {"Location": "http://127.0.0.1:9/"}, b"no key")]
    clock = Clock()
    with pytest.raises(ValueError, match=message):
        client(server, clock)("?")
    assert len(server.requests) == 1 and not clock.slept


def unsupported(name: str, message: str) -> Reply:
    """As OpenAI's reasoning models refuse a setting."""
    kind = {"type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}
    return 400, {}, json.dumps({"error": {"message": message, **kind}}).encode()


NO_TEMPERATURE = unsupported(
    "temperature",
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1)"
    " value is supported.",
)
NO_MAX_TOKENS = unsupported(
    "max_tokens",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
    " 'max_completion_tokens' instead.",
)


def test_settings_that_a_model_does_not_support_are_sent_no_more(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.replies = [NO_MAX_TOKENS, NO_TEMPERATURE, said("yes")]
    clock = Clock()
    ask = client(server, clock, retries=0, max_tokens=100)
    assert ask("?") == "yes" and ask("and?") == "yes"
    sent = [
        {k: v for k, v in body.items() if k not in ("model", "messages")}
        for _, _, body in server.requests
    ]
    more = {"max_completion_tokens": 800}  # room for what is thought and not said
    assert sent == [{"temperature": 0, "max_tokens": 100}, {"temperature": 0} | more, more, more]
    assert not any(clock.slept)
    assert capsys.readouterr().err.splitlines() == [
        "llm-9 does not support max_tokens: sends max_completion_tokens instead",
        "llm-9 does not support temperature: goes on without it",
    ]


def test_asking_without_them_keeps_the_pace(server: Server) -> None:
    server.replies = [NO_TEMPERATURE, said("yes")]
    clock = Clock()
    assert client(server, clock, rate_per_min=30)("?") == "yes" and clock.slept == [2]


def test_a_model_that_supports_nothing_is_given_up(server: Server) -> None:
    no_limit = unsupported("max_completion_tokens", "Unsupported parameter")
    server.replies = [NO_MAX_TOKENS, no_limit, NO_TEMPERATURE, NO_TEMPERATURE]
    with pytest.raises(ValueError, match="refused with status 400"):
        client(server, Clock())("?")
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "message", ["'messages' is not supported", "'max_tokens' is too large: 512", "no such model"]
)
def test_a_400_about_anything_else_ends_it(server: Server, message: str) -> None:
    server.replies = [(400, {}, message.encode())]
    with pytest.raises(ValueError, match="refused with status 400"):
        client(server, Clock())("?")
    assert len(server.requests) == 1


def test_no_more_requests_a_minute_than_allowed(server: Server) -> None:
    clock = Clock()
    ask = client(server, clock, rate_per_min=30)
    for _ in range(3):
        ask("?")
    assert clock.slept == [2, 2]
    clock.now += 100
    ask("?")  # time that has passed is not saved up, and not waited for
    ask("?")
    assert clock.slept == [2, 2, 2]


def test_an_answer_without_words_is_empty(server: Server) -> None:
    server.replies = [said(None)]
    assert client(server, Clock())("?") == ""


@pytest.mark.parametrize(
    ("url", "model", "changes", "message"),
    [
        ("file:///etc/passwd", "m", {}, "--endpoint is a URL such as"),
        ("http://x", "", {}, "needs --endpoint_model"),
        ("http://x", "m", {"rate_per_min": 0}, "--rate_per_min is above 0"),
        ("http://x", "m", {"retries": -1}, "--retries at least 0"),
    ],
)
def test_settings_that_are_wrong(url: str, model: str, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Endpoint(url, model, **changes)
