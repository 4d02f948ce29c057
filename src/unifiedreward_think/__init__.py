"""UnifiedReward-Think: train, run and measure a multimodal chain-of-thought reward model.

The flow: record -> messages -> completion -> verdict -> judgment -> reward or metric. Importing the package loads
nothing heavy; torch and transformers are imported by the modules that need them.

    from unifiedreward_think import Judge
    judge = Judge("CodeGoat24/UnifiedReward-Think-qwen-7b")
    print(judge("image_generation", "a red kite", ["a.png", "b.png"]).winner)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unifiedreward_think.interrupts import end_at_once, is_command

if TYPE_CHECKING:
    from unifiedreward_think.judging.api import Judge

__all__ = ["Judge", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `Judge` when it is first asked for, so that importing the package stays fast."""
    if name != "Judge":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unifiedreward_think.judging.api import Judge

    return Judge


if is_command():
    end_at_once()
