"""The ways of being broken, by name."""

from __future__ import annotations

from collections.abc import Callable

from broken_engines import ends_process, hangs, late, lies, odd, wrong_bytes
from broken_engines.honest import Honest, WithThread
from broken_engines.socket_engine import SocketEngine
from pdcore.contract.engine import TransferEngine
from pdcore.model import Role

Make = Callable[[Role], TransferEngine]


def without_role(make: Callable[[], TransferEngine]) -> Make:
    return lambda role: make()


WAYS: dict[str, Make] = {
    "not at all": Honest,
    "not at all, with a thread": WithThread,
    "not at all, over sockets": without_role(SocketEngine),
    "deadly": ends_process.Deadly,
    "exit later": ends_process.ExitLater,
    "hung connect": ends_process.HungConnect,
    "hung interpreter": ends_process.HungInterpreter,
    "rounds targets": wrong_bytes.RoundsTargets,
    "rounds sources": wrong_bytes.RoundsSources,
    "rounds lengths": wrong_bytes.RoundsLengths,
    "rounds in later regions": wrong_bytes.RoundsInLaterRegions,
    "swaps ends of many entries": wrong_bytes.SwapsEndsOfManyEntries,
    "past region": wrong_bytes.PastRegion,
    "loses last of many": wrong_bytes.LosesLastOfMany,
    "loses first": wrong_bytes.LosesFirst,
    "loses beyond 65,536": wrong_bytes.LosesBeyond,
    "cuts long entries": wrong_bytes.CutsLong,
    "changes the batch": wrong_bytes.ChangesTheBatch,
    "early done": late.EarlyDone,
    "a little early done": late.SoonDone,
    "polls early": late.PollsEarly,
    "ghost of a failed write": late.Ghost,
    "ghost of a done write": late.GhostOfDone,
    "closes early": late.ClosesEarly,
    "revokes in words": late.RevokesInWords,
    "connects for ever": hangs.ConnectsForEver,
    "connects under lock": hangs.ConnectsUnderLock,
    "waits for ever": hangs.WaitsForEver,
    "never fails": hangs.NeverFails,
    "write raises": odd.WriteRaises,
    "write exits": odd.WriteExits,
    "wait raises": odd.WaitRaises,
    "tells once": odd.TellsOnce,
    "connect raises": odd.ConnectRaises,
    "close raises": odd.CloseRaises,
    "takes any memory": odd.TakesAnyMemory,
    "leaks a thread": odd.LeaksThread,
    "disconnects all": odd.DisconnectsAll,
    "mixes peers": odd.MixesPeers,
    "careless": odd.Careless,
    "same endpoint": odd.SameEndpoint,
    "writes when closed": odd.WritesWhenClosed,
    "lies: bounds": lies.Bounds,
    "lies: bounds by half": without_role(lies.BoundsByHalf),
    "lies: bounds once": without_role(lies.BoundsOnce),
    "lies: silent": without_role(lies.Silent),
    "lies: drained": without_role(lies.Drained),
    "lies: gives up": without_role(lies.GivesUp),
    "lies: always drained": without_role(lies.AlwaysDrained),
    "lies: always drained, with a thread": lies.AlwaysDrainedThread,
    "lies: done when sent": without_role(lies.DoneWhenSent),
    "lies: asynchronous": lies.Asynchronous,
    "lies: synchronous": lies.Synchronous,
    "lies: entries": lies.Limited,
    "lies: entry bytes": lies.LimitedEntry,
    "lies: settles": lies.Settles,
    "lies: settles in words": lies.SettlesInWords,
    "lies: descriptors": lies.Descriptors,
    "lies: kinds": lies.Kinds,
    "lies: aux": lies.Aux,
    "lies: revocable": lies.Revocable,
}
