from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pdcore.demo.content.models import MODELS
from pdcore.demo.planning.workload import (
    LONGEST_TOKENS,
    Prompt,
    WorkloadError,
    from_distribution,
    from_trace,
    page_limit,
    pages_needed,
    refuse_too_long,
    with_prefix,
)
from pdcore.model import RoomId
from pdcore.pairing.topology import Topology


def trace_file(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def line(tokens: int) -> str:
    return json.dumps({"timestamp": 27, "input_length": tokens, "output_length": 5, "hash_ids": [1, 2]})


def test_a_trace_gives_its_first_requests_in_order_and_ignores_what_it_doesnt_know(tmp_path: Path) -> None:
    trace = trace_file(tmp_path / "t.jsonl", line(6758), "", line(17), line(3), "this is never read")
    assert from_trace(trace, 3) == (
        Prompt(RoomId(0), 6758),
        Prompt(RoomId(1), 17),
        Prompt(RoomId(2), 3),
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "Input data was truncated"),
        ('{"timestamp": 1}', "missing required field `input_length`"),
        ('{"timestamp": 1, "input_length": "9"}', "Expected `int`, got `str` - at `$.input_length`"),
        ('{"timestamp": 1, "input_length": 0}', "input_length is 0"),
        ('{"timestamp": 1, "input_length": -4}', "input_length is -4"),
        ("[]", "Expected `object`, got `array`"),
    ],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path: Path, bad: str, reason: str) -> None:
    trace = trace_file(tmp_path / "t.jsonl", line(5), bad)
    with pytest.raises(WorkloadError) as caught:
        from_trace(trace, 2)
    assert caught.value.happened == f"line 2 of the trace {trace} is malformed"
    assert reason in caught.value.there_is
    assert repr(bad) in caught.value.there_is
    assert "input_length" in caught.value.to_do


def test_a_line_that_is_not_text_is_malformed_too(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(WorkloadError, match=r"line 1 of the trace .*t\.jsonl is malformed"):
        from_trace(trace, 1)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError) as caught:
        from_trace(tmp_path / "none.jsonl", 1)
    assert caught.value.happened == f"the trace {tmp_path / 'none.jsonl'} cannot be read"
    assert caught.value.there_is == "No such file or directory"


def test_a_trace_with_too_few_requests_says_how_many_it_has(tmp_path: Path) -> None:
    trace = trace_file(tmp_path / "t.jsonl", line(5), line(6))
    with pytest.raises(WorkloadError) as caught:
        from_trace(trace, 3)
    assert caught.value.there_is == "2 requests in the file, 3 asked for"
    assert caught.value.to_do == "ask for --requests 2"


def test_the_distribution_is_a_function_of_its_seed_and_stays_within_its_bounds() -> None:
    drawn = from_distribution(500, seed=3, longest=4000)
    assert drawn == from_distribution(500, seed=3, longest=4000)
    assert drawn != from_distribution(500, seed=4, longest=4000)
    lengths = [r.tokens for r in drawn]
    assert min(lengths) >= 1
    assert max(lengths) == 4000
    assert 1500 < np.median(lengths) < 3500
    assert [r.room for r in drawn] == list(range(500))


def test_the_distribution_has_a_longest_request_of_its_own() -> None:
    assert max(r.tokens for r in from_distribution(5000, seed=0, longest=10**9)) == LONGEST_TOKENS


def test_a_pool_holds_the_longest_request_and_average_ones_beside_it() -> None:
    requests = [Prompt(RoomId(i), tokens) for i, tokens in enumerate((100, 17, 1))]
    assert pages_needed(requests, page_size=16, concurrency=1) == 7
    assert pages_needed(requests, page_size=16, concurrency=3) == 7 + 2 * 4


def test_a_request_longer_than_a_pool_is_refused_with_the_memory_it_would_take() -> None:
    page_bytes = MODELS["llama-3-8b"].layout(16, 1).page_bytes
    requests = (Prompt(RoomId(0), 10), Prompt(RoomId(7), 26_888), Prompt(RoomId(8), 9))
    refuse_too_long(requests, 16, 1681, 2 * page_bytes)
    with pytest.raises(WorkloadError) as caught:
        refuse_too_long(requests, 16, 1680, 2 * page_bytes)
    assert caught.value.happened == "request 7 of 26888 tokens is longer than a pool"
    assert caught.value.there_is == "1680 pages of 16 tokens on each rank, which hold 26880 tokens"
    assert "--memory 6.6" in caught.value.to_do


def test_slots_are_taken_off_the_memory_before_pages() -> None:
    assert page_limit(1000, page_bytes=10, slot_bytes=100, slots=4) == 60
    with pytest.raises(WorkloadError) as caught:
        page_limit(2**30, page_bytes=2**20, slot_bytes=2**27, slots=8)
    assert caught.value.there_is == (
        "1.00 GiB for all of them; 8 requests in flight keep state of 128.0 MiB each"
    )
    assert caught.value.to_do == "use --memory 1.1, or a smaller --concurrency or --page-size"


def test_a_prefix_is_whole_pages_of_each_request() -> None:
    requests = [Prompt(RoomId(i), tokens) for i, tokens in enumerate((100, 17, 1))]
    assert [r.held for r in with_prefix(requests, 0.5, 16)] == [3, 1, 0]
    assert [r.held for r in with_prefix(requests, 1, 16)] == [7, 2, 1]


@pytest.mark.parametrize(
    ("model", "slot_bytes"),
    [
        ("gpt2", 0),
        ("jamba-v0.1", 28 * (8192 * 3 * 2 + 8192 * 16 * 4)),
        ("qwen3-next-80b", 36 * (8192 * 3 * 2 + 32 * 128 * 128 * 4)),
    ],
)
def test_a_request_of_a_hybrid_model_has_a_slot_which_tp_ranks_share_out(model: str, slot_bytes: int) -> None:
    shape = MODELS[model]
    assert shape.slot_bytes(16, Topology()) == slot_bytes
    for replica in (Topology(tp_size=4), Topology(pp_size=2), Topology(tp_size=2, pp_size=2)):
        assert sum(shape.slot_bytes(16, rank) for rank in replica.replica()) == slot_bytes


def test_a_sliding_window_keeps_the_last_pages_that_it_can_touch() -> None:
    (window,) = MODELS["gemma-3-4b"].state
    assert [window.items(pages, 16) for pages in (1, 65, 66, 1000)] == [1, 65, 65, 65]
    assert MODELS["gemma-3-4b"].layout(16, 1).page_bytes == 16 * 5 * 2 * 4 * 256 * 2
    assert len(window.layers) == 29


@pytest.mark.parametrize(
    ("model", "token_bytes"),
    [
        ("llama-3-8b", 131_072),
        ("llama-3-70b", 327_680),
        ("qwen2.5-0.5b", 12_288),
        ("qwen2.5-7b", 57_344),
        ("mistral-7b", 131_072),
        ("deepseek-v3", 70_272),
        ("gpt2", 36_864),
        ("jamba-v0.1", 16_384),
        ("qwen3-next-80b", 24_576),
    ],
)
def test_a_token_of_each_model_takes_its_published_number_of_bytes(model: str, token_bytes: int) -> None:
    assert MODELS[model].layout(page_size=1, num_pages=1).page_bytes == token_bytes
    assert MODELS[model].layout(page_size=64, num_pages=1).page_bytes == 64 * token_bytes
