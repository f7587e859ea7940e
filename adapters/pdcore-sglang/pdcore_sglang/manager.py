"""SGLang's KV manager over a manager of pdcore: one per scheduler process."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.disaggregation.base.conn import BaseKVManager, KVArgs
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.server_args import ServerArgs

import pdcore
from pdcore import DecodeManager, FailureCode, KVTransferError, Pools, PrefillManager, Role
from pdcore.prefill import Announce
from pdcore_sglang import settings
from pdcore_sglang.aux import aux_buffers
from pdcore_sglang.engine import read_rank
from pdcore_sglang.handles import PdcoreReceiver
from pdcore_sglang.layout import kv_pool, state_pools

__all__ = ["PdcoreManager"]

log = logging.getLogger(__name__)


class _Anybody:
    """SGLang's table of prefill groups, and what it has of each of them.

    All are known at once, and alike: a receiver finds the DP rank of its room itself, and none waits in the
    list that SGLang's scheduler goes through once a second.
    """

    dp_size = 1
    follow_bootstrap_room = True

    def get(self, bootstrap_addr: str) -> _Anybody:
        return self


class PdcoreManager(BaseKVManager):
    """Owns pdcore's manager of this rank, and knows the receivers that SGLang asks after by their room.

    Raises:
        PDCoreError: this rank cannot be served; SGLang's process ends with it at its start.
    """

    def __init__(
        self,
        args: KVArgs,
        disaggregation_mode: DisaggregationMode,
        server_args: ServerArgs,
        is_mla_backend: bool | None = False,
    ) -> None:
        rank = read_rank(args, disaggregation_mode, server_args, bool(is_mla_backend))
        config = settings.of_rank(rank)
        backend = pdcore.select(config)
        layout, regions = kv_pool(args, rank)
        pools = Pools(layout, regions, state=state_pools(args, rank), aux=aux_buffers(args, rank))
        parts = backend, pools, rank.topology
        self.kv_args = args
        self.prefill_info_table = _Anybody()
        self.pools, self.config = pools, config
        self.receivers: dict[int, PdcoreReceiver] = {}
        self.prefill: PrefillManager | None = None
        self.decode: DecodeManager | None = None
        if rank.role is Role.PREFILL:
            announce = Announce.BACKGROUND  # SGLang starts the service in another process, meanwhile
            self.prefill = PrefillManager(*parts, rank.bootstrap, config, announce=announce)
        else:
            self.decode = DecodeManager(*parts, config)
        self.enable_deferred_decode_kv_release = self.decode is not None
        transport = self._manager.engine.effective_transport
        log.info("pdcore %s over %s: %s", rank.role.value, rank.backend, transport)

    @property
    def _manager(self) -> PrefillManager | DecodeManager:
        manager = self.prefill or self.decode
        assert manager is not None
        return manager

    def register_to_bootstrap(self) -> None:
        """Nothing: pdcore's manager registers itself, and again as long as it lives."""

    def try_ensure_parallel_info(self, bootstrap_addr: str) -> bool:
        """Whether a receiver may begin: always."""
        return True

    def is_abort_release_safe(self, bootstrap_room: int, required_acks: int) -> bool:
        """Whether nothing of a failed room can land any more; SGLang keeps its pages until then."""
        receiver = self.receivers.get(bootstrap_room)
        return receiver is None or receiver.is_abort_release_safe()

    def clear_deferred_abort_state(self, bootstrap_room: int) -> None:
        """Nothing: the receiver is cleared right after, and takes itself out of the table."""

    def submit_prefill_recompute(self, kv_receiver: PdcoreReceiver, payload: dict[str, Any]) -> None:
        """Fail a request that SGLang wants prefill to compute once more, after its weights were changed."""
        happened = f"room {kv_receiver.bootstrap_room} was retracted: prefill would have to compute it again"
        to_do = "send the request again; or pause generation in a mode that keeps the KV cache"
        there_is = "pdcore-sglang does not ask prefill for that"
        kv_receiver.fail(KVTransferError(FailureCode.PLAN, happened, there_is, to_do))

    def teardown(self) -> None:
        """Close pdcore's manager."""
        self._manager.close()
