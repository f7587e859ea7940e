from __future__ import annotations

import inspect
import pickle

import pytest

import pdcore.errors as errors_module
from pdcore.errors import (
    AddressError,
    ArgumentError,
    AuthenticationError,
    BootstrapError,
    ConfigError,
    ConfigProblem,
    ContractError,
    EngineClosedError,
    EngineError,
    FailureCode,
    ForkedError,
    IncompatiblePeerError,
    KVTransferError,
    LayoutError,
    Misfit,
    MissingExtraError,
    PDCoreError,
    PlanError,
    PluginError,
    RegistrationError,
    RoomError,
    SelectionError,
    SelectionRow,
    TelemetryError,
    TransportMismatchError,
    VariantConflictError,
    WireError,
)

PLAIN = (
    PDCoreError,
    ContractError,
    PluginError,
    VariantConflictError,
    TransportMismatchError,
    EngineError,
    RegistrationError,
    EngineClosedError,
    LayoutError,
    MissingExtraError,
    PlanError,
    WireError,
    AuthenticationError,
    BootstrapError,
    AddressError,
    ArgumentError,
    ForkedError,
    TelemetryError,
    RoomError,
)
ROWS = (
    SelectionRow("fast", "pd-fast 1.0", "libfast.so is missing"),
    SelectionRow("local", "pdcore 0.1.0", "ready"),
)
MISFITS = (
    Misfit("layout.dtype", "bfloat16", "float16", "serve the same model"),
    Misfit("layout.page_size", "16", "64", "serve the same model"),
    Misfit("backend", "a", "b", "select the same backend"),
)
SPECIAL = (
    ConfigError([ConfigProblem("timeouts.request", "PDCORE_TIMEOUTS_REQUEST", "must lie in 1..2, is 3")]),
    SelectionError("no backend is named 'fats'", ROWS, "did you mean 'fast'?", "pdcore backends"),
    IncompatiblePeerError("prefill 10.0.0.1:4", MISFITS),
    KVTransferError(FailureCode.PEER_LOST, "room 3 lost its peer", "3 heartbeats missing", "send it again"),
)
EVERY = (*(cls("it broke", "3 of 4", "use 4") for cls in PLAIN), *SPECIAL)


def test_this_file_knows_every_error_class() -> None:
    defined = {
        value
        for value in vars(errors_module).values()
        if inspect.isclass(value) and issubclass(value, PDCoreError)
    }
    assert {type(error) for error in EVERY} == defined


@pytest.mark.parametrize("error", EVERY, ids=lambda e: type(e).__name__)
def test_every_error_has_three_parts_and_shows_them(error: PDCoreError) -> None:
    assert error.happened
    assert error.there_is
    assert error.to_do
    for part in (error.happened, error.there_is, error.to_do):
        assert part in str(error)


@pytest.mark.parametrize("error", EVERY, ids=lambda e: type(e).__name__)
def test_every_error_survives_pickling(error: PDCoreError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_the_three_parts_are_three_lines() -> None:
    assert str(PlanError("it broke", "3 of 4", "use 4")) == "it broke\n  there is: 3 of 4\n  to do: use 4"


def test_one_wrong_value_stands_on_the_line() -> None:
    error = SPECIAL[0]
    assert error.happened == "the configuration has 1 wrong value"
    assert error.there_is == "timeouts.request (from PDCORE_TIMEOUTS_REQUEST): must lie in 1..2, is 3"


def test_several_wrong_values_are_all_listed() -> None:
    error = ConfigError([ConfigProblem("a.b", "pdcore.toml", "is 3"), ConfigProblem("c", "code", "is 4")])
    assert error.happened == "the configuration has 2 wrong values"
    assert error.there_is.splitlines()[1:] == ["    a.b (from pdcore.toml): is 3", "    c (from code): is 4"]


def test_a_selection_error_is_a_table_with_a_fix_and_where_to_read_on() -> None:
    assert str(SPECIAL[1]).splitlines() == [
        "no backend is named 'fats'",
        "  fast   pd-fast 1.0    libfast.so is missing",
        "  local  pdcore 0.1.0   ready",
        "  fix: did you mean 'fast'?        more: pdcore backends",
    ]


def test_a_selection_error_without_any_candidate_says_so() -> None:
    assert "(no backend is installed)" in str(SelectionError("none", (), "install one", "pdcore backends"))


def test_an_incompatible_peer_lists_every_field_and_each_change_once() -> None:
    error = SPECIAL[2]
    assert error.happened == "cannot pair with prefill 10.0.0.1:4: 3 field(s) differ"
    assert error.there_is.splitlines()[1:] == [
        "    layout.dtype: prefill bfloat16, decode float16",
        "    layout.page_size: prefill 16, decode 64",
        "    backend: prefill a, decode b",
    ]
    assert error.to_do == "serve the same model; select the same backend"


def test_registration_and_closed_engine_are_engine_errors() -> None:
    assert issubclass(RegistrationError, EngineError)
    assert issubclass(EngineClosedError, EngineError)
