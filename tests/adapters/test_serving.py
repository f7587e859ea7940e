"""What the tests of the real engines stand on: prompts, comparison, processes, router and client."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from serving import sessions
from serving.client import Answer, Prompt, ask, ask_all, hang_up, in_waves, metric
from serving.compare import compare, table
from serving.compare_own import Turn, summary
from serving.engines import Command, Engine, Role, sglang_pdcore, vllm_pdcore
from serving.lives import Life
from serving.nursery import Nursery
from serving.ports import free_port
from serving.prompts import make_prompts
from serving.router import Prefill, Router, Running
from serving.servers import Server, ServerError
from serving.tally import Clients, Tally


def test_prompts_are_the_same_for_a_seed_and_spread_like_the_trace() -> None:
    prompts = make_prompts(400, 7, longest=1500, most_tokens=32, shared=64)
    assert prompts == make_prompts(400, 7, longest=1500, most_tokens=32, shared=64)
    assert prompts != make_prompts(400, 8, longest=1500, most_tokens=32, shared=64)
    lengths = sorted(len(p.tokens) for p in prompts[::2])
    assert 1 <= lengths[0] < 20 < lengths[100] < 150 < lengths[-1] <= 1500
    assert {p.tokens[:64] for p in prompts[1::2]} == {prompts[1].tokens[:64]}
    assert all(2 <= p.max_tokens <= 32 and set(p.tokens) <= set(range(3, 256)) for p in prompts)


def test_a_comparison_counts_equal_different_and_failed_apart() -> None:
    prompts = [Prompt((5,) * n) for n in (1, 2, 3, 4)]
    wanted = [Answer((1, 2, 3))] * 4
    got = [
        Answer((1, 2, 3)),
        Answer((1, 9, 3)),
        Answer((1, 2)),
        Answer(error="room 0x12ab34cd: page 77 lost"),
    ]
    found = compare(prompts, wanted, got)
    assert (found.count, found.equal) == (4, 1)
    assert [(d.index, d.at) for d in found.different] == [(1, 1), (2, 2)]
    assert found.reasons == {"room #: page # lost": 1}
    assert "differs from token 1 on: wanted [1, 2, 3], got [1, 9, 3]" in str(found)
    with pytest.raises(ValueError, match="nothing to compare prompt 0 with: no"):
        compare(prompts[:1], [Answer(error="no")], got[:1])


def test_a_table_has_plain_columns() -> None:
    assert table([["a", 1.25], ["long", 10]], ["name", "n"]).splitlines() == [
        "name    n",
        "a     1.2",
        "long   10",
    ]


def test_a_metric_is_summed_over_its_labels() -> None:
    page = '# HELP x\nx{a="1"} 2.0\nx{a="2"} 3\nx_total 9\nx 1\n'
    assert (metric(page, "x"), metric(page, "y")) == (6.0, 0.0)


def test_commands_name_model_role_and_backend() -> None:
    prefill = vllm_pdcore(
        Role.PREFILL, "nixl_tcp", "--block-size", "64", options={"verify": "all"}, environment={"X": "1"}
    )
    config = json.loads(prefill.arguments[prefill.arguments.index("--kv-transfer-config") + 1])
    assert config["kv_role"] == "kv_producer"
    assert config["kv_connector_extra_config"] == {
        "backend": "nixl_tcp",
        "bootstrap_port": prefill.bootstrap,
        "verify": "all",
    }
    assert prefill.arguments.count("--block-size") == 1
    assert prefill.environment["X"] == "1"
    decode = sglang_pdcore(Role.DECODE, "local")
    assert decode.bootstrap is None
    assert "pdcore_local" in decode.arguments


def test_a_session_is_killed_with_its_grandchildren() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print(1, flush=True)"
    code += "; input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        held = sessions.usage(child.pid)
        assert held.processes == 2
        assert held.rss > 1 << 20
        assert held.threads >= 2
        sessions.kill(child.pid)
        child.wait()
        assert sessions.gone(child.pid, 10)


def test_a_process_whose_first_thread_ended_belongs_to_its_session_until_the_last_one_has() -> None:
    code = (
        "import ctypes, threading\n"
        "threading.Thread(target=lambda: (print(flush=True), input())).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit, of this thread alone
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert not sessions.gone(child.pid, 0.3)
        sessions.kill(child.pid)
        child.wait()
        assert sessions.gone(child.pid, 10)


def test_a_server_that_ends_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PDCORE_VENV_VLLM", str(tmp_path))
    command = Command(
        Engine.VLLM, Role.SINGLE, ("-c", "print('no such model'); raise SystemExit(3)"), {}, free_port()
    )
    with Server("single", command, tmp_path) as server, pytest.raises(ServerError, match="no such model"):
        server.ready()


def test_a_fork_is_what_its_command_says_and_its_end_is_seen(tmp_path: Path) -> None:
    (tmp_path / "asked.py").write_text("import os, sys; print(sys.argv[1:], os.environ, os.getsid(0))")
    environment = {"PYTHONPATH": str(tmp_path), "OF": "all"}
    command = Command(Engine.VLLM, Role.SINGLE, ("-W", "ignore", "-m", "asked", "--port", "1"), {}, 1)
    with Nursery(Path(sys.executable), ("json",), environment, tmp_path / "nursery.log") as nursery:
        first, second = (nursery.launch(command, {"OF": n}, tmp_path / f"{n}.log") for n in ("one", "two"))
        assert (first.wait(60), second.wait(60)) == (0, 0)
        assert first.poll() == 0
        first.terminate()
    log = (tmp_path / "one.log").read_text()
    assert log == f"['--port', '1'] environ({{'OF': 'one'}}) {first.pid}\n"


PARENT = """
import multiprocessing, os, signal, sys, time
said = "of the server"
def child(end):
    print(said, os.environ["OF"], os.getsid(0), flush=True)
    if end: os.kill(os.getppid(), signal.SIGQUIT)
    time.sleep(60)
