"""SGLang serves prefill and decode through pdcore: ``--disaggregation-transfer-backend pdcore_<backend>``.

:mod:`pdcore_sglang.plugin` makes it known to SGLang, and :mod:`pdcore_sglang.engine` reads SGLang's
configuration. Manager, handles and server are classes of SGLang's; the rest knows its lists of pointers.
"""

from __future__ import annotations

__version__ = "0.1.0"
