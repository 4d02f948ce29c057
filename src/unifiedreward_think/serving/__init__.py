"""The reward server: candidates in over HTTP, verdicts, win rates and scores out.

docs/reward_server.md describes the protocol; `bash scripts/serve.sh` starts it on the toy model.
"""

from __future__ import annotations

# Pref-GRPO's clients ask for the first name, Flow-GRPO's for the second.
MODEL_NAMES = ("UnifiedReward", "UnifiedReward-7b-v1.5")
