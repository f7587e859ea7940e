from __future__ import annotations

from enum import Enum
from pathlib import Path

import attrs
import pytest

from pdcore.config.records import (
    Config,
    ControlConfig,
    LivenessConfig,
    Timeouts,
    TransferConfig,
    TransferModel,
)
from pdcore.config.sources import OriginKind, load_config
from pdcore.config.structuring import Text, structure_options
from pdcore.errors import ConfigError

LANES = "transfer.lanes_per_peer"
LANES_VARIABLE = "PDCORE_TRANSFER_LANES_PER_PEER"


def problems(error: ConfigError) -> list[str]:
    return [f"{p.path} (from {p.origin}): {p.reason}" for p in error.problems]


def test_without_any_source_every_value_is_the_default_and_says_so() -> None:
    loaded = load_config(environ={})
    assert loaded.config == Config()
    assert {origin.kind for origin in loaded.origins.values()} == {OriginKind.DEFAULT}
    assert loaded.origins[LANES].kind is OriginKind.DEFAULT


def test_a_stronger_source_wins_and_each_value_remembers_its_own(tmp_path: Path) -> None:
    file = tmp_path / "pdcore.toml"
    file.write_text("[transfer]\nlanes_per_peer = 2\n[liveness]\ninterval = 1\nmax_failures = 9\n")
    sources = [(2, str(file)), (3, LANES_VARIABLE), (4, "command line"), (5, "code")]
    for strength, (lanes, origin) in enumerate(sources):
        loaded = load_config(
            code={"transfer": {"lanes_per_peer": 5}} if strength >= 3 else None,
            cli={LANES: "4", "host": None} if strength >= 2 else None,
            environ={LANES_VARIABLE: "3"} if strength >= 1 else {},
            toml_path=file,
        )
        assert loaded.config.transfer.lanes_per_peer == lanes
        assert str(loaded.origins[LANES]) == origin
        assert loaded.config.liveness == LivenessConfig(interval=1.0, max_failures=9)
        assert str(loaded.origins["liveness.max_failures"]) == str(file)
        assert str(loaded.origins["host"]) == "default"


def test_an_engine_knows_better_than_the_defaults_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "pdcore.toml"
    file.write_text('host = "::1"\n')
    engine = {"host": "127.0.0.7", "timeouts": {"request": 8}, "liveness.interval": 5}
    environ = {"PDCORE_LIVENESS_INTERVAL": "7"}
    loaded = load_config(engine=engine, environ=environ, toml_path=file)
    assert (loaded.config.host, loaded.config.liveness.interval) == ("::1", 7.0)
    assert loaded.config.timeouts == Timeouts(request=8.0, pairing=8.0, bootstrap=8.0)
    assert str(loaded.origins["timeouts.request"]) == "the inference engine"
    with pytest.raises(ConfigError) as caught:
        load_config(engine={"timeouts.request": 0}, environ={})
    assert problems(caught.value)[0].startswith("timeouts.request (from the inference engine): must lie in")


def test_ports_of_several_processes_of_a_machine_follow_each_other() -> None:
    config = Config(control=ControlConfig(port=9000), metrics_port=9100, advertise="[::1]:9200")
    third = config.of_process(2)
    assert (third.control.port, third.metrics_port, third.advertise) == (9002, 9102, "[::1]:9202")
    assert config.of_process(0) == config
    anywhere = Config(metrics_port=0, advertise="node")
    assert anywhere.of_process(3) == anywhere
    with pytest.raises(ConfigError, match=r"0\.\.65535, is 65536"):
        attrs.evolve(config, metrics_port=65_535).of_process(1)


def test_the_file_is_the_one_that_the_environment_names(tmp_path: Path) -> None:
    file = tmp_path / "pdcore.toml"
    file.write_text('backend = "other"\n[backend_options]\nthreads = 2\nnested = {a = 1}\n')
    config = load_config(environ={"PDCORE_CONFIG": str(file)}).config
    assert config.backend == "other"
    assert config.backend_options == {"threads": 2, "nested": {"a": 1}}


