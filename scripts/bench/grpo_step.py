"""CPU time, work and memory of a GRPO step: the published trainer's algorithm, TRL's passes, and shared prefixes.

    python scripts/bench/grpo_step.py --impl original,trl,ours --memory --output outputs/bench/grpo_step.json

`original` is our transcription of the published trainer: pixel values and prompt repeated for each completion in every
pass, full-vocabulary logits of all positions. All start from one random Qwen2.5-VL (or one at --model), see the same
pictures and draw from the same seeds, so their losses must agree: a time without its `equal` field is void. Times are
single-thread CPU seconds, the minimum over the steps after the first of interleaved rounds. --memory runs each
implementation once more in a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

from unifiedreward_think.writing import write_whole

GROUP = 8  # completions of a prompt
PROMPT_WORDS = 290
SIDE = 512  # of the two pictures
LOGGED = ("loss", "grad_norm", "kl", "reward")
LORA = {"r": 8, "target_modules": r".*language_model.*(q_proj|v_proj|up_proj)", "lora_dropout": 0.0}


def make_rows(folder, count):
    """Draw prompts of two noise pictures and some words each."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        files = [folder / f"{number}-{side}.png" for side in (1, 2)]
        for file in files:
            Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(file)
        text = " ".join(random.choice(["semantic", "consistency", "image", "better", "score"], PROMPT_WORDS))
        content = [{"type": "image", "text": None}, {"type": "image", "text": None}, {"type": "text", "text": text}]
        rows.append({"prompt": [{"role": "user", "content": content}], "images": [str(file) for file in files]})
    return rows


def reward(completion_ids, **_):
    """Reward the mean token number; constant where no group should learn (`dead`)."""
    return [sum(ids) / len(ids) % 1.0 for ids in completion_ids]


def dead_reward(completion_ids, **_):
    return [1.0 for _ in completion_ids]


class Work:
    """Counts what passes through a model; language model and tower are hooked whole, so recomputation counts once."""

    def __init__(self):
        self.counts = Counter()

    def watch(self, network):
        network = network.get_base_model() if hasattr(network, "get_base_model") else network
        network.model.language_model.register_forward_pre_hook(self._tokens, with_kwargs=True)
        network.model.visual.register_forward_pre_hook(self._patches, with_kwargs=True)

    def _tokens(self, _, args, kwargs):
        import torch

        rows, length = kwargs["inputs_embeds"].shape[:2]
        cached = kwargs.get("use_cache") or kwargs.get("past_key_values") is not None
        generating = "decode tokens" if length == 1 else "prefill tokens"
        kind = "policy tokens" if torch.is_grad_enabled() else generating if cached else "reference tokens"
        self.counts[kind] += rows * length

    def _patches(self, _, args, kwargs):
        self.counts["vision patches"] += len(args[0])

    def watch_pictures(self, processor):
        image_processor = processor.image_processor
        work = self

        class Counting(type(image_processor)):
            def __call__(self, images, *args, **kwargs):
                work.counts["pictures processed"] += sum(len(i) if isinstance(i, list) else 1 for i in images)
                return super().__call__(images, *args, **kwargs)

        image_processor.__class__ = Counting


