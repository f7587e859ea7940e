"""What the kernel still holds of a process that was killed: told by real sockets between real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pdcore.host.sockets import Table, Unread, Unsent
from pdcore.model import Deadline

FLOOD = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as out:
    out.setblocking(False)
    sent = 0
    try:
        while True:
            sent += out.send(bytes(65536))
    except BlockingIOError:
        print(sent, flush=True)
    input()
"""


@contextmanager
def flooder(port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that has sent as much as the kernel takes, and the number of bytes."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FLOOD, str(port)], stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def drain(connection: socket.socket, nbytes: int) -> None:
    while nbytes:
        nbytes -= len(connection.recv(min(nbytes, 1 << 20)))


def until(condition: Callable[[], bool]) -> None:
    deadline = Deadline.after(30)
    while not condition():
        assert not deadline.expired


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_bytes_of_a_killed_process_are_seen_until_the_last_one_is_read(family: socket.AddressFamily) -> None:
    with socket.socket(family) as door:
        door.bind(("::" if family == socket.AF_INET6 else "127.0.0.1", 0))  # one that takes IPv4 as well
        door.listen()
        with flooder(door.getsockname()[1]) as (process, sent):
            unaccepted = Unread()
            assert unaccepted.left() >= 1, "it waits at our door, and its bytes with it"
            connection, _ = door.accept()
            with connection:
                process.kill()
                process.wait()
                unsent, unread = Unsent(), Unread()
                assert unsent.left() >= 1, "the kernel goes on for the dead"
                drain(connection, sent - 1)
                until(lambda: not unsent.left())
                assert unread.left() >= 1
                assert unaccepted.left() >= 1
                drain(connection, 1)
                until(lambda: not unread.left())
                assert not unaccepted.left()
                assert connection.recv(1) == b"", "that it has ended is no byte of it"
                assert not Unread().left()


def test_a_stopped_process_with_full_pipes_is_not_seen_as_empty() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, flooder(door.getsockname()[1]) as (process, sent):
        os.kill(process.pid, signal.SIGSTOP)
        connection, _ = door.accept()
        with connection:
            assert Unsent().left() >= 1
            assert Unread().left() >= 1
            drain(connection, sent)
            until(lambda: not Unsent().left())
            until(lambda: not Unread().left())


def test_connections_of_other_processes_are_not_ours() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        flooder(door.getsockname()[1]),
        socket.create_connection(door.getsockname()) as near,
    ):
        table, port = Table.read(), door.getsockname()[1]
        theirs = [ends for ends in table.all if ends[1][1] == port and ends[0][1] != near.getsockname()[1]]
        assert theirs
        assert not table.ours & set(theirs)


def test_a_connection_that_was_empty_once_may_carry_bytes_again() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        socket.create_connection(door.getsockname()) as near,
        door.accept()[0] as far,
    ):
        unread = Unread()
        until(lambda: not unread.left())
        near.sendall(b"x")
        until(lambda: Unread().left() == 1)
        assert not unread.left()
        assert far.recv(1) == b"x"
