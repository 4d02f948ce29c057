"""CPU time, work and memory of an SFT step: TRL's padded rows against packed sequences.

    python scripts/bench/sft_step.py --rows mixed siblings --output results/sft_step.json

`mixed` is a batch of 8 rows with 1, 2 or 8 pictures and answers of 100 to 400 words; `siblings` is 2 prompts with 4
answers each, as rejection sampling with `keep: all` leaves them. Both train one random Qwen2.5-VL on the same batches,
so their losses must agree: a time without its `equal` field is void. The first step of each process warms up and is not
timed.
"""

import argparse
import tempfile
from pathlib import Path

import measuring

LOGGED = ("loss", "grad_norm", "entropy", "mean_token_accuracy")


def prompts(kind, steps):
    """Return the prompts of all steps, 8 rows a step."""
    import numpy as np

    random, drawn = np.random.default_rng(1), []
    for _ in range(steps):
        if kind == "siblings":
            drawn += [measuring.Prompt(answers=tuple(random.integers(100, 200, 4))) for _ in range(2)]
            continue
        for pictures in (2, 1, 2, 8, 1, 2, 2, 1):
            side = 168 if pictures == 8 else int(random.choice([224, 280, 336, 364]))
            words, answer = random.integers(150, 350), random.integers(100, 400)
            drawn.append(measuring.Prompt(pictures=pictures, words=words, side=side, answers=(answer,)))
    return drawn


def build(settings, rows, folder, callback):
    """Return the trainer to measure; both kinds see the rows in the order in which they were drawn."""
    import torch
    import trl

    from unifiedreward_think.data.rows import to_dataset
    from unifiedreward_think.models.loading import freeze_vision, load_processor
    from unifiedreward_think.training.trainers.sft import SFTTrainer
    from unifiedreward_think.training.trainers.shared_prefix_sft import SharedPrefixSFTTrainer

    args = trl.SFTConfig(
        output_dir=str(folder), **settings.place.arguments(), report_to="none", disable_tqdm=True, save_strategy="no",
        logging_steps=1, max_steps=settings.steps, per_device_train_batch_size=8, max_length=None,
        learning_rate=1e-4, lr_scheduler_type="constant", activation_checkpointing=settings.checkpointing,
    )  # fmt: skip
    network, processor = settings.place.load(settings.model), load_processor(settings.model)
    freeze_vision(network)
    cls = SFTTrainer if settings.only == "trl" else SharedPrefixSFTTrainer
    dataset, order = to_dataset(rows), torch.utils.data.SequentialSampler(rows)
    return cls(network, args, train_dataset=dataset, processing_class=processor, callbacks=[callback], sampler=order)


def measure(settings):
    """Measure one implementation on one kind of rows, in this process."""
    import transformers

    seconds, work = [], measuring.Work()

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            now = settings.place.seconds()
            seconds.append(now - self.started)
            self.started = now

        def on_train_begin(self, args, state, control, **_):
            self.started = settings.place.seconds()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = measuring.make_rows(folder, prompts(settings.kind, settings.steps))
        trainer = build(settings, rows, folder / "run", Clock())
        work.watch(trainer.model)
        work.watch_pictures(trainer.processing_class)
        before = settings.place.memory()
        trainer.train()
    log = [{key: row[key] for key in LOGGED} for row in trainer.state.log_history if "loss" in row]
    per_step = {key: round(value / settings.steps) for key, value in sorted(work.counts.items())}
    memory = settings.place.peak_memory() - before
    return {"seconds": seconds[1:], "log": log, "work_per_step": per_step, "peak_memory_mib": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--impl", default="trl,ours", help="which to run, separated by commas")
    add("--rows", nargs="+", choices=("mixed", "siblings"), default=["mixed", "siblings"], help="which batches")
    add("--steps", type=int, default=3, help="optimizer steps of a process; the first is not timed")
    add("--rounds", type=int, default=1, help="of every implementation, in turn")
    add("--model", type=Path, help="a Qwen2.5-VL; a random one of 4 layers by default")
    add("--checkpointing", action="store_true", help="of activations, as in the configs for GPUs")
    add("--output", type=Path, required=True, help="JSON file to write")
    add("--only", choices=("trl", "ours"), help=argparse.SUPPRESS)  # what one process measures
    add("--kind", help=argparse.SUPPRESS)
    parser.set_defaults(place=measuring.Place())
    settings = parser.parse_args()
    measuring.settle()
    if settings.only:
        return measuring.save(measure(settings), settings.output)
    report = {"arguments": {key: str(value) for key, value in vars(settings).items()}, "rows": {}}
    with tempfile.TemporaryDirectory() as name:
        model = settings.model or measuring.build_model(Path(name, "model"))
        for kind in settings.rows:
            words = ["--kind", kind, "--steps", settings.steps, "--model", model]
            words += ["--checkpointing"] * settings.checkpointing
            report["rows"][kind] = table = measuring.compare(
                measuring.in_turn(settings.impl.split(","), settings.rounds, words)
            )
            measuring.save(report, settings.output)
            for impl, row in table.items():
                print(kind, impl, {k: v for k, v in row.items() if k != "log"}, flush=True)


if __name__ == "__main__":
    main()
