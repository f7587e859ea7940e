"""Which wire protocol an engine gets: the one place that decides, for every path that starts an engine.

The engine accepts any protocol string and makes of it what its build, the machine and variables that
only need to be present say (transfer_engine_impl.cpp), so all of them are looked at here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from pd_mooncake.build import look
from pd_mooncake.config import Protocol
from pdcore.contract.backend import ProtocolChoice, ProtocolVerdict
from pdcore.model import Certainty, EffectiveTransport
from pdcore.selection.installation import Installation

__all__ = ["RULES", "SWITCHES", "Machine", "Rule", "choose", "effective", "forbidden", "start_environment"]


@attrs.frozen
class Rule:
    """What belongs to a protocol: its variant, the variable that forces it, a flag of builds that have it,
    and the device that it needs."""

    variant: str
    switch: str = ""
    flag: str = ""
    device: str = ""


RULES = {
    Protocol.RDMA: Rule("mooncake_rdma", "MC_FORCE_HCA", device="RDMA device in /sys/class/infiniband"),
    Protocol.TCP: Rule("mooncake_tcp", "MC_FORCE_TCP"),
    Protocol.EFA: Rule("mooncake_efa", flag="SUPPORT_EFA", device="EFA device in /sys/class/infiniband"),
    Protocol.ASCEND: Rule("mooncake_ascend", device="NPU in /dev"),
    Protocol.NVLINK: Rule("mooncake_nvlink", "MC_FORCE_MNNVL", "SUPPORT_MNNVL"),
    Protocol.INTRA_NVLINK: Rule("mooncake_intra_nvlink", "MC_INTRANODE_NVLINK", "SUPPORT_INTRA_NVLINK"),
}
SWITCHES = tuple(rule.switch for rule in RULES.values() if rule.switch)


@attrs.frozen
class Machine:
    """What there is to choose from: the build, and the devices by protocol."""

    build: Installation
    devices: Mapping[Protocol, tuple[str, ...]]

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine."""
        verbs = sorted(Path("/sys/class/infiniband").glob("*"))
        efa = [path for path in verbs if (path / "device" / "driver").resolve().name == "efa"]
        found = {
            Protocol.RDMA: [path for path in verbs if path not in efa],
            Protocol.EFA: efa,
            Protocol.ASCEND: sorted(Path("/dev").glob("davinci[0-9]*")),
        }
        return cls(look(), {key: tuple(path.name for path in paths) for key, paths in found.items()})


def forbidden(protocol: Protocol) -> dict[str, str]:
    """Return the variables that contradict a protocol, and why."""
    forced = {rule.switch: key.value for key, rule in RULES.items() if rule.switch and key is not protocol}
    return {name: f"it counts as set whatever its value, and means {forced[name]}" for name in forced}


def start_environment(protocol: Protocol) -> dict[str, str | None]:
    """Return the switches as an engine of this protocol must see them while it starts; None: not set."""
    return {name: "1" if name == RULES[protocol].switch else None for name in SWITCHES}


def choose(
    given: Protocol | None,
    candidates: tuple[Protocol, ...],
    device: str,
    machine: Machine,
    environ: Mapping[str, str],
) -> ProtocolChoice:
    """Choose among the candidates: what was ``given``, else by the machine's devices, else RDMA.

    TCP and NVLink are only used when they are asked for: they would hide that a device is missing.
    """
    against = {protocol: _objection(protocol, device, machine, environ) for protocol in candidates}
    by_itself = (p for p in machine.devices if p in against and against[p] is None)
    wanted = given or next(by_itself, Protocol.RDMA)
    verdicts = []
    for protocol in sorted(candidates, key=lambda p: p is not wanted):
        objection, devices = against[protocol], ", ".join(machine.devices.get(protocol, ()))
        ground = f"there is {devices}" if devices else f"possible, when asked for ({RULES[protocol].variant})"
        verdicts.append(
            ProtocolVerdict(protocol.value, objection is None, objection[0] if objection else ground)
        )
    refused = against[wanted]
    return ProtocolChoice(None if refused else wanted.value, tuple(verdicts), refused[1] if refused else "")


def effective(protocol: Protocol, announced: str | None) -> EffectiveTransport:
    """Return what is known of a started engine's transport; ``announced`` is what it tells its peers."""
    if announced is not None:
        how = "the engine announces it to its peers, who choose the transport by that"
        return EffectiveTransport(announced, Certainty.VERIFIED, how)
    if switch := RULES[protocol].switch:
        how = f"{switch} was set while it started; the engine did not tell"
        return EffectiveTransport(protocol.value, Certainty.INFERRED, how)
    return EffectiveTransport(protocol.value, Certainty.UNKNOWN, "asked for; the engine did not tell")


def _objection(
    protocol: Protocol, device: str, machine: Machine, environ: Mapping[str, str]
) -> tuple[str, str] | None:
    """Return why a protocol cannot be used here, and what to do about it."""
    rule, flags, there = RULES[protocol], machine.build.flags, machine.devices.get(protocol, ())
    contrary = {name: why for name, why in forbidden(protocol).items() if name in environ}
    if contrary:
        reason = "; ".join(f"{name}={environ[name]} is set: {why}" for name, why in contrary.items())
        return reason, f"unset {' '.join(contrary)}, or select the variant that it means"
    if rule.flag and rule.flag not in flags:
        return f"this build has no {rule.flag}", "install a build that has it, in place of this one"
    if protocol is Protocol.RDMA and "SUPPORT_EFA" in flags:
        return "an EFA build would use TCP", "select mooncake_efa, or install another build"
    if rule.device and not there:
        others = [RULES[p].variant for p, found in machine.devices.items() if found] + ["mooncake_tcp"]
        reason = f"no {rule.device}, the engine would use TCP or fail"
        return reason, f"select {' or '.join(others)}, or bring a device up"
    unknown = [name for name in device.split(",") if name and name not in there]
    if unknown:
        reason = f"no {protocol.value} device {', '.join(unknown)}, there is {', '.join(there) or 'none'}"
        return reason, "correct the device option, or leave it out"
    return None