if __name__ == "__main__":
    signal.signal(signal.SIGQUIT, lambda *_: os._exit(0))
    said, os.environ["OF"] = "too late", "the server's"
    multiprocessing.set_start_method("spawn", force=True)
    multiprocessing.Process(target=child, args=[True]).start()
    time.sleep(60)
"""


def test_what_a_server_of_a_nursery_spawns_is_forked_from_what_was_before_it(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    command = Command(Engine.VLLM, Role.SINGLE, ("-m", "parent"), {}, 1)
    log = tmp_path / "parent.log"
    with Nursery(Path(sys.executable), (), {"PYTHONPATH": str(tmp_path)}, tmp_path / "n.log") as nursery:
        server = nursery.launch(command, {"OF": "nobody"}, log)
        assert server.wait(60) == 0, log.read_text()
    assert log.read_text() == f"of the server the server's {server.pid}\n"
    sessions.kill(server.pid)
    assert sessions.gone(server.pid, 30.0)


class Doubles:
    """HTTP servers in one thread: they answer as the engines do, and tell what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.left = threading.Event()
        self.prefill, self.decode, self.broken = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="doubles")

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        runners = []
        for url, handler in (
            (self.prefill, self._first),
            (self.decode, self._rest),
            (self.broken, self._never),
        ):
            application = web.Application()
            application.router.add_post("/v1/completions", handler)
            runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", int(url.rpartition(":")[2])).start()
        self._up.set()
        await self._over.wait()
        for runner in runners:
            await runner.cleanup()

    def __enter__(self) -> Doubles:
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _first(self, request: web.Request) -> web.Response:
        self.asked.append(("prefill", await request.json()))
        return web.json_response({"choices": [{"token_ids": [4]}], "kv_transfer_params": {"room": 5}})

    async def _rest(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(("decode", body))
        choice = {"token_ids": [4, 5], "text": "ab"}
        if not body["stream"]:
            return web.json_response({"choices": [choice]})
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        if body["prompt"] == [7]:
            await asyncio.sleep(60)
        for document in (
            {"choices": [{"token_ids": [4], "text": "a"}]},
            {"choices": [{"token_ids": [5], "text": "b"}]},
        ):
            await out.write(b"data: " + json.dumps(document).encode() + b"\n\n")
        if body["prompt"] == [666]:
            try:
                await asyncio.sleep(60)
            finally:
                self.left.set()
        if body["prompt"] == [99]:
            assert request.transport is not None
            request.transport.abort()
        if body["prompt"] == [13]:
            await out.write(b'data: {"error": {"message": "the room failed"}}\n\n')
        await out.write(b"data: [DONE]\n\n")
        return out

    async def _never(self, request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"object": "error", "message": "out of pages"}, status=500)


@pytest.fixture(scope="module")
def doubles() -> Iterator[Doubles]:
    with Doubles() as running:
        yield running


@pytest.fixture(scope="module")
def vllm_router(doubles: Doubles) -> Iterator[str]:
    with Running(Router(Engine.VLLM, [Prefill(doubles.prefill)], [doubles.decode])) as url:
        yield url


