"""Does a stage fit? The memory of one GPU and the tokens of a step, for a config and a number of GPUs.

    python -m unifiedreward_think.training.plan configs/qwen2_5_vl_7b/grpo_8gpu.yaml --gpus 8 --gpu-memory 80
    python -m unifiedreward_think.training.plan configs/qwen2_5_vl_7b/grpo_8gpu.yaml --gpus 4 --max_pixels 65536
    python -m unifiedreward_think.training.plan configs/qwen2_5_vl_7b/rejection_sampling.yaml --gpus 8 --pairs 100000

Loads no model: config.json is enough. Ends with status 1 where the stage does not fit, and says what would make it fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.files import parse_yaml
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.presets import with_preset
from unifiedreward_think.training.arguments import read_config
from unifiedreward_think.training.memory.architecture import Architecture, load_architecture
from unifiedreward_think.training.memory.estimate import Plan, plan, prompt_length, tokens_a_step, trainable
from unifiedreward_think.training.memory.job import DEFAULTS, GIB, Job, deepspeed, make_job
from unifiedreward_think.training.memory.sampling import at_a_time, room, volume

ZERO3, OFFLOAD = "configs/deepspeed/zero3.json", "configs/deepspeed/zero3_offload.json"
MOST_GPUS = 4096
CUT = "an odd number of prompts in a generation batch: with scores from preferences the run would be refused"


def main() -> None:
    """Print the plan of a config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML of a stage; any of its keys may follow, as --frames 4")
    parser.add_argument("--overlay", help="YAML whose values replace the config's, as lora.yaml")
    parser.add_argument("--gpus", type=int, required=True, help="on all nodes together")
    parser.add_argument("--gpu-memory", type=float, default=80, metavar="GB", help="of one (default: 80)")
    parser.add_argument("--model", help="folder or Hub name with config.json (default: the config's model)")
    parser.add_argument("--prompt-tokens", type=int, default=1024, help="text of a prompt (default: 1024)")
    parser.add_argument("--completion-tokens", type=int, help="of SFT rows (default: 1024), or the config's limit")
    parser.add_argument("--pairs", type=int, help="rejection sampling: plan a run over so many, too")
    parser.add_argument(
        "--tokens-per-second",
        type=float,
        metavar="RATE",
        help="completion tokens that one engine writes (transformers: one GPU), for the hours of a run",
    )
    args, rest = parser.parse_known_args()
    if min(args.gpus, args.gpu_memory, *(n for n in (args.pairs, args.tokens_per_second) if n is not None)) <= 0:
        raise InputError("--gpus, --gpu-memory, --pairs and --tokens-per-second must be above 0")
    keys = with_preset({**read_config(args.config, args.overlay), **overrides(rest)})
    shape = load_architecture(args.model or str(keys["model_name_or_path"]))
    job = make_job(keys, args.gpus, args.gpu_memory, args.prompt_tokens, args.completion_tokens)
    if args.tokens_per_second and not args.pairs:
        raise InputError("--tokens-per-second needs --pairs")
    if args.pairs and job.stage != "sampling":
        raise InputError(f"--pairs is for rejection sampling, and {args.config} is a config of {job.stage}")
    print(report(shape, job))
    if args.pairs:
        print("\n".join(["", *_run(shape, job, args.pairs, args.tokens_per_second)]))
    if plan(shape, job).total > job.gpu_memory:
        raise SystemExit(1)


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read keys of the config from the rest of the command line.

    >>> overrides(["--frames", "4", "--lora_target_modules", "q_proj", "v_proj"])
    {'frames': 4, 'lora_target_modules': ['q_proj', 'v_proj']}

    Raises:
        InputError: a key is none that memory depends on, or has no value.
    """
    words_of: dict[str, list[Any]] = {}
    for word in words:
        if word.startswith("--"):
            words_of[word[2:]] = []
        elif words_of:
            name = next(reversed(words_of))
            words_of[name].append(parse_yaml(f"value: {word}", f"--{name} {word}")["value"])
        else:
            raise InputError(f"{word!r} does not belong to any key")
    if unknown := sorted(words_of.keys() - DEFAULTS.keys()):
        raise InputError(f"--{unknown[0]} is no key that memory depends on; those are {', '.join(sorted(DEFAULTS))}")
    if empty := [name for name, values in words_of.items() if not values]:
        raise InputError(f"--{empty[0]} has no value")
    chosen = {name: values if len(values) > 1 else values[0] for name, values in words_of.items()}
    for name, value in chosen.items():
        if type(DEFAULTS[name]) in (int, bool) and type(value) is not type(DEFAULTS[name]):
            raise InputError(f"--{name} takes a value like {str(DEFAULTS[name]).lower()}, found {value!r}")
    return chosen


def ladder(shape: Architecture, job: Job) -> list[tuple[dict[str, Any], Job]]:
    """Return what to change, one after another, until the job fits; each with the job that has all changes so far.

    What leaves the result as it is comes first, what changes it next, and what costs speed or quality last.
    """
    steps: list[tuple[dict[str, Any], Job]] = []
    for change in _rungs(shape, job):
        if plan(shape, job).total <= job.gpu_memory:
            break
        keys = {**job.keys, **change}
        changed = replace(job, keys=keys, zero=deepspeed(keys.get("deepspeed")))
        if plan(shape, changed).total < plan(shape, job).total and (job.cuts_pairs or not changed.cuts_pairs):
            if steps and steps[-1][0].keys() == change.keys():
                steps.pop()  # a smaller value of the same key
            steps.append((change, changed))
            job = changed
    return steps


def _rungs(shape: Architecture, job: Job) -> list[dict[str, Any]]:
    if job.stage == "sampling":
        if not job.vllm:
            return [*_halves("batch_size", job["batch_size"]), *_pictures(job)]
        row = prompt_length(shape, job) + job.completion_tokens
        doubled = [{"tensor_parallel_size": job.engine_gpus * 2**i} for i in range(1, 4)]
        return [
            {"max_model_len": row},
            *(change for change in doubled if not job.gpus % change["tensor_parallel_size"]),
        ]
    fewest = job["num_generations"] if job.stage == "grpo" and job["shared_prefix"] else 1
    factor = max(1, job.rows // fewest)
    rows = {
        "per_device_train_batch_size": job.rows // factor,
        "gradient_accumulation_steps": job["gradient_accumulation_steps"] * factor,
    }
    rungs: list[dict[str, Any]] = [{"deepspeed": ZERO3}] if not job.zero and job.gpus > 1 else []
    rungs.append({"gradient_checkpointing": True})
    if job.stage == "grpo":
        row = prompt_length(shape, job) + job.completion_tokens
        rungs += [{"shared_prefix": True}, {"max_stream_tokens": row}]
        rungs += _halves("steps_per_generation", job["steps_per_generation"] or job["gradient_accumulation_steps"])
        rungs += [rows, {"steps_per_generation": 1}]
    else:
        rungs.append(rows)
    lora = {"use_peft": True}
    return [*rungs, {"deepspeed": OFFLOAD}, *_pictures(job), lora]


def _pictures(job: Job) -> list[dict[str, Any]]:
    """Return smaller pictures, to a quarter of their area, then fewer frames."""
    pixels = _halves("max_pixels", job["max_pixels"])[:2] if job["max_pixels"] else []
    return [*pixels, *_halves("frames", job["frames"])]


def _halves(key: str, value: int) -> list[dict[str, Any]]:
    """Return changes that halve a value, again and again.

    >>> _halves("frames", 8)
    [{'frames': 4}, {'frames': 2}, {'frames': 1}]
    """
    return [{key: value // 2**i} for i in range(1, value.bit_length())]


def gpus_needed(shape: Architecture, job: Job) -> int | None:
    """Return the fewest GPUs, a power of two, on which the job fits as it is; None where more do not help."""
    count = 1
    while count <= MOST_GPUS:
        if plan(shape, replace(job, gpus=count)).total <= job.gpu_memory:
            return count
        count *= 2
    return None


def report(shape: Architecture, job: Job) -> str:
    """Return the plan as text."""
    planned = plan(shape, job)
    fits = planned.total <= job.gpu_memory
    trained = f", {trainable(shape, job) / 1e9:.3f} B trained" if job.stage != "sampling" else ""
    lines = [
        f"{shape.family}, {shape.parameters / 1e9:.3f} B parameters{trained}; "
        f"{job.stage} on {job.gpus} GPU{'s' * (job.gpus > 1)} of {job.gpu_memory / GIB:g} GB",
        f"longest row: {job.prompt_tokens} tokens of text, {job.pictures} pictures of "
        f"{shape.picture_tokens(job['max_pixels'])} tokens, {job.completion_tokens} tokens of completion",
        _engines(job)
        if job.vllm
        else "a step: " + ", ".join(f"{count:,} {name}" for name, count in tokens_a_step(shape, job).items()),
        "",
        *_table(planned),
        f"{'peak of one GPU':36}{planned.total / GIB:8.1f} GB, {'fits' if fits else 'does not fit'}",
        *([CUT] if job.cuts_pairs else []),
    ]
    return "\n".join(lines if fits else [*lines, "", *_advice(shape, job)])


def _engines(job: Job) -> str:
    gpus = f"{job.engine_gpus} GPUs each" if job.engine_gpus > 1 else "a GPU each"
    return f"{job.engines} vLLM engine{'s' * (job.engines > 1)}, {gpus}: the least that each needs to start"


def _run(shape: Architecture, job: Job, pairs: int, rate: float | None) -> list[str]:
    """Return what a whole run of rejection sampling takes, as text."""
    total, samples = volume(shape, job, pairs), int(job["samples"])
    lines = [
        f"a run: {pairs:,} pairs, {total.completions:,} completions",
        f"  prompts            {total.text_tokens:,} tokens of text, {total.picture_tokens:,} of pictures, at most, "
        f"read once for {samples} samples",
        f"  completions        {total.completion_tokens:,} tokens, {job.completion_tokens:,} each",
        f"  judgments.jsonl    {total.judgment_bytes / 1e9:.2f} GB",
    ]
    if job.vllm:
        alone, shared = at_a_time(shape, job), at_a_time(shape, job, samples)
        lines.append(
            f"  KV cache           {max(0, room(shape, job)) / GIB:.1f} GB on each GPU: {alone} of the longest rows at "
            f"a time, {shared} where {samples} share a prompt"
        )
    if rate is None:
        return [*lines, "  hours              say how many tokens an engine writes: --tokens-per-second RATE"]
    hours = total.hours(job, rate)
    return [
        *lines,
        f"  hours              {hours:,.1f}, at {rate:g} completion tokens a second from each of {job.engines}",
    ]


def _table(planned: Plan) -> list[str]:
    sizes = dict(planned.always)
    for phase, parts in planned.phases.items():
        sizes |= {f"{phase}: {name}": size for name, size in parts.items()}
    return [f"{name:36}{size / GIB:8.1f} GB" for name, size in sizes.items() if size]


def _advice(shape: Architecture, job: Job) -> list[str]:
    lines = ["what to change, one after another:"]
    steps = ladder(shape, job)
    for change, changed in steps:
        flags = " ".join(f"--{key} {_word(value)}" for key, value in change.items())
        lines.append(f"  {flags}  -> {plan(shape, changed).total / GIB:.1f} GB")
    if not steps or plan(shape, steps[-1][1]).total > job.gpu_memory:
        lines.append("  that is not enough: take a smaller model or GPUs with more memory")
    more = gpus_needed(shape, job)
    return [*lines, f"or {more} GPUs"] if more else lines


def _word(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    run_main(main)
