"""What an engine says about itself, and how it takes memory."""

from __future__ import annotations

import numpy as np
import pytest

from pdcore.contract.regions import Region
from pdcore.errors import RegistrationError
from pdcore.model import Certainty, Device, DeviceKind, Role
from pdcore.selection.select import select
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.rules import Rule
from pdcore.testing.target import Target

PROMISES = "drained_on_failure", "revocable", "remote_bounds_checked", "silent_after_close", "aux"


class Contract:
    """The group ``contract``."""

    @Rule(
        "a backend's spec names what it is selected by",
        "an entry point without its variant",
    )
    def test_the_backend_declares_the_name_it_is_selected_by(self, target: Target) -> None:
        backend = select(target.name, target.options)
        assert target.name in {backend.spec.name, *(v.name for v in backend.spec.variants)}
        assert backend.choice.protocol in backend.spec.protocols
        assert isinstance(backend.options, backend.spec.options)

    @Rule(
        "a running engine promises no less than its spec",
        "the spec's capabilities are those of another transport",
    )
    def test_the_engine_keeps_what_the_spec_promises(self, target: Target, engines: EnginesUnderTest) -> None:
        declared, real = (
            select(target.name, target.options).spec.capabilities,
            engines.near().engine.capabilities,
        )
        assert real.memory_kinds <= declared.memory_kinds
        for promise in PROMISES:
            assert getattr(real, promise) >= getattr(declared, promise), (
                f"{promise} is promised, and not kept"
            )

    @Rule(
        "limits are positive or None, costs are seconds",
        "a limit of 0 for 'none', a cost in microseconds",
    )
    def test_limits_are_positive_or_none(self, engines: EnginesUnderTest) -> None:
        capabilities = engines.near().engine.capabilities
        for limit in (capabilities.max_outstanding_entries, capabilities.max_entry_bytes):
            assert limit is None or limit >= 1
        assert 0 <= capabilities.entry_cost < 1, "seconds per entry"

    @Rule(
        "the transport that runs is named, and from what it is known",
        "the transport that was asked for is told as a fact",
    )
    def test_the_effective_transport_says_from_what_it_is_known(self, engines: EnginesUnderTest) -> None:
        transport = engines.near().engine.effective_transport
        assert transport.name
        assert transport.how or transport.certainty is Certainty.UNKNOWN

    @Rule(
        "every engine has an endpoint of its own",
        "an endpoint made of host or process alone",
    )
    def test_every_engine_has_its_own_endpoint(self, engines: EnginesUnderTest) -> None:
        first, second, far = engines.near(), engines.near(), engines.far()
        assert len({first.engine.endpoint(), second.engine.endpoint(), far.endpoint}) == 3

    @Rule(
        "an endpoint does not change while its engine lives",
        "an endpoint made anew with each call",
    )
    def test_an_endpoint_does_not_change(self, engines: EnginesUnderTest) -> None:
        engine = engines.near().engine
        assert engine.endpoint() == engine.endpoint()

    @Rule(
        "a region that cannot be registered is refused by name, and nothing stays registered",
        "register() is overridden, or memory_kinds is not looked at",
    )
    @pytest.mark.parametrize("fault", ["empty", "twice", "unreachable device"])
    def test_a_region_that_cannot_be_registered_is_named(
        self, target: Target, engines: EnginesUnderTest, fault: str
    ) -> None:
        engine = engines.near().engine
        engine.deregister()
        good = Region.of("good", np.zeros(64, np.uint8))
        foreign = next((k for k in DeviceKind if k not in engine.capabilities.memory_kinds), None)
        if fault == "unreachable device" and foreign is None:
            return  # the group ``promises`` tries all kinds
        elsewhere = Device(foreign or DeviceKind.CPU)
        regions = {
            "empty": [good, Region("the-bad-one", good.address, 0)],
            "twice": [Region("the-bad-one", good.address, 64), Region("the-bad-one", good.address, 64)],
            "unreachable device": [good, Region("the-bad-one", good.address, 64, elsewhere)],
        }[fault]
        with pytest.raises(RegistrationError, match="the-bad-one"):
            engine.register(regions)
        engine.register([good])

    @Rule(
        "engines of both roles start",
        "a role that the plugin does not handle",
    )
    def test_both_roles_start(self, target: Target) -> None:
        for role in Role:
            target.start_engine(role).close()
