"""Save models loaded under ZeRO-3, by transformers alone and by us. Run by test_zero3.py as its own process."""

import json
import os
import sys
from pathlib import Path

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")

import deepspeed
from safetensors import safe_open
from transformers import AutoModelForImageTextToText
from transformers.integrations import HfDeepSpeedConfig

from unifiedreward_think.models.loading import freeze_vision, load_model
from unifiedreward_think.training.run import run_stage


def main() -> None:
    """Write OUTPUT/keys.json: names and shapes of the tensors saved from each model folder on the command line."""
    output = Path(sys.argv[1])
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    # transformers loads under ZeRO-3 while this object lives.
    _stage_3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    found = {}
    for source in sys.argv[2:]:
        for name, load in (("stock", AutoModelForImageTextToText.from_pretrained), ("ours", load_model)):
            model = load(source)
            with deepspeed.zero.GatheredParameters(list(model.parameters())):
                model.save_pretrained(
                    output, state_dict={key: value.clone() for key, value in model.state_dict().items()}
                )
            with safe_open(output / "model.safetensors", "pt") as file:
                sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            found[f"{source} {name}"] = {"shapes": sizes, "frozen": freeze_vision(model)}
    (output / "keys.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_stage(main)
