"""Rejection sampling: the cold-started model answers every pair K times; its correct chains of thought become SFT rows.

    python -m unifiedreward_think.training.rejection_sampling --config configs/toy/rejection_sampling.yaml

Writes into `output_dir`:
    judgments.jsonl   every sample; a rerun goes on from it
    kept.jsonl        one correct trace for each solved pair, or all of them: SFT rows
    hard.jsonl        pairs with no correct answer, or a pass rate below `hard_below`: GRPO rows
    manifest.json     every count and reason, and the settings

Under torchrun each rank answers its share of the pairs, and rank 0 writes what one process would have written.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Backend
from unifiedreward_think.data.formats.loading import DataError, Loaded, load_checked_records, report_left_out, undecided
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.entry import run_main
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.protocol import Protocol
from unifiedreward_think.judging.ranks import ALONE, Ranks, joined
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace, json_lines
from unifiedreward_think.traces.filters import counted_as, rejections
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, option
from unifiedreward_think.training.output import describe, must_be_finished
from unifiedreward_think.writing import write_whole

STAGE = "rejection_sampling"


@dataclass
class SamplingArguments:
    """How answers are drawn, which are kept, and which pairs count as hard."""

    model_name_or_path: str = option("folder or Hub name of the cold-started model")
    output_dir: str = option("folder for judgments, kept, hard and manifest")
    samples: int = option("answers for each pair, in each order it is shown in (K)", default=4)
    temperature: float = option("of the draws; above 0, or all K answers are the same", default=1.0)
    top_p: float = option("nucleus of the draws", default=1.0)
    max_new_tokens: int = option("limit of an answer", default=2048)
    seed: int = option("with the record id and sample number it seeds each draw", default=0)
    batch_size: int = option("pairs in one batch", default=8)
    dtype: str = option("of the weights", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    attn_implementation: str | None = option("attention kernel", default=None)
    require_correct: bool = option("keep only traces that name the preferred candidate", default=True)
    require_strict: bool = option("keep only traces whose whole form is exact", default=True)
    require_arithmetic: bool = option("keep only traces whose sums add up and agree with the answer", default=True)
    keep: str = option(
        "which of a pair's good traces to keep", default="shortest", choices=("shortest", "first", "all")
    )
    hard_below: float = option("a pair with a lower pass rate is hard; 0: only pairs never solved", default=0.0)

    def __post_init__(self) -> None:
        """Refuse values that cannot mean what they say."""
        if self.samples < 1 or self.batch_size < 1:
            raise ValueError(f"samples and batch_size must be at least 1, found {self.samples} and {self.batch_size}")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature 0 draws the same answer {self.samples} times: raise it, or set samples: 1")
        if not 0 <= self.hard_below <= 1:
            raise ValueError(f"hard_below is a share of the samples, from 0 to 1, found {self.hard_below}")


def main() -> None:
    """Sample and filter from a config file and the command line."""
    run.own_help(__doc__, (DataArguments, SamplingArguments), ())
    data, args = run.parse(DataArguments, SamplingArguments)
    if data.style == "direct" and args.require_arithmetic:
        raise ValueError("style: direct asks for no scores, so nothing would be kept: set require_arithmetic: false")
    records, counts = load_pairs(data)
    if data.check_data:
        print(f"data checked: {counts}")
        return
    must_be_finished(args.model_name_or_path)
    with joined() as ranks:
        found = sample(records, load_backend(data, args), data, args, ranks)
        if ranks.rank == 0:
            counts |= write_outputs(Path(args.output_dir), records, found, counts, data, args)
            kept, hard, pairs = counts["kept"], counts["hard"], counts["pairs"]
            print(f"{STAGE}: {kept} kept, {hard} hard of {pairs} pairs -> {args.output_dir}")
        ranks.wait()  # what follows on any machine reads the outputs


def load_backend(data: DataArguments, args: SamplingArguments) -> Backend:
    """Return the model, on the GPU of this process where there are any."""
    import torch

    from unifiedreward_think.backends.transformers import TransformersBackend

    return TransformersBackend(
        args.model_name_or_path,
        batch_size=args.batch_size,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
    )


def load_pairs(data: DataArguments) -> tuple[list[PreferenceRecord], dict[str, Any]]:
    """Return the pairs with a winner and what was counted.

    Raises:
        DataError: rows cannot be used, or no pair has a winner.
    """
    loaded: Loaded[PreferenceRecord] = load_checked_records(
        data.train_files,
        sampling=data.sampling,
        media_root=data.media_root,
        skip_bad=data.skip_bad,
        need_label=False,
    )
    report_left_out(loaded.bad)
    decided = [record for record in loaded.rows if record.preferred in (1, 2)]
    if not decided:
        raise DataError(f"{', '.join(data.train_files)}: no pair has a winner; rejection sampling needs some")
    used = decided[: data.limit]
    return used, {
        "rows": len(loaded.rows) + len(loaded.bad),
        "bad rows left out": len(loaded.bad),
        **undecided(loaded.rows),
        "pairs beyond the limit": len(decided) - len(used),
        "pairs": len(used),
    }


def sample(
    records: Sequence[PreferenceRecord],
    backend: Backend,
    data: DataArguments,
    args: SamplingArguments,
    ranks: Ranks = ALONE,
) -> list[Judgment]:
    """Let the model answer every pair K times, going on from what judgments.jsonl holds; each rank returns all."""
    protocol = Protocol(
        prompts=data.prompts,
        style=data.style,  # type: ignore[arg-type]
        sampling=Sampling(
            temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens, seed=args.seed
        ),
        frames=data.sampling,
        samples=args.samples,
        orders="both" if data.orders == "both" else "one",
        order_seed=data.order_seed,
    )
    output = Path(args.output_dir) / "judgments.jsonl"
    return judge(records, backend, protocol, output, label="rejection sampling", ranks=ranks)


def trace_rules(args: SamplingArguments) -> dict[str, bool]:
    """Return the rules of `traces.filters.rejections` that are switched on."""
    return {name: getattr(args, name) for name in ("require_correct", "require_strict", "require_arithmetic")}


def choose(traces: Sequence[Judgment], keep: str) -> list[Judgment]:
    """Return the traces to keep of one pair.

    "first" takes the earliest sample. "shortest" takes the one with the fewest characters, the earliest among equals:
    the least padding for the same verdict. "all" takes every one, a text drawn twice in one order once.
    """
    if keep == "all":
        return list({(row.order, row.completion): row for row in traces}.values())
    if keep == "shortest":
        traces = sorted(traces, key=lambda row: len(row.completion or ""))
    return list(traces[:1])


def split_pairs(
    records: Iterable[PreferenceRecord], judgments: Sequence[Judgment], args: SamplingArguments
) -> tuple[list[Trace], list[PreferenceRecord], dict[str, Any]]:
    """Return the kept traces, the hard pairs, and the counts behind them.

    The pass rate of a pair is the share of its samples that name the preferred candidate. A pair that could not be
    judged is neither kept nor hard.
    """
    by_record: dict[str, list[Judgment]] = {}
    for row in judgments:
        by_record.setdefault(row.record_id, []).append(row)
    rules = trace_rules(args)
    kept: list[Trace] = []
    hard: list[PreferenceRecord] = []
    passes: Counter[str] = Counter()
    for record in records:
        rows = by_record[record.id]
        if any(row.error for row in rows):
            passes["not judged"] += 1
            continue
        chosen = choose([row for row in rows if not rejections(row, **rules)], args.keep)
        kept += [Trace(record=record, order=row.order, completion=row.completion or "") for row in chosen]
        passed = sum(bool(row.correct) for row in rows)
        passes[f"{passed}/{len(rows)}"] += 1
        if passed == 0 or passed / len(rows) < args.hard_below:
            hard.append(record)
    counts = {**_counts(kept, hard), "pairs by correct samples": dict(sorted(passes.items()))}
    used = {trace.record.id for trace in kept} | {record.id for record in hard}
    counts["neither kept nor hard"] = len(by_record) - len(used)
    reasons = [rejections(row, **rules) for row in judgments]
    counts["samples"] = len(reasons)
    counts["samples accepted"] = reasons.count([])
    counts["samples rejected because"] = dict(sorted(Counter(map(counted_as, chain.from_iterable(reasons))).items()))
    return kept, hard, counts


def _counts(kept: Sequence[Trace], hard: Sequence[PreferenceRecord]) -> dict[str, Any]:
    return {
        "kept": len(kept),
        "hard": len(hard),
        "kept and hard": len({trace.record.id for trace in kept} & {record.id for record in hard}),
        "kept by task": dict(sorted(Counter(trace.record.task for trace in kept).items())),
        "hard by task": dict(sorted(Counter(record.task for record in hard).items())),
    }


def write_outputs(
    folder: Path,
    records: Sequence[PreferenceRecord],
    judgments: Sequence[Judgment],
    counts: Mapping[str, Any],
    data: DataArguments,
    args: SamplingArguments,
) -> dict[str, Any]:
    """Write kept.jsonl, hard.jsonl and manifest.json, each whole or not at all, and return all counts.

    The manifest goes first and comes last: where there is one, it belongs to the files beside it.
    """
    kept, hard, found = split_pairs(records, judgments, args)
    manifest = describe(args, data, stage=STAGE, finished=True, counts={**counts, **found})
    (folder / "manifest.json").unlink(missing_ok=True)
    write_whole(folder / "kept.jsonl", json_lines(kept))
    write_whole(folder / "hard.jsonl", json_lines(hard))
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return found


if __name__ == "__main__":
    run_main(main)
