"""Chaos: prefill and decode processes that are killed, stopped and restarted while requests flow.

``python -m pdcore.testing.chaos --seconds 1800 --seed 1 --backend local``, or ``make chaos ARGS=...``.
"""

from pdcore.testing.chaos.report import ChaosReport
from pdcore.testing.chaos.run import ChaosSettings, run_chaos

__all__ = ["ChaosReport", "ChaosSettings", "run_chaos"]