def train(impl, settings, rows, model, folder):
    """Run some steps of TRL's trainer or ours; return seconds of each step, the log, and the work."""
    import torch
    import transformers
    import trl

    from unifiedreward_think.data.rows import to_dataset
    from unifiedreward_think.models.loading import freeze_vision, load_model, load_processor
    from unifiedreward_think.training.shared_prefix_trainer import SharedPrefixGRPOTrainer

    seconds, work = [], Work()

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            torch.manual_seed(1000 + state.global_step)
            self.started = time.process_time()

        def on_step_end(self, args, state, control, **_):
            seconds.append(time.process_time() - self.started)

    args = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=settings.steps,
        per_device_train_batch_size=GROUP,
        num_generations=GROUP,
        max_completion_length=settings.length,
        generation_kwargs={"min_new_tokens": settings.length},
        beta=settings.beta,
        use_bias_correction_kl=False,
        loss_type="grpo",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        activation_checkpointing=True,
    )
    network, processor = load_model(model, dtype="float32"), load_processor(model)
    freeze_vision(network)
    lora = None
    if settings.lora:
        from peft import LoraConfig

        lora = LoraConfig(**LORA)
    trainer = {"trl": trl.GRPOTrainer, "ours": SharedPrefixGRPOTrainer}[impl](
        model=network,
        reward_funcs=dead_reward if settings.dead else reward,
        args=args,
        train_dataset=to_dataset(rows),
        processing_class=processor,
        peft_config=lora,
        callbacks=[Clock()],
    )
    for watched in filter(None, (trainer.model, trainer.ref_model)):
        work.watch(watched)
    work.watch_pictures(processor)
    before = peak_memory()
    trainer.train()
    log = [{key: row[key] for key in LOGGED if key in row} for row in trainer.state.log_history if "loss" in row]
    return seconds, log, work.counts, peak_memory() - before


def original(settings, rows, model):
    """Run the steps as the published trainer does, on today's transformers."""
    import torch
    from PIL import Image
    from transformers import GenerationConfig

    from unifiedreward_think.models.loading import freeze_vision, load_model, load_processor

    network, reference = (load_model(model, dtype="float32") for _ in range(2))
    processor, work = load_processor(model), Work()
    freeze_vision(network)
    network.gradient_checkpointing_enable({"use_reentrant": False})
    for watched in (network, reference):
        work.watch(watched)
    work.watch_pictures(processor)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    tokens = (network.config.image_token_id, *network.generation_config.eos_token_id)
    config = GenerationConfig(
        max_new_tokens=settings.length,
        min_new_tokens=settings.length,
        do_sample=True,
        top_k=0,
        pad_token_id=network.generation_config.pad_token_id,
        eos_token_id=list(tokens[1:]),
        suppress_tokens=[network.config.image_token_id],
    )
    before, seconds, log = peak_memory(), [], []
    for step in range(settings.steps):
        torch.manual_seed(1000 + step)
        started = time.process_time()
        row = rows[step % len(rows)]
        pictures = [Image.open(file) for file in row["images"]]
        text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=pictures, return_tensors="pt").to(network.device)
        inputs = {key: value.repeat(GROUP, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
        with torch.no_grad():
            ids = network.generate(**inputs, generation_config=config)
        new = ids[:, inputs["input_ids"].shape[1] :]
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], 1)
        media = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}

        def logps(model, ids=ids, types=types, media=media, length=new.shape[1]):
            logits = model(ids, mm_token_type_ids=types, use_cache=False, **media).logits[:, :-1]
            rows = zip(logits, ids[:, 1:], strict=True)
            return torch.stack([one.log_softmax(-1).gather(1, row[:, None])[-length:, 0] for one, row in rows])

        with torch.no_grad():
            wanted = logps(reference)
        scored = logps(network)
        rewards = torch.tensor((dead_reward if settings.dead else reward)(new.tolist()))
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        kl = (wanted - scored).exp() - (wanted - scored) - 1
        loss = -((scored - scored.detach()).exp() * advantages[:, None] - settings.beta * kl).mean(1).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
        values = {"loss": loss, "grad_norm": norm, "kl": kl.mean(), "reward": rewards.mean()}
        log.append({key: value.item() for key, value in values.items()})
    return seconds, log, work.counts, peak_memory() - before


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB


def measure(impl, settings, rows, model, folder):
    if impl == "original":
        return original(settings, rows, model)
    return train(impl, settings, rows, model, folder)


def difference(log, reference):
    """Return the largest relative difference of two logs, with 1e-3 as the least scale."""
    pairs = [(a[key], b[key]) for a, b in zip(log, reference, strict=True) for key in a.keys() & b.keys()]
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)


