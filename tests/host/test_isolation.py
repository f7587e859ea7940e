"""Trying something in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pdcore.host import isolation
from pdcore.host.isolation import Attempt, attempt


def test_a_program_gets_its_arguments_and_the_module_path() -> None:
    tried = attempt("print('noise'); print(json.dumps([given, path == sys.path]))", "a", [1, None], {"b": 2})
    assert tried == Attempt([["a", [1, None], {"b": 2}], True])


def test_the_process_is_another_one_and_what_it_says_is_kept() -> None:
    tried = attempt("print('careful', file=sys.stderr); print(os.getpid())")
    assert isinstance(tried.value, int)
    assert tried.value != os.getpid()
    assert (tried.error, tried.log) == ("", "careful\n")


def test_variables_are_hidden_by_how_their_names_begin_and_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDX_ONE", "1")
    monkeypatch.setenv("PDX_TWO", "2")
    show = "print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('PD')}))"
    assert attempt(show).value == {"PDX_ONE": "1", "PDX_TWO": "2"}
    assert attempt(show, hidden=("PDX_",), environ={"PDX_TWO": "3", "PD": "4"}).value == {"PDX_TWO": "3"}


def test_a_program_that_ends_otherwise_says_how() -> None:
    aborted = attempt("print('going down', file=sys.stderr, flush=True); os.abort()")
    assert (aborted.value, aborted.error) == (None, "ends with status -6: going down")
    assert attempt("sys.exit(3)").error == "ends with status 3: it said nothing"


def test_a_program_that_says_nothing_has_no_value() -> None:
    assert attempt("pass") == Attempt(error="says nothing")
    assert attempt("print('no json')").error == "says 'no json'"


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(isolation, "SECONDS", 5.0)
    pid = tmp_path / "pid"
    hangs = "import pathlib, time; pathlib.Path(given[0]).write_text(str(os.getpid())); time.sleep(600)"
    assert attempt(hangs, str(pid)).error == "does not end within 5 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_the_same_attempt_is_made_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    adds = "f = open(given[0], 'a'); f.write('x'); f.close(); print(json.dumps(open(given[0]).read()))"
    assert attempt(adds, str(count)).value == "x"
    assert attempt(adds, str(count)).value == "x"
    assert attempt(adds, str(count), hidden=("PDX",), environ={"PDX": "other"}).value == "xx"
