"""How much faster the judge is than the published one-pair-at-a-time loop, in one process, with equal answers.

    OMP_NUM_THREADS=1 python scripts/bench/evaluation.py --output outputs/bench/evaluation.json

`one_by_one` is our transcription of what the published evaluation scripts do: for every pair open the media, build the
chat text, run the processor, `generate` greedily up to the token limit, decode. The judge runs the same pairs through
`judge`: batched, stopping at the closing answer tag, media opened ahead in a thread. Both start without cached frames.
Rounds alternate, so a busy machine slows both.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from statistics import median

from unifiedreward_think.backends import Sampling, end_at_tag
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.data.loading import load_records
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.judge import Protocol, judge
from unifiedreward_think.media import FrameSampling, open_image
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.records import order_shown
from unifiedreward_think.tasks import load_prompts
from unifiedreward_think.toy import dataset

REPO = Path(__file__).parents[2]


def one_by_one(records, model, processor, protocol):
    """Judge as the published scripts do and return the texts."""
    import torch

    texts = []
    for record in records:
        row = prompt_row(record, order_shown(record, protocol.order_seed), protocol.prompts, protocol.frames)
        images = [open_image(path) for path in row["images"]]
        chat = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[chat], images=images, padding=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=protocol.sampling.max_new_tokens, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts.append(processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0])
    return texts


def with_cache(protocol, folder):
    return replace(protocol, frames=replace(protocol.frames, cache=folder))


def timed(work, protocol):
    """Run `work` with an empty frame cache; return the seconds it took and what it returned."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = work(with_cache(protocol, Path(folder, "frames")), Path(folder, "judgments.jsonl"))
        return time.perf_counter() - started, found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=str(REPO / "src/unifiedreward_think/toy/base"), help="folder or Hub name of the model")
    add("--prompt-dir", default=str(REPO / "configs/toy/prompts"), help="folder of prompt templates")
    add("--pairs", type=int, default=32, help="toy pairs, the four tasks in turn")
    add("--rounds", type=int, default=3, help="of each of the two, in turn")
    add("--batch-size", type=int, default=16, help="pairs in one batch of the judge")
    add("--max-new-tokens", type=int, default=160, help="limit of an answer")
    add("--frames", type=int, default=8, help="frames of each video")
    add("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()

    backend = TransformersBackend(args.model, batch_size=args.batch_size)
    processor, network = load_processor(args.model), load_model(args.model).to(backend._device).eval()
    protocol = Protocol(
        prompts=load_prompts("cot", folder=args.prompt_dir),
        style="cot",
        sampling=Sampling(max_new_tokens=args.max_new_tokens),
        frames=FrameSampling(frames=args.frames, cache=Path("unused")),
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset.write(Path(folder), cold_start=4, train=4, heldout=args.pairs)
        records = load_records([str(Path(folder, "heldout.jsonl"))]).rows
        one_by_one(records[:1], network, processor, with_cache(protocol, Path(folder, "warm")))
        loop, batched = [], []
        for _ in range(args.rounds):
            seconds, texts = timed(lambda p, _: one_by_one(records, network, processor, p), protocol)
            loop.append(seconds)
            seconds, rows = timed(lambda p, out: judge(records, backend, p, out), protocol)
            batched.append(seconds)
    equal = [end_at_tag(text, "").text == row.completion for text, row in zip(texts, rows, strict=True)]
    report = {
        "pairs": len(records),
        "seconds_one_by_one": [round(s, 3) for s in loop],
        "seconds_judge": [round(s, 3) for s in batched],
        "speedup": round(median(loop) / median(batched), 2),
        "equal_answers": f"{sum(equal)}/{len(equal)}",
        "readable_verdicts": sum(row.verdict.winner is not None for row in rows),
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "device": str(network.device),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
