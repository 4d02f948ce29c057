"""A GRPO step whose completions vLLM writes inside this process; the python of .venv-vllm runs it.

    .venv-vllm/bin/python -m helpers.vllm_grpo MODEL TOY_DATA OUTPUT SHARED_PREFIX

New weights cannot be loaded into a running engine on the CPU. So the one step is taken with those that it has loaded.
"""

import sys
from functools import partial
from pathlib import Path

from trl.generation import vllm_generation

from helpers.stages import mean_token, train_grpo


def main(model, toy_data, output, shared_prefix):
    vllm_generation.VLLMGeneration.sync_weights = lambda self: None
    # vLLM would take bfloat16 for a checkpoint in float32, which is another distribution.
    vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32", enforce_eager=True)
    train_grpo(
        Path(model),
        Path(toy_data),
        Path(output),
        rewards=[mean_token],
        shared_prefix=shared_prefix == "true",
        max_steps=1,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=2048,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
