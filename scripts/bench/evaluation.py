"""How much faster the judge is than the published one-pair-at-a-time loop, in one process, with equal greedy answers.

    OMP_NUM_THREADS=1 python scripts/bench/evaluation.py --output outputs/bench/evaluation.json

Without --model the toy cold start is trained first, beside the output (1 to 2 minutes): its answers are chains of
thought. `one_by_one` is our transcription of what the published evaluation scripts do: for every pair decode the media,
build the chat text, run the processor, `generate` up to the token limit, decode. The judge runs the same pairs through
`judge`: prompts of similar length are read together, and once for all samples of a pair; rows stop at the closing
answer tag, and waiting pairs take their place; media are opened ahead in a thread. It also stores frames and judgments,
from nothing in every round. Rounds alternate, so a busy machine slows both; the ratio is of CPU seconds, all threads
counted. Answers alone gain least: --style direct --model src/unifiedreward_think/toy/base writes 9 tokens.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median

from unifiedreward_think.backends import end_at_tag
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.data.rows import shown_orders
from unifiedreward_think.decoders import decode
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.media import FrameSampling, open_image
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.prompting import build_parts, load_prompts
from unifiedreward_think.toy import dataset
from unifiedreward_think.writing import write_whole

REPO = Path(__file__).parents[2]
BASE = REPO / "src/unifiedreward_think/toy/base"
PROMPTS = REPO / "configs/toy/prompts"


def one_by_one(records, model, processor, protocol):
    """Judge as the published scripts do and return the texts, `protocol.samples` of each pair."""
    import torch

    sampling, texts = protocol.sampling, []
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    for record in records:
        for _ in range(protocol.samples):
            content, images = [], []
            (order,) = shown_orders(record, "one", protocol.order_seed)
            for part in build_parts(record, order=order, prompts=protocol.prompts):
                if isinstance(part, str):
                    content.append({"type": "text", "text": part})
                    continue
                found = pictures(part, protocol.frames)
                content += [{"type": "image"}] * len(found)
                images += found
            messages = [{"role": "user", "content": content}]
            chat = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            inputs = processor(text=[chat], images=images, padding=True, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                ids = model.generate(
                    **inputs, max_new_tokens=sampling.max_new_tokens, do_sample=sampling.temperature > 0, **drawn
                )
            new = ids[:, inputs["input_ids"].shape[1] :]
            texts.append(processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0])
    return texts


def pictures(part, frames):
    """Open a media entry of one file, a video frame by frame."""
    if part.kind == "video":
        return decode(Path(part.paths[0]), frames.frames, frames.decoder).frames
    return [open_image(part.paths[0])]


def timed(work, protocol):
    """Run `work` with an empty frame cache; return CPU and wall seconds and what it returned."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = replace(protocol, frames=replace(protocol.frames, cache=Path(folder, "frames")))
        wall, cpu = time.perf_counter(), time.process_time()
        found = work(fresh, Path(folder, "judgments.jsonl"))
        return time.process_time() - cpu, time.perf_counter() - wall, found


def cold_start(folder):
    """Return the toy cold start in `folder`, trained by the stage itself if it is not there yet."""
    data, model = folder / "data", folder / "cold_start"
    dataset.write(data, cold_start=480, train=4, heldout=4)  # one that is there stays
    words = ["-m", "unifiedreward_think.training.sft", "--config", REPO / "configs/toy/cold_start.yaml"]
    words += ["--model_name_or_path", BASE, "--train_files", data / "cold_start.jsonl", "--output_dir", model]
    words += ["--prompts", PROMPTS, "--frame_cache", folder / "frames"]
    subprocess.run([sys.executable, *map(str, words)], check=True)  # a finished one is left alone
    return str(model)


def measure(records, backend, network, processor, protocol, rounds):
    """Run both in turn and return the report, with the answers of the last round.

    Args:
        backend: makes a backend; each round has one that remembers no pictures yet.
    """
    loop, batched = [], []
    for _ in range(rounds):
        fresh = backend()
        loop.append(timed(lambda p, _: one_by_one(records, network, processor, p), protocol))
        batched.append(timed(lambda p, out, fresh=fresh: judge(records, fresh, p, out), protocol))
    texts, rows = loop[-1][2], batched[-1][2]
    if (
        protocol.sampling.temperature
    ):  # the loop draws from another stream; a row alone must draw what it draws in a batch
        alone = backend(batch_size=1, cache_mib=0)
        wanted = [row.completion for row in timed(lambda p, out: judge(records, alone, p, out), protocol)[2]]
    else:
        wanted = [end_at_tag(text, "").text for text in texts]
    equal = [text == row.completion for text, row in zip(wanted, rows, strict=True)]
    return {
        "cpu_seconds_one_by_one": [round(cpu, 3) for cpu, _, _ in loop],
        "cpu_seconds_judge": [round(cpu, 3) for cpu, _, _ in batched],
        "speedup": round(median(cpu for cpu, _, _ in loop) / median(cpu for cpu, _, _ in batched), 2),
        "speedup_by_wall_clock": round(median(wall for _, wall, _ in loop) / median(wall for _, wall, _ in batched), 2),
        "tokens_in_an_answer": median(len(processor.tokenizer(text)["input_ids"]) for text in texts),
        "readable_verdicts": f"{sum(row.verdict.winner is not None for row in rows)}/{len(rows)}",
        "equal_answers": f"{sum(equal)}/{len(equal)}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="folder or Hub name of the model (default: the toy cold start, trained first)")
    add("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add("--prompts", default=str(PROMPTS), help="folder of prompt templates")
    add("--pairs", type=int, default=32, help="toy pairs, the four tasks in turn")
    add("--samples", type=int, default=8, help="answers of each pair where they are sampled")
    add("--rounds", type=int, default=3, help="of each of the two, in turn")
    add("--batch-size", type=int, default=16, help="pairs in one batch of the judge")
    add("--max-new-tokens", type=int, default=192, help="limit of an answer")
    add("--frames", type=int, default=4, help="frames of each video")
    add("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    args.model = args.model or cold_start(args.output.absolute().parent / "evaluation")

    backend = partial(TransformersBackend, args.model, batch_size=args.batch_size)
    processor, network = load_processor(args.model), load_model(args.model).to(backend()._device).eval()
    greedy = JudgingConfig(
        prompts=load_prompts(args.style, path=args.prompts),
        style=args.style,
        sampling=Sampling(max_new_tokens=args.max_new_tokens),
        frames=FrameSampling(frames=args.frames, cache=Path("unused")),
    )
    sampled = replace(greedy, sampling=replace(greedy.sampling, temperature=1.0), samples=args.samples)
    with tempfile.TemporaryDirectory() as folder:
        dataset.write(Path(folder), cold_start=4, train=4, heldout=args.pairs)
        records = load_records([str(Path(folder, "heldout.jsonl"))]).rows
        measure(records[:4], backend, network, processor, greedy, 1)  # what only the first call costs
        results = {
            name: measure(records, backend, network, processor, protocol, args.rounds)
            for name, protocol in (("evaluation", greedy), ("sampling", sampled))
        }
    report = {
        "pairs": len(records),
        **results,
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "device": str(network.device),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    write_whole(args.output, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