def report_length(settings, impls, rows, model, folder):
    """Return the table rows of one completion length."""
    times, logs, work, memory = {impl: [] for impl in impls}, {}, {}, {}
    for _ in range(settings.rounds):
        for impl in impls:
            seconds, logs[impl], counts, memory[impl] = measure(impl, settings, rows, model, folder)
            times[impl] += seconds[1:]
            work[impl] = {key: round(value / settings.steps) for key, value in sorted(counts.items())}
    table = {}
    for impl in impls:
        table[impl] = {"cpu_seconds": round(min(times[impl]), 3), "all_seconds": [round(s, 3) for s in times[impl]]}
        table[impl] |= {"work_per_step": work[impl], "log": logs[impl]}
        if "trl" in impls and impl != "trl":
            gap = difference(logs[impl], logs["trl"])
            table[impl] |= {"largest_relative_difference_to_trl": gap, "equal": gap < 1e-4}
        if len(impls) == 1:
            table[impl]["peak_memory_mib"] = round(memory[impl])
        elif settings.memory:
            table[impl]["peak_memory_mib"] = memory_alone(impl, settings)
        if "ours" in impls and impl != "ours":
            table[impl]["times_ours"] = round(min(times[impl]) / min(times["ours"]), 2)
    return table


def memory_alone(impl, settings):
    """Return the peak memory over the start of training, of two steps in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "one.json")
        command = [sys.executable, __file__, "--impl", impl, "--new-tokens", str(settings.length), "--steps", "2"]
        command += ["--rounds", "1", "--beta", str(settings.beta), "--output", str(output)]
        command += ["--lora"] * settings.lora + ["--dead"] * settings.dead
        subprocess.run(command, check=True, capture_output=True)
        found = json.loads(output.read_text())["lengths"][str(settings.length)][impl]["peak_memory_mib"]
    return found


def build_model(folder):
    from unifiedreward_think.models import tiny

    size = tiny.Size(hidden=256, layers=4, vision_hidden=128, patch=14, side=SIDE, init=0.02)
    tiny.build("qwen2_5_vl", folder, corpus=["semantic consistency image better score"], size=size)
    return folder


def plot(report, file):
    """Draw the CPU seconds of a step over the completion length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    lengths = [int(length) for length in report["lengths"]]
    for impl in next(iter(report["lengths"].values())):
        axes.plot(lengths, [table[impl]["cpu_seconds"] for table in report["lengths"].values()], "o-", label=impl)
    axes.set(xlabel="new tokens", ylabel="CPU seconds a step", ylim=(0, None))
    axes.legend()
    figure.savefig(file, dpi=150)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--impl", default="original,trl,ours", help="which to run, separated by commas")
    add("--new-tokens", type=int, nargs="+", default=[24, 64, 160], help="lengths of the completions")
    add("--steps", type=int, default=3, help="optimizer steps of a round; the first is not timed")
    add("--rounds", type=int, default=2, help="of every implementation, in turn")
    add("--beta", type=float, default=0.04, help="weight of the KL term")
    add("--lora", action="store_true", help="train an adapter (trl and ours)")
    add("--dead", action="store_true", help="equal rewards in every group")
    add("--memory", action="store_true", help="also measure memory, in processes of their own")
    add("--model", type=Path, help="a Qwen2.5-VL; a random one of 4 layers by default")
    add("--output", type=Path, required=True, help="JSON file to write")
    add("--plot", type=Path, help="PNG file to draw")
    return parser.parse_args()


def main():
    settings = parse()
    # Otherwise glibc hands large blocks back after each use, and page faults make big batches look several times worse.
    limits = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**34), "OMP_NUM_THREADS": "1"}
    if any(os.environ.get(key) != value for key, value in limits.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})
    report = {"arguments": {key: str(value) for key, value in vars(settings).items()}, "lengths": {}}
    report["versions"] = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    impls = settings.impl.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, model = make_rows(folder, 4), settings.model or build_model(folder / "model")
        for length in settings.new_tokens:
            settings.length = length
            table = report_length(settings, impls, rows, model, folder / "run")
            report["lengths"][str(length)] = table
            write_whole(settings.output, json.dumps(report, indent=1) + "\n")
            for impl, row in table.items():
                print(length, impl, {key: value for key, value in row.items() if key != "log"}, flush=True)
    if settings.plot:
        plot(report, settings.plot)


if __name__ == "__main__":
    main()
