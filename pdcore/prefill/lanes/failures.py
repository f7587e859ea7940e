"""Why deliveries fail, in words."""

from __future__ import annotations

from pdcore.errors import FailureCode, KVTransferError

__all__ = ["given_up", "late", "unexplained"]


def given_up() -> KVTransferError:
    """Return the error of a delivery whose room had ended."""
    return KVTransferError(
        FailureCode.ABORTED,
        "the request had ended before it was sent",
        "nothing is left to do",
        "see its failure",
    )


def late(nbytes: int, left: int) -> KVTransferError:
    """Return the error of deliveries of so many bytes whose deadline came before ``left`` had gone out."""
    return KVTransferError(
        FailureCode.DEADLINE,
        "the transfer missed its deadline",
        f"{nbytes} bytes were to be moved, {left} had not gone out",
        "raise the request's deadline, or look why the peer is slow",
    )


def unexplained() -> KVTransferError:
    """Return the error of a transfer that failed without one."""
    return KVTransferError(
        FailureCode.ENGINE, "the transfer engine failed", "it gave no reason", "look at the engine's log"
    )
