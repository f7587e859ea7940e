"""How a command ends, in real processes: streams that cannot be written, signals, errors as text and data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pdcore.errors import (
    ConfigError,
    ConfigProblem,
    FailureCode,
    IncompatiblePeerError,
    KVTransferError,
    Misfit,
    PDCoreError,
    SelectionError,
    SelectionRow,
)
from pdcore.host.console import UsageError, error_data

PDCORE = (sys.executable, "-W", "error", "-m", "pdcore")
LIMIT = 110
SHELL = {
    # what the shell makes of the streams: the status, what stdout and stderr say
    "{} | true": (141, "", ""),
    "{} > /dev/full": (1, "", "OutputError: standard output cannot be written\n  there is: No space left"),
    "{} >&-": (1, "", "OutputError: standard output cannot be written\n  there is: Bad file descriptor"),
    "{} 2>&-": (0, "Moves the KV cache", ""),
    "{} 2>/dev/full": (0, "Moves the KV cache", ""),
    "{} <&-": (0, "Moves the KV cache", ""),
    "{} <&- >&- 2>&-": (1, "", ""),
    "{} --wrong 2>&-": (2, "", ""),
    "{} --wrong 2>/dev/full": (2, "", ""),
    "{} --wrong 2>&1 >/dev/null | true": (2, "", ""),
    "{} --wrong --json 2>&-": (2, '"type": "UsageError"', ""),
    "{} --wrong --json > /dev/full": (1, "", "OutputError: standard output cannot be written"),
}


def shell(command: str) -> subprocess.Popen[str]:
    line = command.format(" ".join(map(str, PDCORE)) + " --help" * ("--wrong" not in command))
    return subprocess.Popen(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_stream_that_ends_early_or_is_closed_or_full_makes_a_traceback() -> None:
    running = {command: shell(command) for command in SHELL}
    for command, process in running.items():
        status, out, err = SHELL[command]
        stdout, stderr = process.communicate(timeout=LIMIT)
        assert process.returncode == status, (command, stdout, stderr)
        assert out in stdout, command
        assert err in stderr, command
        assert "Traceback" not in stderr, command
        assert "Exception ignored" not in stderr, command


def test_a_suite_whose_lines_nobody_reads_ends_as_others_do() -> None:
    line = f"{' '.join(PDCORE)} conform local -k hygiene"
    running = [
        subprocess.Popen(["bash", "-c", f"{line} {end}"], stderr=subprocess.PIPE, text=True)
        for end in ("| true; exit ${PIPESTATUS[0]}", "> /dev/full")
    ]
    ended = [(process.communicate(timeout=LIMIT)[1], process.returncode) for process in running]
    assert [status for _, status in ended] == [141, 1]
    assert "OutputError" not in ended[0][0]
    assert "OutputError: standard output cannot be written" in ended[1][0]
    assert "Traceback" not in ended[0][0] + ended[1][0]


def test_what_is_opened_later_does_not_get_the_number_of_a_closed_stream() -> None:
    code = """
import os, sys
from pdcore.host.console import ended, warn
def command():
    fd = os.open("/dev/null", os.O_RDONLY)
    sys.exit(0 if fd > 2 else 9)
sys.exit(ended(command))
"""
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{code}' <&- >&- 2>&-"], timeout=LIMIT, check=False
    )
    assert process.returncode == 0


RAISES = """
import sys
from pdcore.host.console import ended, say
def command():
    say("begun")
    {}
