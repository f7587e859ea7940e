"""The double of MORI-IO: like the real library where both run, and a finding where only a double goes on."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from doubles.broken_callers import BROKEN, LEFT
from doubles.detectors import FOLDER, MoriDouble, installed_double
from doubles.detectors import mori_double as mori_double
from doubles.ends import FLUSHED, RETRY, End, pair
from doubles.same_transfers import CHECKS as TRANSFERS
from doubles.same_values import CHECKS as VALUES

if TYPE_CHECKING:
    from doubles.mori.findings import Kind

LEFT_OUT = {
    "fabric_alloc": "needs a GPU",
    "fabric_free": "needs a GPU",
    "native IOEngine": "behind the wrapper; the double has only the wrapper",
    "native IOEngineSession": "batch_write keeps sessions itself and creating one holds the GIL",
    "IOEngineSession": "as the native one",
    "IOEngine._load_scatter_gather_kernel": "needs a GPU",
    "IOEngine._load_fabric_copy_kernel": "needs a GPU",
    "IOEngine.register_torch_tensor": "pdcore registers addresses",
    "IOEngine._single_side_transfer": "single transfers are not used",
    "IOEngine._batch_single_side_transfer": "an inner step of the wrapper",
    "IOEngine.read": "pdcore writes",
    "IOEngine.batch_read": "pdcore writes",
    "IOEngine.write": "one batch_write per transfer",
    "IOEngine.create_session": "as IOEngineSession",
    "IOEngine.pop_inbound_transfer_status": "needs notifications, which poison a status",
}


@pytest.mark.parametrize("check", [*VALUES, *TRANSFERS], ids=lambda check: check.__name__)
def test_the_double_behaves_as_the_real_library(
    check: Callable[[ModuleType], None], mori_double: MoriDouble
) -> None:
    check(mori_double.mori)


def real_signatures() -> Iterator[tuple[str, str, str]]:
    """Yield (owner or "", name, rest of the line) for every line of the real library's signatures."""
    owner = ""
    for line in (FOLDER / "mori_signatures_1.2.4.txt").read_text().splitlines()[1:]:
        if heading := re.match(r"(python )?class (\w+)(.*)", line):
            native = "native " if not heading[1] and heading[2].startswith("IOEngine") else ""
            owner = heading[2] if heading[2] == "IOEngineConfig" else native + heading[2]
            yield owner, "", heading[3].strip()
        elif (found := re.match(r"\s*(?:property )?(\w+) ?(.*)", line)) and not line.endswith("signature."):
            yield owner, found[1], found[2]


