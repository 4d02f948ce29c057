"""What gpu.sh measures, an item a process: each measurement is written to the results file as soon as it is there.

    python scripts/bench/gpu_items.py step --model qwen2_5_vl_3b --results results.jsonl
    python scripts/bench/gpu_items.py step --model qwen2_5_vl_3b --size tiny --device cpu --results results.jsonl

An item yields pairs: what its line says of a measurement, and the function that measures. One that fails is written
with its error; the item goes on with the next and ends with exit status 1.
"""

import argparse
import json
import sys
import tempfile
import traceback
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpo_step
import measuring
import policy_pass
import precision
import real_sizes
import sft_step

from unifiedreward_think.provenance import provenance

IMPLS = ("trl", "ours")
SIZES = {
    "real": {"group": 8, "words": 290, "side": measuring.SIDE, "prompts": 8},
    "tiny": {"group": 4, "words": 12, "side": 64, "prompts": 2},
}


class Job:
    """The model of an item, its place, and settings for the benchmarks."""

    def __init__(self, folder, place, size):
        self.folder, self.place, self.tiny, self.size = folder, place, size == "tiny", SIZES[size]

    def tokens(self, number):
        """Return a number of tokens, a sixteenth of it where all is tiny."""
        return number // 16 if self.tiny else number

    def settings(self, **more):
        """Return what the benchmarks of this folder take."""
        common = {"model": self.folder, "place": self.place, "groups": 1, "pictures": 2, "beta": 0.04}
        return Namespace(**{**common, **self.size, "lora": False, "dead": 0.0, "steps": 3, **more})


def errors(job):
    """A GRPO step in bfloat16 against float32."""
    tokens = job.tokens(64)
    truth = precision.Truth(job.settings(new_tokens=tokens, steps=1))
    for name, impl, dtype in (("ours_float32", "ours", "float32"), *((impl, impl, "bfloat16") for impl in IMPLS)):
        yield {"impl": name, "tokens": tokens}, partial(truth.errors, impl, dtype)


def steps(job, lengths=(64, 256), count=3):
    """Whole GRPO steps; the first of several is not timed."""
    for length in map(job.tokens, lengths):
        for impl in IMPLS:
            settings = job.settings(only=impl, new_tokens=length, steps=count)
            yield {"impl": impl, "tokens": length}, partial(grpo_step.measure, settings)


def long_step(job):
    """One step of many tokens, after a short one that warms up."""
    for impl in IMPLS:
        grpo_step.measure(job.settings(only=impl, new_tokens=4, steps=1))
    yield from steps(job, (1024,), 1)


def policy(job):
    """Forward and backward of the policy pass alone."""
    for length in map(job.tokens, (128, 400)):
        for impl in IMPLS:
            settings = job.settings(only=impl, new_tokens=length, repeats=3)
            yield {"impl": impl, "tokens": length}, partial(policy_pass.measure, settings)


def sft(job):
    """SFT steps with activation checkpointing: without it 8 rows of TRL's are too much for 80 GB."""
    for kind in ("mixed", "siblings"):
        for impl in IMPLS:
            yield (
                {"impl": impl, "rows": kind},
                partial(sft_step.measure, job.settings(only=impl, kind=kind, checkpointing=True)),
            )


def flash_attention(job):
    """The GRPO step with flash-attention: in TRL everywhere, in ours in the vision tower."""
    job.place = replace(job.place, attention="flash_attention_2")
    yield from steps(job, (64,))


def decode(job):
    """The transformers backend against `generate`, greedy and with 8 samples of each prompt."""
    from unifiedreward_think.backends.transformers import TransformersBackend
    from unifiedreward_think.models.loading import load_processor

    loaded = job.place.load(job.folder), load_processor(job.folder)
    backend = TransformersBackend(
        str(job.folder), batch_size=job.size["prompts"], device=job.place.device, loaded=loaded
    )
    ways = {"generate": partial(generate, *loaded), "ours": partial(complete, backend)}
    yield from written(job, ways, (1, 8))


