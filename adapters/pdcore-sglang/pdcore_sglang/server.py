"""The bootstrap service, in the process where SGLang has its own: that of the prefill server's tokenizer."""

from __future__ import annotations

import logging

from sglang.srt.disaggregation.base.conn import BaseKVBootstrapServer

from pdcore import BootstrapServer
from pdcore_sglang import settings

__all__ = ["PdcoreBootstrapServer"]

log = logging.getLogger(__name__)


class PdcoreBootstrapServer(BaseKVBootstrapServer):
    """pdcore's bootstrap service on SGLang's host and port; it serves as long as the server lives.

    Raises:
        BootstrapError: the port is in use.
        ConfigError: pdcore's configuration is wrong.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = BootstrapServer(host, port, auth_key=settings.load().config.auth_key)
        self._server.start()
        log.info("pdcore's bootstrap service: %s", self._server.address)

    def close(self) -> None:
        """Stop serving."""
        self._server.close()
