"""The shared key is never shown, an open control plane says so once, and nothing listens everywhere."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from pair import config, paired

from pdcore import Config
from pdcore.config.auth_key import AuthKey, code
from pdcore.config.sources import OriginKind, load_config
from pdcore.errors import ConfigError

TEXT = "correct horse battery staple"


def test_the_key_comes_from_code_environment_file_and_command_line(tmp_path: Path) -> None:
    file = tmp_path / "pdcore.toml"
    file.write_text(f'auth_key = "{TEXT}"\n')
    expected = Config(auth_key=TEXT)
    assert expected.auth_key == AuthKey(TEXT)
    assert load_config(environ={"PDCORE_AUTH_KEY": TEXT}).config == expected
    assert load_config(environ={}, toml_path=file).config == expected
    assert load_config(environ={}, cli={"auth_key": TEXT}).config == expected
    loaded = load_config(environ={}, code={"auth_key": AuthKey(TEXT)})
    assert loaded.config == expected
    assert loaded.origins["auth_key"].kind is OriginKind.CODE
    assert load_config(environ={}).config.auth_key is None


def test_the_key_is_not_shown_by_anything_that_shows_a_configuration() -> None:
    loaded = load_config(environ={"PDCORE_AUTH_KEY": TEXT})
    key = loaded.config.auth_key
    shown = [repr(loaded), str(loaded.config), f"{key}", str(attrs.asdict(loaded.config))]
    assert not [text for text in shown if TEXT in text]
    assert repr(key) == "AuthKey(hidden)"
    assert pickle.loads(pickle.dumps(key)) == key


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("short secret", "must have at least 16 bytes, has 12; `openssl rand -hex 32` makes one"),
        (1234567890123456, "must be text, is of type int"),
        (["short secret"], "must be text, is of type list"),
    ],
)
def test_a_bad_key_is_a_configuration_error_that_does_not_show_it(value: object, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environ={}, code={"auth_key": value})
    assert str(caught.value) == (
        "the configuration has 1 wrong value\n"
        f"  there is: auth_key (from code): {reason}\n"
        "  to do: correct each value where it was set"
    )


def test_a_short_key_in_the_environment_is_named_by_its_variable_and_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environ={"PDCORE_AUTH_KEY": "hunter2"})
    assert "auth_key (from PDCORE_AUTH_KEY): must have at least 16 bytes, has 7" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_doctor_does_not_show_the_key() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pdcore", "doctor", "local", "--json"],
        env={**os.environ, "PDCORE_AUTH_KEY": TEXT},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert json.loads(run.stdout)["backends"][0]["name"] == "local"
    assert TEXT not in run.stdout + run.stderr


def test_where_a_part_ends_changes_the_code() -> None:
    assert len({code(b"k", b"ab", b"c"), code(b"k", b"a", b"bc"), code(b"k", b"abc"), code(b"k")}) == 4
    key = AuthKey(TEXT)
    assert key.derive("one purpose") != key.derive("another")
    assert key.derive("one purpose") != AuthKey(TEXT + "!").derive("one purpose")


OPEN_MANAGERS = """
import logging, sys
from pdcore import Config, DecodeManager, KVLayout, Pools, Topology, select
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
for host in sys.argv[2:]:
    layout = KVLayout.heads(layers=range(1), kv_heads=1, head_dim=8, page_size=4, num_pages=2)
    config = Config(host=host, auth_key=sys.argv[1] or None)
    DecodeManager(select("local"), Pools.allocate(layout), Topology(), config).close()
"""


@pytest.mark.parametrize(
    ("key", "hosts", "levels"),
    [
        ("", ["127.0.0.1", "127.0.0.1", "localhost"], ["INFO"]),
        ("", ["0.0.0.0", "0.0.0.0"], ["WARNING"]),
        ("", ["::1", "::"], ["INFO", "WARNING"]),
        (TEXT, ["127.0.0.1", "0.0.0.0"], []),
    ],
)
def test_an_open_control_plane_says_so_once_per_process_and_warns_where_others_reach_it(
    key: str, hosts: list[str], levels: list[str]
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", OPEN_MANAGERS, key, *hosts],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    lines = [line for line in run.stdout.splitlines() if "the control plane is open" in line]
    assert [line.split()[:2] for line in lines] == [[level, "pdcore.wire"] for level in levels]
    assert all("set PDCORE_AUTH_KEY" in line for line in lines)


def listening() -> set[str]:
    """Return the local IPv4 and IPv6 addresses that this process listens on, as the kernel writes them."""
    inodes = set()
    for fd in Path("/proc/self/fd").iterdir():
        link = os.readlink(fd) if os.path.lexists(fd) else ""
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_by_default_nothing_listens_on_every_interface() -> None:
    before = listening()
    with paired(config()) as pair:
        assert pair.bootstrap.address.startswith("127.0.0.1:")
        assert pair.prefill.address.startswith("127.0.0.1:")
        assert listening() - before <= {"0100007F"}
        assert "0100007F" in listening()