def vllm(job):
    """The vLLM backend against the transformers backend, on weights that are saved for it."""
    from unifiedreward_think.backends.vllm import VllmBackend

    job.place.load(job.folder).save_pretrained(job.folder)
    job.place.memory()
    backend = VllmBackend(str(job.folder), max_model_len=4096)
    yield from written(job, {"vllm": partial(complete, backend)}, (1, 8))


def written(job, ways, samples):
    """Yield measurements of tokens a second, the prompts' own time left out."""
    with tempfile.TemporaryDirectory() as name:
        prompt = measuring.Prompt(words=job.size["words"], side=job.size["side"])
        prompts = opened(measuring.make_rows(Path(name), [prompt] * job.size["prompts"]))
    lengths = job.tokens(32), job.tokens(160)
    for each in samples:
        for impl, way in ways.items():
            yield (
                {"impl": impl, "sequences": each * len(prompts)},
                partial(slope, job.place, way, prompts, each, lengths),
            )


def opened(rows):
    """Return rows with their pictures in memory."""
    from unifiedreward_think.media import open_image

    return [{**row, "images": [open_image(file) for file in row["images"]]} for row in rows]


def slope(place, way, prompts, samples, lengths):
    """Return what `lengths[1]` tokens take more than `lengths[0]`, after a call that warms up."""
    way(prompts, samples, lengths[0])
    before, times = place.memory(), []
    for length in lengths:
        started = place.seconds()
        way(prompts, samples, length)
        times.append(place.seconds() - started)
    rate = (lengths[1] - lengths[0]) * len(prompts) * samples / (times[1] - times[0])
    memory = place.peak_memory() - before
    return {"tokens_per_second": rate, "all_seconds": times, "lengths": lengths, "peak_memory_mib": memory}


def generate(network, processor, prompts, samples, length):
    """Write `length` tokens with transformers' own loop."""
    from unifiedreward_think.backends import with_images

    conversations = [with_images(row, lambda image: {"type": "image", "image": image}) for row in prompts]
    inputs = processor.apply_chat_template(
        conversations, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(network.device)  # fmt: skip
    drawn = {"do_sample": True, "num_return_sequences": samples, "top_k": 0} if samples > 1 else {"do_sample": False}
    network.generate(**inputs, max_new_tokens=length, min_new_tokens=length, disable_compile=True, **drawn)


def complete(backend, prompts, samples, length):
    """Write `length` tokens with a backend; an end of a sequence is one of 151,936 tokens, and as rare."""
    from unifiedreward_think.engine.sampling import Sampling

    sampling = Sampling(max_new_tokens=length, temperature=float(samples > 1))
    backend.complete(prompts, sampling=sampling, seeds=[list(range(samples))] * len(prompts))


ITEMS = {
    "precision": errors,
    "step": steps,
    "policy": policy,
    "decode": decode,
    "long_step": long_step,
    "sft": sft,
    "flash_attention": flash_attention,
    "vllm": vllm,
}


def attempt(measure):
    """Return what was measured, or the error: one measurement must not cost the others their time on a GPU."""
    try:
        found = measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    found.pop("log", None)
    if "seconds" in found:
        found |= {"all_seconds": found["seconds"], "seconds": min(found["seconds"])}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("item", choices=ITEMS, help="what to measure")
    add("--model", choices=real_sizes.RELEASED, required=True, help="of which model")
    add("--size", choices=SIZES, default="real", help="tiny: two small layers and short texts")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="where it runs")
    add("--results", type=Path, required=True, help="file to append JSON lines to")
    args = parser.parse_args()
    if args.device == "cpu":
        measuring.settle()
    label = {"item": args.item, "model": args.model, "size": args.size}
    failed = False
    with tempfile.TemporaryDirectory() as name, args.results.open("a", encoding="utf-8") as results:
        real_sizes.write(args.model, Path(name), tiny_size=args.size == "tiny")
        place = measuring.Place(device=args.device, dtype="bfloat16")
        for point, measure in ITEMS[args.item](Job(Path(name), place, args.size)):
            place.memory()  # gives back what the one before held
            found = attempt(measure)
            failed |= "error" in found
            results.write(json.dumps({**label, **point, **found, **provenance()}) + "\n")
            results.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()