def test_every_wrong_value_is_listed_at_once_with_its_origin() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            code={"transfer": {"modl": "inline", "aux": "carrier pigeon"}, "livenes": {"interval": 3}},
            cli={"control": "8000"},
            environ={
                LANES_VARIABLE: "yes",
                "PDCORE_TRANSFER_MODEL": "lazy",
                "PDCORE_TIMEOUTS_SHUTDOWN": "nan",
                "PDCORE_TIMEOUTS_REQUEST": "20",
                "PDCORE_TIMEOUTS_PAIRING": "30",
                "PDCORE_TRANSFR_MODEL": "inline",
                "PDCORE_CONFIG": "/no/such/file.toml",
            },
        )
    assert problems(caught.value) == [
        "/no/such/file.toml (from PDCORE_CONFIG): cannot be read: "
        "[Errno 2] No such file or directory: '/no/such/file.toml'",
        "PDCORE_TRANSFR_MODEL (from environment): is unknown; did you mean 'PDCORE_TRANSFER_MODEL'?",
        "control (from command line): must be a table, is '8000'",
        "transfer.model (from PDCORE_TRANSFER_MODEL): must be one of 'workers', 'inline', is 'lazy'",
        f"{LANES} (from {LANES_VARIABLE}): must be an integer, is 'yes'",
        "transfer.aux (from code): must be one of 'auto', 'engine', 'tcp', is 'carrier pigeon'",
        "transfer.modl (from code): is unknown; did you mean 'model'?",
        "timeouts.shutdown (from PDCORE_TIMEOUTS_SHUTDOWN): must lie in 0.001..604800.0, is nan",
        "livenes (from code): is unknown; did you mean 'liveness'?",
        "timeouts.pairing (from PDCORE_TIMEOUTS_PAIRING): must not exceed the request timeout of 20 s, is 30",
    ]


def test_a_single_problem_reads_as_three_parts() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environ={LANES_VARIABLE: "0"})
    assert str(caught.value) == (
        "the configuration has 1 wrong value\n"
        f"  there is: {LANES} (from {LANES_VARIABLE}): must lie in 1..64, is 0\n"
        "  to do: correct each value where it was set"
    )


def test_a_file_is_typed_while_text_is_converted(tmp_path: Path) -> None:
    file = tmp_path / "pdcore.toml"
    file.write_text('[transfer]\nlanes_per_peer = "2"\n')
    with pytest.raises(ConfigError, match="must be an integer, is '2'"):
        load_config(environ={}, toml_path=file)
    loaded = load_config(
        environ={LANES_VARIABLE: "2", "PDCORE_TRANSFER_MODEL": "inline", "PDCORE_TIMEOUTS_REQUEST": "40"}
    )
    assert loaded.config.transfer == TransferConfig(TransferModel.INLINE, lanes_per_peer=2)
    assert loaded.config.timeouts.request == 40.0


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pdcore.toml"
    file.write_text("backend = \n")
    with pytest.raises(ConfigError, match=r"pdcore\.toml \(from code\): cannot be read: "):
        load_config(environ={}, toml_path=file)


def test_values_set_in_code_are_checked_like_all_others() -> None:
    with pytest.raises(ConfigError) as ranges:
        LivenessConfig(interval=0)
    assert problems(ranges.value) == ["interval (from code): must lie in 0.01..3600.0, is 0"]
    with pytest.raises(ConfigError) as nesting:
        Timeouts(request=5, pairing=6, bootstrap=7)
    assert problems(nesting.value) == [
        "pairing (from code): must not exceed the request timeout of 5 s, is 6",
        "bootstrap (from code): must not exceed the request timeout of 5 s, is 7",
    ]
    with pytest.raises(ConfigError, match=r"host \(from code\): must be a name or an address"):
        Config(host="")


def test_sub_timeouts_that_were_left_alone_follow_a_short_request_timeout() -> None:
    assert Timeouts() == Timeouts(300.0, 30.0, 10.0)
    assert load_config(environ={"PDCORE_TIMEOUTS_REQUEST": "5"}).config.timeouts == Timeouts(5.0, 5.0, 5.0)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load_config(environ={LANES_VARIABLE: "", "PDCORE_NOT_KNOWN": ""}).config == Config()


