"""Load models as a stage does under ZeRO-3, and write what came of each. Run by test_soundness.py on two ranks."""

import json
import os
import sys
from pathlib import Path

import deepspeed
from trl import ModelConfig, SFTConfig

from unifiedreward_think.errors import InputError
from unifiedreward_think.training.arguments import DataArguments, TrainingExtras
from unifiedreward_think.training.run import load, run_stage

CONFIG = "configs/deepspeed/zero3_cpu.json"


def main() -> None:
    """Write OUTPUT/rankN.json: the error, or "loaded", for each folder of a model on the command line."""
    output, said = Path(sys.argv[1]), []
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    args = SFTConfig(output_dir=str(output / "run"), use_cpu=True, bf16=False, deepspeed=CONFIG, report_to="none")
    for folder in sys.argv[2:]:
        model_args = ModelConfig(model_name_or_path=folder, dtype="float32")
        try:
            model = load(model_args, DataArguments(train_files=[]), TrainingExtras(), args, {})[0]
            said.append("loaded" if hasattr(model.lm_head.weight, "ds_id") else "not partitioned")
        except InputError as error:
            said.append(str(error))
    (output / f"rank{os.environ['RANK']}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    run_stage(main)
