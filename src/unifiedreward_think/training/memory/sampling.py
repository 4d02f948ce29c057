"""A whole run of rejection sampling: tokens, bytes on disk, hours; and how many sequences are written at a time.

Tokens are those of the longest prompts and completions, so at most; a mean length of completions gives a mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from unifiedreward_think.training.memory.architecture import Architecture
from unifiedreward_think.training.memory.estimate import cache_bytes, plan, prompt_length
from unifiedreward_think.training.memory.job import Job

# Of a completion in JSON, by the tokenizer of Qwen2.5-VL: measured on the 1,735 comparisons of GPT-4o that GenAI-Bench
# publishes (tests/test_plan_sampling.py).
BYTES_PER_TOKEN = 4.5
ROW_BYTES = 1000  # of a judgment besides its completion: 760 in runs of the toy judge, whose names are short


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What a run reads and writes.

    Attributes:
        completions: in all.
        text_tokens, picture_tokens: of all prompts, each read once for its samples.
        completion_tokens: of all completions.
        judgment_bytes: of judgments.jsonl.
    """

    completions: int
    text_tokens: int
    picture_tokens: int
    completion_tokens: int
    judgment_bytes: int

    def hours(self, job: Job, tokens_per_second: float) -> float:
        """Return how long all engines write, each so many tokens a second."""
        return self.completion_tokens / (tokens_per_second * job.engines) / 3600


def volume(shape: Architecture, job: Job, pairs: int) -> Volume:
    """Count what sampling so many pairs takes."""
    prompts = pairs * (2 if job["orders"] == "both" else 1)
    completions = prompts * int(job["samples"])
    tokens = completions * job.completion_tokens
    return Volume(
        completions=completions,
        text_tokens=prompts * job.prompt_tokens,
        picture_tokens=prompts * (prompt_length(shape, job) - job.prompt_tokens),
        completion_tokens=tokens,
        judgment_bytes=completions * ROW_BYTES + int(tokens * BYTES_PER_TOKEN),
    )


def room(shape: Architecture, job: Job) -> int:
    """Return the bytes of a GPU that a vLLM engine has for the KV cache: what it takes, less all else."""
    planned = plan(shape, job)
    return job.gpu_memory - planned.total + planned.phases["generation"]["KV cache"]


def at_a_time(shape: Architecture, job: Job, shared: int = 1) -> int:
    """Return how many of the longest sequences a vLLM engine has room for, `shared` of which have one prompt."""
    tokens = prompt_length(shape, job) + shared * job.completion_tokens
    return max(0, room(shape, job)) // (tokens * cache_bytes(shape, job)) * shared
