"""Rejection sampling: the cold-started model answers every pair K times; its correct chains of thought become SFT rows.

    python -m unifiedreward_think.training.rejection_sampling --config configs/toy/rejection_sampling.yaml

Writes into `output_dir`:
    judgments.jsonl   every sample; a rerun goes on from it
    kept.jsonl        one correct trace for each solved pair: SFT rows
    hard.jsonl        pairs with no correct answer, or a pass rate below `hard_below`: GRPO rows
    manifest.json     every count and reason, and the settings
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Sampling
from unifiedreward_think.data.loading import format_bad_rows, load_checked_records
from unifiedreward_think.judge import Protocol, judge
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, _help


@dataclass
class SamplingArguments:
    """How answers are drawn, which are kept, and which pairs count as hard."""

    model_name_or_path: str = _help("folder or Hub name of the cold-started model", default="")
    output_dir: str = _help("folder for judgments, kept, hard and manifest", default="")
    samples: int = _help("answers for each pair (K)", default=4)
    temperature: float = _help("of the draws; 0 would draw the same answer K times", default=1.0)
    top_p: float = _help("nucleus of the draws", default=1.0)
    max_new_tokens: int = _help("limit of an answer", default=2048)
    seed: int = _help("with the record id and sample number it seeds each draw", default=0)
    batch_size: int = _help("pairs in one batch", default=8)
    dtype: str = _help("of the weights", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    attn_implementation: str | None = _help("attention kernel", default=None)
    require_strict: bool = _help("keep only traces whose whole form is exact", default=True)
    require_arithmetic: bool = _help("keep only traces whose sums add up and agree with the answer", default=True)
    keep: str = _help("which correct trace to keep", default="shortest", choices=("shortest", "first", "all"))
    hard_below: float = _help("a pair whose pass rate is below this is hard; 0 keeps only pairs never solved", default=0.0)


def main() -> None:
    """Sample and filter from a config file and the command line."""
    run.own_help(__doc__, (DataArguments, SamplingArguments), ())
    data, args = run.parse(DataArguments, SamplingArguments)
    loaded = load_checked_records(
        data.train_files, sampling=data.sampling, media_root=data.media_root, skip_bad=data.skip_bad
    )
    if loaded.bad:
        print(format_bad_rows(loaded.bad))
    decided = [record for record in loaded.rows if record.preferred in (1, 2)][: data.limit]
    if data.check_data:
        print(f"data checked: {len(decided)} pairs, {len(loaded.rows) - len(decided)} ties or beyond the limit")
        return
    from unifiedreward_think.backends.transformers import TransformersBackend

    backend = TransformersBackend(
        args.model_name_or_path,
        batch_size=args.batch_size,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
    )
    sampling = Sampling(
        temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens, seed=args.seed
    )
    protocol = Protocol(
        prompts=data.prompts,
        style=data.style,
        sampling=sampling,
        frames=data.sampling,
        samples=args.samples,
        order_seed=data.order_seed,
    )
    folder = Path(args.output_dir)
    judgments = judge(decided, backend, protocol, folder / "judgments.jsonl", label="rejection sampling")
    skipped = {"ties left out": sum(r.preferred == "tie" for r in loaded.rows), "bad rows left out": len(loaded.bad)}
    manifest = write_outputs(folder, decided, judgments, args, {**asdict(data), **asdict(args)}, skipped)
    print(json.dumps(manifest["counts"]))


def rejections(judgment: Judgment, *, require_strict: bool, require_arithmetic: bool) -> list[str]:
    """Return why a sampled trace is not kept; empty for one that is.

    >>> from unifiedreward_think.verdict import parse
    >>> said = "<answer>Image 1 is better</answer>"
    >>> row = Judgment(record_id="a", order="ab", completion=said, verdict=parse(said, "Image"), preferred=1,
    ...                task="image_generation")
    >>> rejections(row, require_strict=True, require_arithmetic=True)
    ['not strictly formed', 'sums do not add up']
    """
    if judgment.verdict.winner is None:
        return ["cut at the token limit" if judgment.finish_reason == "length" else "no readable answer"]
    reasons = [] if judgment.correct else ["wrong winner"]
    if require_strict and not judgment.verdict.strict:
        reasons.append("not strictly formed")
    if require_arithmetic and not judgment.verdict.arithmetic_ok:
        reasons.append("sums do not add up")
    return reasons


def choose(traces: Sequence[Judgment], keep: str) -> list[Judgment]:
    """Return the traces to keep of one pair.

    "shortest" takes the one with the fewest characters, the earliest sample among equals: the least padding for the
    same verdict. "first" takes the earliest sample, "all" every distinct text.
    """
    if not traces or keep == "first":
        return list(traces[:1])
    if keep == "shortest":
        return [min(traces, key=lambda j: (len(j.completion or ""), j.sample))]
    return list({j.completion: j for j in reversed(traces)}.values())[::-1]


def split_pairs(
    records: Iterable[PreferenceRecord], judgments: Iterable[Judgment], args: SamplingArguments
) -> tuple[list[Trace], list[PreferenceRecord], dict[str, Any]]:
    """Return the kept traces, the hard pairs, and the counts behind them.

    The pass rate of a pair is the share of its samples that name the preferred candidate.
    """
    by_record: dict[str, list[Judgment]] = {}
    for row in judgments:
        by_record.setdefault(row.record_id, []).append(row)
    kept: list[Trace] = []
    hard: list[PreferenceRecord] = []
    reasons: Counter[str] = Counter()
    passes: Counter[str] = Counter()
    for record in records:
        rows = by_record[record.id]
        good = []
        for row in rows:
            why = rejections(row, require_strict=args.require_strict, require_arithmetic=args.require_arithmetic)
            reasons.update(why)
            if not why:
                good.append(row)
        passed = sum(bool(row.correct) for row in rows)
        passes[f"{passed}/{len(rows)}"] += 1
        kept += [Trace(record=record, order=j.order, completion=j.completion or "") for j in choose(good, args.keep)]
        if passed == 0 or passed / len(rows) < args.hard_below:
            hard.append(record)
    counts = {
        "pairs": len(by_record),
        "samples": sum(map(len, by_record.values())),
        "kept": len(kept),
        "hard": len(hard),
        "kept by task": dict(sorted(Counter(trace.record.task for trace in kept).items())),
        "hard by task": dict(sorted(Counter(record.task for record in hard).items())),
        "samples rejected because": dict(sorted(reasons.items())),
        "pairs by correct samples": dict(sorted(passes.items())),
    }
    return kept, hard, counts


def write_outputs(
    folder: Path,
    records: Sequence[PreferenceRecord],
    judgments: Sequence[Judgment],
    args: SamplingArguments,
    settings: Mapping[str, Any],
    skipped: Mapping[str, int],
) -> dict[str, Any]:
    """Write kept.jsonl, hard.jsonl and, last, manifest.json, each complete or not at all; return the manifest."""
    kept, hard, counts = split_pairs(records, judgments, args)
    manifest = {"counts": {**counts, **skipped}, "settings": dict(settings)}
    texts = {
        "kept.jsonl": "".join(json.dumps(trace.to_json()) + "\n" for trace in kept),
        "hard.jsonl": "".join(json.dumps(record.to_json()) + "\n" for record in hard),
        "manifest.json": json.dumps(manifest, indent=1) + "\n",
    }
    for name, text in texts.items():
        scratch = folder / f"{name}.new"
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(folder / name)
    return manifest


if __name__ == "__main__":
    main()