def arguments(text: str) -> str:
    """Return a Python signature without its annotations."""
    function = ast.parse(f"def f{text.split(' ->')[0]}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    for argument in filter(None, [*function.args.args, function.args.vararg]):
        argument.annotation = None
    return ast.unparse(function.args)


def left_out(owner: str, name: str) -> bool:
    return owner in LEFT_OUT or f"{owner}.{name}".strip(".") in LEFT_OUT


def ours(member: Any, text: str, owner: str) -> str:
    """Return the double's line for a member, in the words of the real one."""
    binding = importlib.import_module("mori.binding")
    if text.startswith("{"):
        return str({key: int(getattr(member, key)) for key in ast.literal_eval(text)})
    if text.startswith(("rw ", "ro ")):
        kind = (
            getattr(member, "kind", None) or inspect.signature(member.fget, eval_str=True).return_annotation
        )
        access = "ro" if getattr(member, "readonly", True) else "rw"
        return (
            f"{access} {text.split(' ->')[0][3:]} -> {binding.spelled(kind).replace(binding.NUMBER, 'int')}"
        )
    if owner == "IOEngine":
        return arguments(str(inspect.signature(member)))
    function = member.__func__ if isinstance(member, staticmethod) else member
    return str(binding.signature_text(inspect.unwrap(function), owner))


def test_every_signature_is_the_real_one(mori_double: MoriDouble) -> None:
    compared = 0
    for owner, name, text in real_signatures():
        if left_out(owner, name) or name == "__eq__":  # Python gives that any object
            continue
        module = mori_double.mori.io if owner == "IOEngine" else mori_double.mori.cpp
        holder = getattr(module, owner) if owner else module
        if name:
            real = arguments(text) if owner == "IOEngine" else text
            assert ours(inspect.getattr_static(holder, name), text, owner) == real, f"{owner}.{name}"
            compared += 1
        else:
            assert (holder.__hash__ is None) == (text == "UNHASHABLE"), owner
    assert compared == 80


@pytest.mark.parametrize("place", LEFT_OUT)
def test_what_is_left_out_is_real_and_not_in_the_double(place: str, mori_double: MoriDouble) -> None:
    assert place in {f"{owner}.{name}".strip(".") for owner, name, _ in real_signatures()}
    with pytest.raises(AttributeError):
        attrgetter(place)(mori_double.mori.io)


@pytest.mark.parametrize(("caller", "kind"), BROKEN, ids=[caller.__name__ for caller, _ in BROKEN])
def test_a_broken_caller_fires_its_detector_and_only_that(
    caller: Callable[[MoriDouble], None], kind: Kind
) -> None:
    with installed_double() as expecting:
        expecting.expect(kind)
        caller(expecting)
    LEFT.clear()
    text = f"expected \\[\\] of the MORI double, found\n  {kind}: "
    with pytest.raises(AssertionError, match=text), installed_double() as strict:
        caller(strict)
    LEFT.clear()


def test_a_test_that_expects_a_finding_fails_without_it() -> None:
    text = r"expected \['same base twice'\] .*\n  nothing"
    with pytest.raises(AssertionError, match=text), installed_double() as double:
        double.expect("same base twice")


def test_outside_the_fixture_there_is_no_double() -> None:
    with installed_double() as double:
        assert sys.modules["mori"] is double.mori
    assert "mori" not in sys.modules
    assert str(FOLDER) not in sys.path


def test_held_completions_keep_the_status_in_progress_though_the_bytes_have_landed(
    mori_double: MoriDouble,
) -> None:
    here, there = pair(mori_double.mori)
    with mori_double.faults.held():
        statuses = here.engine.batch_write([here.desc], [[1]], [there.desc], [[0]], [[1]], [0])
        assert statuses[0].WaitFor(50) == mori_double.mori.io.StatusCode.IN_PROGRESS
        assert there.memory.raw[0] == 1
    assert statuses[0].WaitFor(30_000) == mori_double.mori.io.StatusCode.SUCCESS


def test_a_failed_entry_fails_the_transfer_while_its_siblings_land(mori_double: MoriDouble) -> None:
    here, there = pair(mori_double.mori)
    mori_double.faults.fail_entry(1, "remote operation error")
    lone = End(mori_double.mori, qps=1)
    lone.knows(there.engine.get_engine_desc())
    assert lone.write(there.desc, [(1, 0, 1), (3, 9, 1)]) == ("ERR_RDMA_OP", "remote operation error")
    assert (there.memory.raw[0], there.memory.raw[9]) == (1, 0)
    assert lone.write(there.desc, [(1, 0, 1)]) == ("ERR_RDMA_OP", FLUSHED)
    assert here.write(there.desc, [(3, 9, 1)]) == ("SUCCESS", "success")


def test_a_cut_lane_exceeds_its_retries_and_the_other_goes_on(mori_double: MoriDouble) -> None:
    here, there = pair(mori_double.mori)
    mori_double.faults.cut_lanes.add((there.desc.engine_key, 1))
    assert here.write(there.desc, [(0, 0, 1)], uid=1)[1].startswith(RETRY)
    assert here.write(there.desc, [(0, 0, 1)], uid=1) == ("ERR_RDMA_OP", FLUSHED)
    assert here.write(there.desc, [(0, 0, 1)], uid=0) == ("SUCCESS", "success")


def test_without_a_device_the_backend_is_refused(mori_double: MoriDouble) -> None:
    io = mori_double.mori.io
    mori_double.faults.no_device = True
    with pytest.raises(
        RuntimeError, match="no active RDMA device on this host; set MORI_DISABLE_AUTO_XGMI=0"
    ):
        io.IOEngine("engine", io.IOEngineConfig("127.0.0.1", 0)).create_backend(io.BackendType.RDMA)


def test_a_request_longer_than_the_nic_takes_needs_chunking(mori_double: MoriDouble) -> None:
    here, there = pair(mori_double.mori)
    mori_double.faults.max_message_bytes = 16
    code, text = here.write(there.desc, [(0, 0, 9), (100, 9, 9)])
    assert (code, text[:53]) == ("ERR_INVALID_ARGS", "merged RDMA WR 0 length 18 exceeds local max_msg_sz 1")
    chunking = End(mori_double.mori, enable_transfer_chunking=True)
    chunking.knows(there.engine.get_engine_desc())
    assert chunking.write(there.desc, [(0, 0, 9), (100, 9, 9)]) == ("SUCCESS", "success")


def test_threads_end_with_their_engines(mori_double: MoriDouble) -> None:
    here, there = pair(mori_double.mori)
    assert here.write(there.desc, [(0, 0, 1)])[0] == "SUCCESS"
    names = [t.name for t in threading.enumerate() if t.name.startswith("mori-double-")]
    assert len(names) > 5
    assert {name.split("-")[2] for name in names} == {"completions", "owner", "lane"}
    del here.engine, there.engine
    gc.collect()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("mori-double-")]