def test_the_reserved_variables_are_not_configuration() -> None:
    environ = {"PDCORE_PLUGINS": "local", "PDCORE_DISABLE": "other", "PATH": "/bin"}
    assert load_config(environ=environ).config == Config()


def test_a_backends_own_variables_reach_it_and_its_variants_only() -> None:
    environ = {"PDCORE_X_THREADS": "2", "PDCORE_X_TCP_PORT": "7", "PDCORE_Y_DEPTH": "3"}
    names = ("local", "x", "x_tcp", "y")
    expected = {"local": {}, "x": {"threads": "2", "tcp_port": "7"}, "y": {"depth": "3"}}
    expected["x_tcp"] = expected["x"]
    for backend, options in expected.items():
        loaded = load_config(cli={"backend": backend}, environ=environ, plugin_prefixes=names)
        assert loaded.config.backend_options == options
        origins = {str(loaded.origins[f"backend_options.{option}"]) for option in options}
        assert origins <= {*environ}
    with pytest.raises(ConfigError, match=r"PDCORE_Y_DEPTH \(from environment\): is unknown"):
        load_config(environ=environ, plugin_prefixes=("x",))


def test_a_backends_variable_is_stronger_than_the_file_and_weaker_than_the_command_line(
    tmp_path: Path,
) -> None:
    file = tmp_path / "pdcore.toml"
    file.write_text('backend = "local"\n[backend_options]\nthreads = 1\ndepth = 1\n')
    loaded = load_config(
        cli={"backend_options": {"depth": "3"}},
        environ={"PDCORE_LOCAL_THREADS": "2", "PDCORE_LOCAL_DEPTH": "2"},
        toml_path=file,
        plugin_prefixes=["local"],
    )
    assert loaded.config.backend_options == {"threads": "2", "depth": "3"}


class Colour(Enum):
    RED = "red"
    THREE = 3


@attrs.frozen
class Inner:
    depth: int = 0


@attrs.frozen
class Options:
    threads: int
    ratio: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    fast: bool = False
    colour: Colour = Colour.RED
    names: tuple[str, ...] = ()
    inner: Inner = Inner()


def test_options_are_structured_from_text_as_from_values() -> None:
    text = {
        key: Text(value)
        for key, value in {"threads": "2", "ratio": "1.5", "fast": "on", "colour": "3"}.items()
    }
    values = {"threads": 2, "ratio": 1.5, "fast": True, "colour": Colour.THREE}
    assert structure_options(Options, text) == structure_options(Options, values)
    assert structure_options(Options, values | {"names": ["a"], "inner": {"depth": 2}}) == Options(
        2, 1.5, True, Colour.THREE, ("a",), Inner(2)
    )


def test_all_wrong_options_are_listed_with_where_each_was_set() -> None:
    values = {
        "ratio": Text("0.5"),
        "fast": Text("maybe"),
        "colour": "blue",
        "names": ["a", 1],
        "inner": {"depht": 1},
        "thread": 1,
    }
    with pytest.raises(ConfigError) as caught:
        structure_options(Options, values, lambda option: f"where {option} is")
    assert problems(caught.value) == [
        "backend_options.threads (from where threads is): is required",
        "backend_options.ratio (from where ratio is): 'ratio' must be >= 1: 0.5",
        "backend_options.fast (from where fast is): must be true or false, is 'maybe'",
        "backend_options.colour (from where colour is): must be one of 'red', 3, is 'blue'",
        "backend_options.names.1 (from where names is): must be text, is 1",
        "backend_options.inner.depht (from where inner is): is unknown; did you mean 'depth'?",
        "backend_options.thread (from where thread is): is unknown; did you mean 'threads'?",
    ]


@pytest.mark.parametrize(
    ("value", "kind"), [("yes", "an integer"), ("1.5", "an integer"), ("", "an integer")]
)
def test_text_that_is_no_integer_is_refused(value: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"must be {kind}, is {value!r}"):
        structure_options(Options, {"threads": Text(value)})
