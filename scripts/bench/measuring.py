"""What the speed benchmarks share: drawn prompts, a random model, counted work, and children that run in turn.

Every measurement is a process of its own, so memory is its own too; implementations alternate within a round, so that a
busy machine slows all of them. Seconds are CPU time of one thread, the minimum over rounds and steps. `Place` says
where a model runs: on a GPU, seconds are wall time until it has done its work.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from unittest import mock

from unifiedreward_think.writing import write_whole

SIDE = 512  # of a picture
LIMIT = 1e-5  # of a relative difference to TRL, in float32
WORDS = ["semantic", "consistency", "image", "better", "score"]


def settle():
    """Start this process again with one thread and a heap that is kept.

    Otherwise glibc hands large blocks back after each use, and page faults make big batches look several times worse.
    """
    limits = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**34), "OMP_NUM_THREADS": "1"}
    limits |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if any(os.environ.get(key) != value for key, value in limits.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})


@dataclass(frozen=True)
class Place:
    """Where a model runs, in which dtype and with which attention, and how its time and memory are measured."""

    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"

    def arguments(self):
        """Return what TRL's configs need to know of it."""
        return {"use_cpu": self.device == "cpu", "bf16": self.dtype == "bfloat16"}

    def load(self, folder):
        """Load a model, or fill it with random weights where the folder holds its config alone.

        They are the same in float32 and in bfloat16, which holds them exactly.
        """
        import torch
        import transformers

        from unifiedreward_think.models.loading import load_model

        if any(Path(folder).glob("*.safetensors")):
            return load_model(folder, dtype=self.dtype, attn_implementation=self.attention).to(self.device)
        config = transformers.AutoConfig.from_pretrained(folder)
        torch.manual_seed(0)
        with torch.device(self.device):  # drawn where they stay; buffers, which no checkpoint holds, are computed
            network = transformers.AutoModelForImageTextToText.from_config(
                config, dtype=torch.bfloat16, attn_implementation=self.attention
            )
        network.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        return (network.float() if self.dtype == "float32" else network).eval()

    def reference(self, folder):
        """Let TRL take its reference model from `load` while the context lasts."""
        return mock.patch("trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: self.load(folder))

    def seconds(self):
        """Return CPU time of this process; on a GPU the time by the clock, once it has done what it was given."""
        if self.device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def memory(self):
        """Return the MiB in use, from which `peak_memory` counts: of this process its peak so far."""
        if self.device == "cpu":
            return peak_memory()
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20

    def peak_memory(self):
        """Return the most MiB in use since `memory` was called."""
        if self.device == "cpu":
            return peak_memory()
        import torch

        return torch.cuda.max_memory_allocated() / 2**20


@dataclass(frozen=True)
class Prompt:
    """A prompt to draw: noise pictures, words, and the words of each of its answers."""

    pictures: int = 2
    words: int = 290
    side: int = SIDE
    answers: tuple[int, ...] = ()


def make_rows(folder, prompts):
    """Draw rows: one for each prompt, or for each of its answers."""
    import numpy as np
    from PIL import Image

    random, rows = np.random.default_rng(0), []

    def text(words):
        return {"type": "text", "text": " ".join(random.choice(WORDS, words))}

    for number, prompt in enumerate(prompts):
        files = [folder / f"{number}-{place}.png" for place in range(prompt.pictures)]
        for file in files:
            Image.fromarray(random.integers(0, 255, (prompt.side, prompt.side, 3), dtype=np.uint8)).save(file)
        content = [{"type": "image", "text": None} for _ in files] + [text(prompt.words)]
        row = {"prompt": [{"role": "user", "content": content}], "images": [str(file) for file in files]}
        row["task"] = "image_generation"
        answers = [{"completion": [{"role": "assistant", "content": [text(words)]}]} for words in prompt.answers]
        rows += [{**row, "number": number, **answer} for answer in answers or [{}]]
    return rows


def build_model(folder, *, hidden=256, layers=4, vocabulary=None):
    """Write a random Qwen2.5-VL and return its folder."""
    from unifiedreward_think.models import tiny

    size = tiny.Size(hidden=hidden, layers=layers, vision_hidden=128, patch=14, side=SIDE, init=0.02)
    tiny.build("qwen2_5_vl", folder, corpus=[" ".join(WORDS)], size=size)
    if vocabulary:
        import torch

        from unifiedreward_think.models.loading import load_model

        torch.manual_seed(0)
        network = load_model(folder, dtype="float32")
        network.resize_token_embeddings(vocabulary, mean_resizing=False)
        network.save_pretrained(folder)
    return folder


class Work:
    """Counts what passes through a model; language model and tower are hooked whole, so recomputation counts once."""

    def __init__(self):
        self.counts, self.input_seconds, self.waited_seconds, self.rollout_seconds = Counter(), [], [], []
        self._timing, self._timed, self._waited = threading.local(), 0.0, 0.0

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
        """Count the pictures that go through a processor, and the seconds from files of pictures to a model's input."""
        import datasets

        from unifiedreward_think.data.picture_column import Picture

        image_processor, work = processor.image_processor, self

        class Counting(type(image_processor)):
            def __call__(self, images, *args, **kwargs):
                work.counts["pictures processed"] += sum(len(i) if isinstance(i, list) else 1 for i in images)
                return super().__call__(images, *args, **kwargs)

        class Timed(type(processor)):
            def __call__(self, *args, **kwargs):
                return work.timed(super().__call__, *args, **kwargs)

            def apply_chat_template(self, *args, **kwargs):  # calls the other one
                return work.timed(super().apply_chat_template, *args, **kwargs)

        def timed(decode):
            return lambda *args, **kwargs: work.timed(decode, *args, **kwargs)

        for column in (datasets.Image, Picture):  # TRL's, and ours
            column.decode_example = timed(column.decode_example)
        image_processor.__class__ = Counting
        processor.__class__ = Timed

    def watch_rollouts(self, trainer, place):
        """Note the seconds that completions take to be written, prefill included."""
        method = trainer._generate_single_turn

        def call(*args, **kwargs):
            started = place.seconds()
            found = method(*args, **kwargs)
            self.rollout_seconds.append(place.seconds() - started)
            return found

        trainer._generate_single_turn = call

    def timed(self, function, *args, **kwargs):
        """Call a function and count its time, unless it is called by one that is counted.

        What the main thread spends here is time that the model waits for.
        """
        if hasattr(self._timing, "started"):
            return function(*args, **kwargs)
        self._timing.started, started = time.perf_counter(), time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            self._timed += time.thread_time() - started
            if threading.current_thread() is threading.main_thread():
                self._waited += time.perf_counter() - self._timing.started
            del self._timing.started

    def end_step(self):
        self.input_seconds.append(self._timed)
        self.waited_seconds.append(self._waited)
        self._timed = self._waited = 0.0


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB


def difference(log, reference, least):
    """Return the largest relative difference of two logs; values below `least` count relative to it."""
    pairs = [(a[key], b[key]) for a, b in zip(log, reference, strict=True) for key in a.keys() & b.keys()]
    return max(abs(a - b) / max(abs(b), least) for a, b in pairs)


def in_turn(impls, rounds, arguments):
    """Run this script once more with `--only` for each implementation and round; return what the children report."""
    found = {impl: [] for impl in impls}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "one.json")
        for _ in range(rounds):
            for impl in impls:
                words = [sys.executable, sys.argv[0], *map(str, arguments), "--only", impl, "--output", str(output)]
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
                found[impl].append(json.loads(output.read_text()))
    return found


