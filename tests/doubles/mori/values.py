"""Enums and configurations, with the defaults and type errors of the real binding."""

from __future__ import annotations

from .binding import Int32, Member, Native, NativeEnum, Property, UInt16, UInt64, binding


class BackendType(NativeEnum):
    Unknown = Member(0)
    XGMI = Member(1)
    RDMA = Member(2)
    TCP = Member(3)
    FABRIC = Member(4)


class MemoryLocationType(NativeEnum):
    Unknown = Member(0)
    CPU = Member(1)
    GPU = Member(2)


class StatusCode(NativeEnum):
    SUCCESS = Member(0)
    INIT = Member(1)
    IN_PROGRESS = Member(2)
    ERR_INVALID_ARGS = Member(11)
    ERR_NOT_FOUND = Member(12)
    ERR_RDMA_OP = Member(13)
    ERR_BAD_STATE = Member(14)
    ERR_GPU_OP = Member(15)


class PollCqMode(NativeEnum):
    POLLING = Member(0)
    EVENT = Member(1)


class PeerFailureReason(NativeEnum):
    UNKNOWN = Member(0)
    PEER_UNREACHABLE = Member(1)
    LOCAL_QP_ERROR = Member(2)
    LOCAL_PORT_DOWN = Member(3)
    LOCAL_DEVICE_FATAL = Member(4)
    LOCAL_CQ_ERROR = Member(5)


class PeerFailureEvent(Native):
    remote_engine_key = Property(str, "", readonly=True)
    reason = Property(PeerFailureReason, PeerFailureReason.UNKNOWN, readonly=True)
    qp_num = Property(Int32, 0, readonly=True)
    port_num = Property(Int32, 0, readonly=True)
    device_name = Property(str, "", readonly=True)
    detail = Property(str, "", readonly=True)

    @binding
    def __init__(self) -> None:
        pass


class IOEngineConfig(Native):
    host = Property(str, "")
    port = Property(UInt16, 0)

    @binding
    def __init__(self, host: str = "", port: UInt16 = 0) -> None:
        self.host, self.port = host, port


class BackendConfig(Native):
    def __init__(self) -> None:
        raise TypeError("libmori_pybinds.BackendConfig: No constructor defined!")


class RdmaBackendConfig(BackendConfig):
    qp_per_transfer = Property(Int32, 1)
    post_batch_size = Property(Int32, -1)
    num_worker_threads = Property(Int32, -1)
    poll_cq_mode = Property(PollCqMode, PollCqMode.POLLING)
    enable_notification = Property(bool, True)
    notif_per_qp = Property(Int32, 1024)
    enable_transfer_chunking = Property(bool, False)
    chunk_bytes = Property(UInt64, 65536)
    max_chunks_per_transfer = Property(Int32, 64)
    num_nics_per_transfer = Property(Int32, 1)
    max_send_wr = Property(Int32, 0)
    max_cqe_num = Property(Int32, 0)
    max_msg_sge = Property(Int32, 0)

    @binding
    def __init__(
        self,
        qp_per_transfer: Int32 = 1,
        post_batch_size: Int32 = -1,
        num_worker_threads: Int32 = -1,
        poll_cq_mode: PollCqMode = PollCqMode.POLLING,
        enable_notification: bool = True,
        notif_per_qp: Int32 = 1024,
        enable_transfer_chunking: bool = False,
        chunk_bytes: UInt64 = 65536,
        max_chunks_per_transfer: Int32 = 64,
        num_nics_per_transfer: Int32 = 1,
    ) -> None:
        self.qp_per_transfer, self.post_batch_size = qp_per_transfer, post_batch_size
        self.num_worker_threads, self.poll_cq_mode = num_worker_threads, poll_cq_mode
        self.enable_notification, self.notif_per_qp = enable_notification, notif_per_qp
        self.enable_transfer_chunking, self.chunk_bytes = enable_transfer_chunking, chunk_bytes
        self.max_chunks_per_transfer = max_chunks_per_transfer
        self.num_nics_per_transfer = num_nics_per_transfer

    def _refusal(self) -> str | None:
        """Return what ``create_backend`` says to these values, or None."""
        if self.enable_notification and self.notif_per_qp < 1:
            return "notifPerQp must be >= 1 when notification is enabled"
        if self.num_nics_per_transfer < 1:
            return "numNicsPerTransfer must be >= 1"
        if self.max_chunks_per_transfer < 1:
            return "maxChunksPerTransfer must be >= 1"
        if self.enable_transfer_chunking and self.chunk_bytes < 4096:
            return "chunkBytes must be >= 4096 when chunking is enabled"
        return None


class XgmiBackendConfig(BackendConfig):
    num_streams = Property(Int32, 64)
    num_events = Property(Int32, 64)

    @binding
    def __init__(self, num_streams: Int32 = 64, num_events: Int32 = 64) -> None:
        self.num_streams, self.num_events = num_streams, num_events


class FabricBackendConfig(BackendConfig):
    num_streams = Property(Int32, 64)
    num_events = Property(Int32, 64)

    @binding
    def __init__(self, num_streams: Int32 = 64, num_events: Int32 = 64) -> None:
        self.num_streams, self.num_events = num_streams, num_events


@binding
def set_log_level(level: str, /) -> None:
    """Accept any name, as the real one does; the double writes no log."""