sys.exit(ended(command, as_data={}))
"""


def ending(statement: str, *, as_data: bool = False, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RAISES.format(statement, as_data)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env=os.environ | environ,
    )


def test_an_error_that_nobody_expects_is_said_in_the_form_of_the_others() -> None:
    done = ending("1 / 0")
    assert (done.returncode, done.stdout) == (1, "begun\n")
    assert done.stderr == (
        "an error that pdcore does not know: ZeroDivisionError: division by zero\n"
        "  there is: it came from <string>:6, command()\n"
        "  to do: report it, with what PDCORE_TRACEBACK=1 shows\n"
    )
    told = ending("1 / 0", PDCORE_TRACEBACK="1")
    assert told.returncode == 1
    assert "Traceback" in told.stderr
    data = ending("1 / 0", as_data=True)
    assert (data.returncode, data.stderr) == (1, "")
    assert json.loads(data.stdout.removeprefix("begun\n"))["error"]["type"] == "ZeroDivisionError"


def test_an_oserror_of_something_else_is_not_blamed_on_standard_output() -> None:
    done = ending("raise BrokenPipeError(32, 'of a socket')")
    assert done.returncode == 1
    assert "BrokenPipeError: [Errno 32] of a socket" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_with_its_number_and_says_so(signum: signal.Signals) -> None:
    code = f"import os, signal; os.kill(os.getpid(), signal.{signum.name}); signal.pause()"
    done = ending(code)
    assert (done.returncode, done.stderr) == (128 + signum, f"interrupted by {signum.name}\n")


def test_a_signal_counts_even_where_the_command_ends_as_if_none_had_come() -> None:
    done = ending(
        "import os, signal\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "    except KeyboardInterrupt: return 0",
        as_data=True,
    )
    assert done.returncode == 143


def test_a_second_signal_ends_a_command_that_hangs_at_its_end() -> None:
    done = ending(
        "import os, signal\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "    finally: os.kill(os.getpid(), signal.SIGINT); signal.pause()"
    )
    assert done.returncode == 130


def test_an_ignored_signal_stays_ignored() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); return 0"
    line = f"trap '' HUP; exec {sys.executable} -c '{RAISES.format(code, False)}'"
    assert subprocess.run(["bash", "-c", line], timeout=LIMIT, check=False).returncode == 0


ERRORS: list[tuple[PDCoreError, dict[str, object]]] = [
    (UsageError("pdcore", "a", "b", "c", "usage: d"), {"usage": "usage: d"}),
    (
        SelectionError("a", [SelectionRow("n", "d 1", "v")], "c", "pdcore doctor n"),
        {
            "candidates": [{"name": "n", "distribution": "d 1", "verdict": "v"}],
            "more": "pdcore doctor n",
            "there_is": "n  d 1   v",
        },
    ),
    (
        ConfigError([ConfigProblem("host", "code", "is odd")]),
        {"problems": [{"path": "host", "origin": "code", "reason": "is odd"}]},
    ),
    (
        IncompatiblePeerError("p", [Misfit("f", "1", "2", "c")]),
        {"peer": "p", "misfits": [{"field": "f", "prefill": "1", "decode": "2", "change": "c"}]},
    ),
    (KVTransferError(FailureCode.AUX, "a", "b", "c"), {"code": "aux", "happened": "a", "to_do": "c"}),
]


@pytest.mark.parametrize(("error", "more"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_as_data_has_all_that_its_type_carries(error: PDCoreError, more: dict[str, object]) -> None:
    data = json.loads(json.dumps(error_data(error)))
    assert data["type"] == type(error).__name__
    assert {"happened", "there_is", "to_do"} <= data.keys()
    assert more.items() <= data.items()


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PDCORE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def session(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a command has started, itself included, which lead a session of their own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ProcessLookupError):
            if os.getsid(int(entry.name)) == process.pid and b"pdcore" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


DEMO = ("demo", "--requests", "100000", "--longest", "32", "--model", "gpt2", "--memory", "0.05")
ENDS = {
    "demo --json, SIGTERM to all": ((*DEMO, "--json"), signal.SIGTERM, os.killpg, 3),
    "demo, killed": (DEMO, signal.SIGKILL, os.kill, 3),
    "bench, Ctrl-C": (("bench", "--mib", "8"), signal.SIGINT, os.killpg, 2),
}


def test_workers_of_a_command_that_is_interrupted_or_killed_end_quietly() -> None:
    running = {name: start(*arguments) for name, (arguments, *_) in ENDS.items()}
    for name, process in running.items():
        _, signum, kill, processes = ENDS[name]
        while len(session(process)) < processes:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        kill(process.pid, signum)
    for name, process in running.items():
        stdout, stderr = process.communicate(timeout=LIMIT)
        signum = ENDS[name][1]
        assert process.returncode == (-signum if signum is signal.SIGKILL else 128 + signum)
        if "--json" in name:
            assert json.loads(stdout)["error"]["type"] == "Interrupted"
            assert stderr == ""
        else:
            said = "" if signum is signal.SIGKILL else f"interrupted by {signum.name}\n"
            assert (stdout, stderr) == ("", said)
    # Workers of one that was killed see that it is gone, and end a moment later.
    until = time.monotonic() + LIMIT
    while left := [pid for process in running.values() for pid in session(process)]:
        assert time.monotonic() < until, left
        time.sleep(0.02)
