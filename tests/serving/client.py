"""One OpenAI completion over HTTP: its tokens and times, or why there are none."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import attrs

PATIENCE = 120.0


@attrs.frozen
class Prompt:
    """What is asked: greedy, and never ended by the model itself."""

    tokens: tuple[int, ...]
    max_tokens: int = 16

    def body(self, **more: Any) -> dict[str, Any]:
        """The request as both engines take it."""
        return {
            "model": "m",
            "prompt": list(self.tokens),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **more,
        }


@attrs.frozen
class Answer:
    """What came back. ``error`` is None exactly if all tokens came."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    first: float | None = None
    """Seconds to the first token, if it was streamed."""
    seconds: float = 0.0
    status: int = 0
    """Of HTTP; 0: no answer came at all."""
    error: str | None = None
    transfer: dict[str, Any] | None = None
    """kv_transfer_params, as vLLM's prefill side returns them."""

    @property
    def timed_out(self) -> bool:
        return self.error is not None and self.error.startswith("no answer within")


class _Reading:
    """What has been read of one answer, streamed or whole."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.tokens: list[int] = []
        self.text = ""
        self.first: float | None = None
        self.error: str | None = None
        self.transfer: dict[str, Any] | None = None

    def take(self, document: Any) -> None:
        if not isinstance(document, dict):
            self.error = f"not an answer: {document!r}"
            return
        if document.get("error") or document.get("object") == "error":
            self.error = json.dumps(document)
            return
        self.transfer = document.get("kv_transfer_params") or self.transfer
        for choice in document.get("choices") or ():
            if choice.get("finish_reason") in ("error", "abort"):
                self.error = json.dumps(choice)
            new = choice.get("token_ids") or []
            if new and self.first is None:
                self.first = time.monotonic() - self.start
            self.tokens += new
            self.text += choice.get("text") or ""

    def over(self, status: int, wanted: int) -> Answer:
        error = self.error
        if error is None and len(self.tokens) != wanted:
            error = f"{len(self.tokens)} of {wanted} tokens came"
        seconds = time.monotonic() - self.start
        return Answer(tuple(self.tokens), self.text, self.first, seconds, status, error, self.transfer)


def _lines(
    link: http.client.HTTPConnection, reply: http.client.HTTPResponse, until: float
) -> Iterable[bytes]:
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if link.sock is not None:
            link.sock.settimeout(left)
        line = reply.readline()
        if not line:
            return
        yield line


def _read(
    link: http.client.HTTPConnection, reply: http.client.HTTPResponse, reading: _Reading, until: float
) -> None:
    if reply.status != http.HTTPStatus.OK:
        reading.error = reply.read().decode(errors="replace")[:4000]
    elif "event-stream" in (reply.getheader("Content-Type") or ""):
        for line in _lines(link, reply, until):
            content = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and content != b"[DONE]":
                reading.take(json.loads(content))
    else:
        reading.take(json.loads(reply.read()))
        reading.first = None


def ask(url: str, prompt: Prompt, *, stream: bool = True, timeout: float = PATIENCE, **more: Any) -> Answer:
    """Ask a server or a router for one completion; ``more`` joins the body. The network raises nothing."""
    place = urlsplit(url)
    reading = _Reading(time.monotonic())
    until = reading.start + timeout
    link = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=timeout)
    status = 0
    body = json.dumps(prompt.body(stream=stream, **more))
    try:
        link.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        reply = link.getresponse()
        status = reply.status
        _read(link, reply, reading, until)
    except TimeoutError:
        reading.error = f"no answer within {timeout:.0f} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reading.error = f"the connection failed: {error!r}"
    finally:
        link.close()
    return reading.over(status, int(more.get("max_tokens", prompt.max_tokens)))


def hang_up(url: str, prompt: Prompt, seconds: float, **more: Any) -> bytes:
    """Ask, listen for that long, and go. Returns what had come by then."""
    place = urlsplit(url)
    body = json.dumps(prompt.body(stream=True, **more)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    heard = b""
    until = time.monotonic() + seconds
    with socket.create_connection((place.hostname or "127.0.0.1", place.port or 80)) as link:
        link.sendall(head.encode() + body)
        while (left := until - time.monotonic()) > 0:
            link.settimeout(left)
            try:
                heard += link.recv(65536)
            except TimeoutError:
                break
    return heard


def get(url: str, path: str, timeout: float = 10.0) -> str:
    """The text of a page of a server, e.g. ``/metrics``; raises ``OSError``."""
    place = urlsplit(url)
    link = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=timeout)
    try:
        link.request("GET", path)
        reply = link.getresponse()
        text = reply.read().decode()
    except http.client.HTTPException as error:
        raise OSError(f"GET {url}{path}: {error!r}") from error
    finally:
        link.close()
    if reply.status != http.HTTPStatus.OK:
        raise OSError(f"GET {url}{path}: {reply.status} {text[:200]}")
    return text


def metric(page: str, name: str) -> float:
    """The sum of a metric's samples on a Prometheus page; 0.0 if it has none."""
    found = (line for line in page.splitlines() if line.partition("{")[0].partition(" ")[0] == name)
    return sum(float(line.rpartition(" ")[2]) for line in found)


def ask_all(prompts: Sequence[Prompt], one: Callable[[Prompt], Answer], in_flight: int = 8) -> list[Answer]:
    """Ask all, so many at a time; the answers in the order of the prompts."""
    with ThreadPoolExecutor(in_flight, "serving-client") as pool:
        return list(pool.map(one, prompts))


def in_waves(prompts: Sequence[Prompt], one: Callable[[Prompt], Answer], most: int = 8) -> list[Answer]:
    """Ask all in ``most`` equal parts: the first one at a time, the next two, and so on up to ``most``."""
    bounds = [len(prompts) * part // most for part in range(most + 1)]
    waves = [prompts[low:high] for low, high in itertools.pairwise(bounds)]
    return [answer for count, wave in enumerate(waves, 1) for answer in ask_all(wave, one, count)]
