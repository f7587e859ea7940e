"""``pdcore replay``: what a manager recorded is gone through again, offline, and reaches the same state."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from pair import config, paired

from pdcore import TransferConfig
from pdcore.cli import main
from pdcore.model import RoomId


@pytest.fixture(scope="module", params=["off", "always"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What both sides of two requests wrote, of which the second was given up; as they lie, and packed."""
    folder = tmp_path_factory.mktemp("recorded")
    with paired(attrs.evolve(config(), transfer=TransferConfig(staging=request.param))) as pair:
        pair.move(7, [1, 2], [3, 4])
        sender, receiver = pair.open(8)
        receiver.send_metadata([5])
        sender.abort()
        receiver.abort()
        names = [type(entry.stimulus).__name__ for entry in pair.prefill.history(RoomId(7))]
        assert names[:2] == ["OpenSend", "AnnouncePages"]
        assert "Clear" in names
        assert ("SlotWritten" in names) is (request.param == "always")
        assert not pair.prefill.history(RoomId(99))
        pair.prefill.record(folder / "prefill")
        pair.decode.record(folder / "decode")
    return folder / "prefill", folder / "decode"


def test_both_sides_reach_the_same_state(
    recorded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for path, opening in zip(recorded, ("OpenSend", "OpenReceive"), strict=True):
        assert main(["replay", str(path)]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[-1] == "the same state is reached"
        assert sum(f"  {opening}: Begun" in line for line in told) == 2


def test_one_room_is_picked_out(recorded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recorded[1]), "--room", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["differences"] == []
    assert told["missing"] == 0
    what = [step["what"] for step in told["steps"]]
    assert what[0] == "OpenReceive"
    assert what.count("OpenReceive") == 1
    assert any("Post" in step["done"] for step in told["steps"])


def test_another_state_is_said_and_is_an_error(
    recorded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = recorded[0].read_bytes().splitlines(keepends=True)
    short = tmp_path / "short"
    short.write_bytes(b"".join(lines[:-3]))
    assert main(["replay", str(short)]) == 1
    assert capsys.readouterr().out.endswith("another state is reached\n")


def test_what_is_no_recording_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "nothing")]) == 1
    assert "name a file that manager.record() wrote" in capsys.readouterr().err
    (tmp_path / "other").write_text("{}\n")
    assert main(["replay", str(tmp_path / "other")]) == 1
    assert "this is no recording of pdcore" in capsys.readouterr().err
