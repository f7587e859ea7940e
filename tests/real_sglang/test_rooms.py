"""Requests of one room id that end early, come twice, or to one side alone: each costs itself."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving.fixtures import Wanted
from serving.pairs import Pair
from serving.prompts import make_prompts

over_local = pytest.mark.parametrize("running", ["local"], indirect=True)
ROOM = time.time_ns() >> 10


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    place = urlsplit(url)
    link = http.client.HTTPConnection(place.hostname or "", place.port, timeout=90)
    try:
        link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = link.getresponse()
        return reply.status, reply.read().decode()
    finally:
        link.close()


class Asked(threading.Thread):
    """One request to one side, in the background."""

    def __init__(self, running: Pair, url: str, room: int, rid: str, tokens: int = 8) -> None:
        super().__init__(name=f"asked-{rid}", daemon=True)
        self._url = url
        self._body = {
            "rid": rid,
            "input_ids": [(5 * n + 3) % 250 + 3 for n in range(200)],
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": running.prefill.bootstrap,
            "bootstrap_room": room,
        }
        self.status, self.text = 0, ""
        self.start()

    def run(self) -> None:
        self.status, self.text = post(self._url, "/generate", self._body)

    def answer(self) -> str:
        self.join(60)
        assert not self.is_alive(), f"{self.name} has no answer"
        return self.text

    @property
    def tokens(self) -> list[int]:
        said: list[int] = json.loads(self.answer()).get("output_ids", [])
        return said


def both(running: Pair, room: int, name: str, tokens: int = 8) -> tuple[Asked, Asked]:
    prefill = Asked(running, running.prefill.url, room, f"{name}-p", tokens)
    return prefill, Asked(running, running.decode.url, room, f"{name}-d", tokens)


def abort(url: str, rid: str) -> None:
    assert post(url, "/abort_request", {"rid": rid})[0] == http.HTTPStatus.OK


@over_local
def test_an_abort_on_one_side_tells_the_other_and_frees_the_room(running: Pair) -> None:
    want = both(running, ROOM, "first")[1].tokens
    assert len(want) == 8
    for n, alone in enumerate((running.decode.url, running.prefill.url), 1):
        other = running.prefill.url if alone == running.decode.url else running.decode.url
        asked = Asked(running, alone, ROOM + n, f"gone-{n}")
        time.sleep(1)  # so that it waits for the other side, which never hears of it: either way it ends
        abort(alone, f"gone-{n}")
        assert "aborted room" in asked.answer()
        late = Asked(running, other, ROOM + n, f"late-{n}")
        assert "aborted room" in late.answer()
        assert late.status == http.HTTPStatus.INTERNAL_SERVER_ERROR
        assert both(running, ROOM + n, f"again-{n}")[1].tokens == want


@over_local
def test_a_room_that_is_in_use_fails_the_second_request_with_the_reason(running: Pair) -> None:
    first = both(running, ROOM + 10, "one", 64)
    second = both(running, ROOM + 10, "two", 64)
    texts = [end.answer() for end in (*first, *second)]
    refused = [text for text in texts if f"room {ROOM + 10} is open already" in text]
    assert len(refused) == 2, texts
    assert running.prefill.alive()
    assert running.decode.alive()


@over_local
def test_aborts_at_any_moment_leave_both_servers_whole(running: Pair, wanted: Wanted) -> None:
    for n in range(24):
        ends = both(running, ROOM + 100 + n, f"any-{n}", 40)
        time.sleep(0.02 * n)
        if n % 3 != 1:
            abort(running.prefill.url, f"any-{n}-p")
        if n % 3:
            abort(running.decode.url, f"any-{n}-d")
        for end in ends:
            end.answer()
    prompts = make_prompts(8, 81, longest=300)
    got = [running.ask(prompt) for prompt in prompts]
    assert [answer.tokens for answer in got] == [answer.tokens for answer in wanted(prompts)]