def test_vllm_is_asked_one_after_the_other(doubles: Doubles, vllm_router: str) -> None:
    doubles.asked.clear()
    answer = ask(vllm_router, Prompt((9, 9), 2))
    assert (answer.tokens, answer.text, answer.error) == ((4, 5), "ab", None)
    assert answer.first is not None
    (first, prefilled), (second, decoded) = doubles.asked
    assert (first, second) == ("prefill", "decode")
    assert (prefilled["max_tokens"], prefilled["stream"]) == (1, False)
    assert prefilled["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}
    assert (decoded["max_tokens"], decoded["kv_transfer_params"]) == (2, {"room": 5})


def test_sglang_is_asked_on_both_sides_with_one_room(doubles: Doubles) -> None:
    doubles.asked.clear()
    with Running(Router(Engine.SGLANG, [Prefill(doubles.prefill, 8998)], [doubles.decode])) as url:
        answer = ask(url, Prompt((9,), 2), stream=False)
    assert (answer.tokens, answer.first) == ((4, 5), None)
    sides = dict(doubles.asked)
    assert sides["decode"]["bootstrap_port"] == 8998
    assert sides["decode"]["bootstrap_room"] == sides.get("prefill", sides["decode"])["bootstrap_room"]


def test_an_error_says_which_side_refused(doubles: Doubles) -> None:
    with Running(
        Router(Engine.VLLM, [Prefill(doubles.broken), Prefill(doubles.prefill)], [doubles.broken])
    ) as url:
        first, second = ask(url, Prompt((9,), 2)), ask(url, Prompt((9,), 2))
    assert first.status == second.status == 500
    assert "prefill at" in str(first.error)
    assert "decode at" in str(second.error)
    assert "out of pages" in str(second.error)


def test_nobody_waits_for_a_decode_whose_prefill_was_never_asked(doubles: Doubles) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with Running(Router(Engine.SGLANG, [Prefill(nowhere, 8998)], [doubles.decode])) as url:
        answer = ask(url, Prompt((7,), 2))
    assert str(answer.error).count("prefill at") == 1
    assert "Connect call failed" in str(answer.error)


def test_an_error_within_a_stream_is_an_error(vllm_router: str) -> None:
    assert "the room failed" in str(ask(vllm_router, Prompt((13,), 2)).error)


def test_a_decode_that_dies_while_it_answers_is_an_error(vllm_router: str) -> None:
    answer = ask(vllm_router, Prompt((99,), 2))
    assert "the answer broke off" in str(answer.error)
    assert answer.tokens == (4, 5)


def test_too_few_tokens_are_an_error(vllm_router: str) -> None:
    assert ask(vllm_router, Prompt((9,), 3)).error == "2 of 3 tokens came"


def test_nobody_there_is_an_error_and_so_is_silence(vllm_router: str) -> None:
    assert "connection failed" in str(ask(f"http://127.0.0.1:{free_port()}", Prompt((9,), 2)).error)
    silent = ask(vllm_router, Prompt((666,), 2), timeout=0.5)
    assert silent.timed_out


def test_a_client_that_hangs_up_is_gone_for_the_server_too(doubles: Doubles, vllm_router: str) -> None:
    doubles.left.clear()
    assert b'"token_ids": [4]' in hang_up(vllm_router, Prompt((666,), 2), 0.5)
    assert doubles.left.wait(10)


def test_many_are_asked_at_once_and_answered_in_order(vllm_router: str) -> None:
    prompts = [Prompt((n,), 2) for n in range(20, 44)]
    for ask_them in (ask_all, in_waves):
        assert [a.tokens for a in ask_them(prompts, lambda p: ask(vllm_router, p))] == [(4, 5)] * 24


def test_a_tally_tells_right_wrong_failed_late_and_missing_apart() -> None:
    tally, prompt, wanted = Tally(), Prompt((1,), 2), Answer((4, 5))
    for answer in (
        wanted,
        Answer((4, 6)),
        Answer(error="room 7 failed"),
        Answer(error="no answer within 60 s"),
    ):
        tally.begin()
        assert tally.end(prompt, wanted, answer) is (answer is wanted)
    tally.begin()
    counts = {"asked": 5, "right": 1, "wrong": 1, "errors": 1, "timeouts": 1, "unanswered": 1}
    assert tally.counts() == counts
    assert tally.errors == {"room # failed": 1}


def test_a_life_is_flat_unless_it_grew_after_it_was_warm() -> None:
    life = Life("decode")
    small = {"rss": 100.0, "threads": 10.0, "sockets": 10.0, "blocks": 0.0}
    starting = {"rss": 1.0, "threads": 1.0, "sockets": 1.0}
    for at, sample in ((10.0, starting), (300.0, starting), (310.0, small), (500.0, small), (900.0, small)):
        life.see(at, sample)
    assert life.flat()
    assert (life.since, life.warm_at, life.summary()["first"]) == (310.0, 500.0, small)
    life.see(950.0, small | {"sockets": 40.0})
    assert not life.flat()
    life.see(960.0, small | {"rss": 130.0})
    assert not life.flat()


def test_clients_stop_when_they_are_told_and_wait_for_their_answers(vllm_router: str) -> None:
    tally, prompt = Tally(), Prompt((9,), 2)
    with Clients(vllm_router, [(prompt, Answer((4, 5)))], tally, 5.0).asking(3, 1):
        while tally.counts()["right"] < 9:
            pass
    counts = tally.counts()
    assert counts["asked"] == counts["right"]


def test_turns_are_summed_up_as_medians_and_ratios() -> None:
    def turn(who: str, number: int, seconds: float, first: float) -> Turn:
        return Turn(who, number, [Answer((1,), first=first)] * 10 + [Answer(error="x")], seconds, 1.0)

    turns = [turn("vllm's own", n, 10.0, 0.1) for n in range(3)] + [
        turn("pdcore x", n, 5.0, 0.05) for n in range(3)
    ]
    assert turns[0].row == ["vllm's own", 0, 10, 1, "1.00", "100.0", "100.0", "1.0"]
    own, ours, ratios = summary(turns)
    assert own == ["vllm's own, median", "", "", "", "1.00", "100.0", "100.0", ""]
    assert ours[0] == "pdcore x, median"
    assert ratios == ["pdcore / own", "", "", "", "2.00", "0.50", "0.50", ""]
