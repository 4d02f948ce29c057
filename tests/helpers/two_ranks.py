"""GRPO runs and one of SFT on the ranks of a process group, for test_shared_prefix; not a test file.

torchrun --nproc_per_node 2 tests/helpers/two_ranks.py MODEL TOY_DATA OUTPUT [DEEPSPEED_JSON]
"""

import dataclasses
import json
import sys
from pathlib import Path

from helpers import stages
from helpers.stages import TOY_PROMPTS, data_arguments, mean_token, train_grpo, train_sft
from unifiedreward_think.gathering import gathered
from unifiedreward_think.standings import Sample, earned_together
from unifiedreward_think.training import grpo, parsing, run

# max_stream_tokens holds a group of short prompts but not one of long prompts: ranks need unequally many streams.
RUNS = {
    "beta": {"max_stream_tokens": 200, "activation_checkpointing": True},
    "dead": {"beta": 0.0, "weight_decay": 0.1, "num_iterations": 2, "max_steps": 4},
    "tower": {"max_stream_tokens": 200, "freeze": False},
    "dynamic": {"dynamic_sampling": 8},
    "points": {},  # of two ranks each scores one candidate of every pair
}


def pictures_alone(completion_ids, task, **_):
    """Leave the groups of video tasks without advantage."""
    return [0.5 if "video" in name else value for name, value in zip(task, mean_token(completion_ids), strict=True)]


def held_against_each_other(completion_ids, id, order, solution, **_):
    """Reward mean token numbers as `accuracy_reward` does scores, which a random model does not write."""
    everyone, own = gathered([*map(Sample, id, order, solution, mean_token(completion_ids))])
    found, alone = earned_together(everyone)
    assert not alone
    return found[own]


def rewards(name):
    if name == "points":
        return [held_against_each_other]
    return [pictures_alone if name in ("dead", "dynamic") else mean_token]


def points(toy_data):
    """Both candidates of each pair, called ties, so that every difference of scores counts."""
    data = data_arguments(toy_data, "train")
    data = dataclasses.replace(data, form="pointwise", prompts=str(TOY_PROMPTS / "pointwise"))
    return [{**row, "solution": "equal"} for row in grpo.load_rows(data)[0]]


def train(name, model, toy_data, output, **options):
    chosen = {"max_steps": 3, "learning_rate": 1e-4, **RUNS[name], **options}
    chosen |= {"rows": points(toy_data)} if name == "points" else {}
    return train_grpo(model, toy_data, Path(output) / name, rewards=rewards(name), **chosen)


def train_siblings(model, toy_data, output, **options):
    """SFT on two prompts with two answers each."""
    from unifiedreward_think.training import sft

    rows = sft.load_rows(data_arguments(toy_data, "cold_start"))[0][:2]
    other = [{"role": "assistant", "content": [{"type": "text", "text": "<think>7 + 8 = 15</think>"}]}]
    rows = [row for one in rows for row in (one, {**one, "completion": other})]
    chosen = {"max_steps": 3, "learning_rate": 1e-3, **options}
    return train_sft(model, toy_data, Path(output) / "sft", rows=rows, **chosen)


def write_log(trainer, processor, args, *_, **__):
    """Stand in for `finish`: what was logged is all that is compared."""
    if trainer.is_world_process_zero():
        log = trainer.state.log_history
        Path(args.output_dir, "log_history.json").write_text(json.dumps(log))


def main():
    model, toy_data, output, *deepspeed = map(Path, sys.argv[1:])
    from helpers import second_choice  # noqa: F401 - ranks sample what one process does
    from unifiedreward_think.training import sft

    grpo.finish = sft.finish = write_log
    stages.read_log = lambda output: None  # the test reads it

    options = {"per_device_train_batch_size": 2}
    if deepspeed:
        parsing.prepare_deepspeed(str(deepspeed[0]))
        options["deepspeed"] = str(deepspeed[0])
    for name in RUNS:
        train(name, model, toy_data, output, **options)
    train_siblings(model, toy_data, output, shared_prefix=True, **options)


if __name__ == "__main__":
    run.run_stage(main)