def compare(found, *, least=1e-3):
    """Return a table row for each implementation: time, memory, work, and whether its numbers are those of TRL."""
    fastest = {impl: min(second for one in runs for second in one["seconds"]) for impl, runs in found.items()}
    table = {}
    for impl, runs in found.items():
        row = table[impl] = {"cpu_seconds": round(fastest[impl], 3)}
        row["all_seconds"] = [round(second, 3) for one in runs for second in one["seconds"]]
        row |= {key: value for key, value in runs[-1].items() if key not in ("seconds", "peak_memory_mib")}
        row["peak_memory_mib"] = round(min(one["peak_memory_mib"] for one in runs))
        if impl != "trl" and "trl" in found:
            gap = max(difference(one["log"], found["trl"][-1]["log"], least) for one in runs)
            row |= {"largest_relative_difference_to_trl": gap, "least_value": least, "equal": gap < LIMIT}
    for impl in found.keys() - {"ours"} if "ours" in found else ():
        table[impl]["times_ours"] = round(fastest[impl] / fastest["ours"], 2)
        table[impl]["memory_times_ours"] = round(table[impl]["peak_memory_mib"] / table["ours"]["peak_memory_mib"], 2)
    return table


def save(report, file):
    """Write a report with the versions that made it."""
    report["versions"] = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    write_whole(file, json.dumps(report, indent=1) + "\n")


def plot(points, label, file, seconds=("cpu_seconds", "CPU seconds")):
    """Draw seconds, in a field with a title, and memory of each implementation over the values of `points`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axes, (key, title) in zip(panels, (seconds, ("peak_memory_mib", "MiB")), strict=True):
        for impl in dict.fromkeys(impl for rows in points.values() for impl in rows):
            measured = [(int(value), rows[impl][key]) for value, rows in points.items() if impl in rows]
            axes.plot(*zip(*measured, strict=True), "o-", label=impl)
        axes.set(xlabel=label, ylabel=title, ylim=(0, None))
    panels[0].legend()
    figure.savefig(file, dpi=120)
