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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.data.formats.files import DataError, report_left_out
from unifiedreward_think.data.formats.loading import Loaded, load_checked_records, undecided
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Amount, Count, Share, option
from unifiedreward_think.forms import PAIRWISE, POINTWISE, Form
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.ranks import joined
from unifiedreward_think.judging.settings import JudgingArguments, JudgingConfig, set_up
from unifiedreward_think.metrics import by_record
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace
from unifiedreward_think.reply_formats.formats import OWN, format_named
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.terminal import log_to, note, say
from unifiedreward_think.trace_rules import counted_as, rejections
from unifiedreward_think.traces.ordering import Keep, kept_of, order_rate, ordered
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import RowArguments
from unifiedreward_think.training.output import describe, must_be_finished
from unifiedreward_think.training.parsing import parse
from unifiedreward_think.training.reading import Reading, prompt_rows
from unifiedreward_think.writing import write_whole

STAGE = "rejection_sampling"


@dataclass(kw_only=True)
class SamplingArguments(JudgingArguments):
    """How answers are drawn, which are kept, and which pairs count as hard."""

    model_name_or_path: str = option("the cold-started model, as --model of the other commands")
    output_dir: str = option("folder for judgments, kept, hard and manifest")
    samples: Count = option("answers for each pair, in each order it is shown in (K)", default=4)
    temperature: Amount = option("of the draws; above 0, or all K answers are the same", default=1.0)
    require_correct: bool = option("keep only traces that name the preferred candidate", default=True)
    require_strict: bool = option("keep only traces whose whole form is exact", default=True)
    require_arithmetic: bool = option("keep only traces whose sums add up and agree with the answer", default=True)
    keep: Keep = option("which of a pair's good traces to keep", default="shortest")
    point_margin: Share = option(
        "of scores: the least difference, as a share of the scale, between the preferred candidate's and the other's",
        default=0.0,
    )
    hard_below: Share = option("a pair with a lower pass rate is hard; 0: only pairs never solved", default=0.0)

    def __post_init__(self) -> None:
        """Refuse values that cannot mean what they say."""
        super().__post_init__()
        if self.style == "direct" and self.require_arithmetic:
            raise InputError("style: direct asks for no scores, so none is kept: set require_arithmetic: false")
        if self.reply_format != OWN and format_named(self.reply_format).style == "direct":
            raise InputError(
                f"reply_format {self.reply_format!r}: its replies are no traces of ours; judge with it instead"
            )


ARGUMENTS = (RowArguments, SamplingArguments, BackendArguments)
NO_ARGUMENTS = (
    "model",
    "tie_margin",
    "native_video",
    "expectation",
)  # all stages say model_name_or_path; all train on frames


def main() -> None:
    """Sample and filter from a config file and the command line."""
    rows, args, chosen = parse(*ARGUMENTS, about=__doc__, without=NO_ARGUMENTS)
    if rows.check_data:
        say(f"data checked: {load_pairs(rows, args, sampling_reading(rows, args, chosen))[1]}")
        return
    with joined(lambda: prepare(rows, args, chosen)) as (ranks, (records, counts, config, backend)):
        folder = Path(args.output_dir)
        log_to(folder / run.LOG_FILE)
        output = folder / "judgments.jsonl"
        judgments = judge(records, backend, config, output, label="rejection sampling", ranks=ranks)
        with ranks.together():  # what follows on any machine reads the outputs
            if ranks.rank == 0:
                counts |= write_outputs(folder, records, judgments, counts, args, rows, chosen)
                kept, hard, pairs = counts["kept"], counts["hard"], counts["pairs"]
                say(f"{STAGE}: {kept} kept, {hard} hard of {pairs} pairs -> {args.output_dir}")


def prepare(
    rows: RowArguments, args: SamplingArguments, chosen: BackendArguments
) -> tuple[list[PreferenceRecord], dict[str, Any], JudgingConfig, Backend]:
    """Return the pairs, what was counted, how they are judged, and what answers."""
    records, counts = load_pairs(rows, args)
    must_be_finished(args.model_name_or_path)
    return records, counts, *set_up(args, replace(chosen, model=args.model_name_or_path))


def sampling_reading(data: RowArguments, args: SamplingArguments, chosen: BackendArguments) -> Reading | None:
    """Return how the model reads pairs; None where it is not at hand, but behind a server or in stored completions."""
    if chosen.backend not in ("transformers", "vllm"):
        note(f"--backend {chosen.backend}: what it would refuse shows when it is asked; the files alone are checked")
        return None
    return Reading(
        model=args.model_name_or_path,
        data=data,
        cache=Path(args.frame_cache),
        min_pixels=chosen.min_pixels,
        max_pixels=chosen.max_pixels,
        completion=args.max_new_tokens,
        most=chosen.max_model_len,
        learns=False,
    )


def load_pairs(
    data: RowArguments, args: SamplingArguments, reading: Reading | None = None
) -> tuple[list[PreferenceRecord], dict[str, Any]]:
    """Return the pairs with a winner, those that a `reading` refuses left out, and what was counted.

    Raises:
        DataError: rows cannot be used, or no pair has a winner.
    """
    loaded: Loaded[PreferenceRecord] = load_checked_records(
        data.train_files,
        sampling=args.frame_sampling,
        media_root=data.media_root,
        skip_bad=data.skip_bad,
        need_label=False,
        form=args.asked_form,
    )
    form = args.asked_form
    decided = loaded.only(lambda record: form.decides(record) or by_order(record, form))
    if not decided.rows:
        raise DataError(f"{', '.join(data.train_files)}: no record has {PAIRWISE.needs}; rejection sampling needs some")
    used = decided.only(limit=data.limit)
    beyond = len(decided.rows) - len(used.rows)
    if reading is not None:
        config = args.config()
        used = reading.readable(used, lambda record: prompt_rows(record, config))
    report_left_out(used.bad)
    return used.rows, {
        "rows": len(loaded.rows) + len(loaded.bad),
        "bad rows left out": len(used.bad),
        **undecided(loaded.rows),
        "pairs beyond the limit": beyond,
        "pairs": len(used.rows),
    }


def trace_rules(args: SamplingArguments) -> dict[str, bool]:
    """Return the rules of `trace_rules.rejections` that are switched on."""
    return {name: getattr(args, name) for name in ("require_correct", "require_strict", "require_arithmetic")}


def choose(traces: Sequence[Judgment], keep: Keep) -> list[Judgment]:
    """Return the traces to keep of one pair, each of which stands for itself; see `kept_of`."""
    return kept_of([(row,) for row in traces], keep)


def by_order(record: PreferenceRecord, form: Form) -> bool:
    """Return whether the scores of a record's candidates are held against a preference alone."""
    return form is POINTWISE and record.count == 2 and record.winner is not None and not form.decides(record)


def split_pairs(
    records: Iterable[PreferenceRecord], judgments: Sequence[Judgment], args: SamplingArguments
) -> tuple[list[Trace], list[PreferenceRecord], dict[str, Any]]:
    """Return the kept traces, the hard pairs, and the counts behind them.

    The pass rate of a pair is the share of its samples that name the preferred candidate; where scores were asked for
    and the label is a preference, that of the combinations of samples that order it so (`traces.ordering`). A pair that
    could not be judged is neither kept nor hard.
    """
    by_id = by_record(judgments)
    rules = trace_rules(args)
    kept: list[Trace] = []
    hard: list[PreferenceRecord] = []
    passes: Counter[str] = Counter()
    for record in records:
        rows = by_id[record.id]
        if any(row.error for row in rows):
            passes["not judged"] += 1
            continue
        good = [row for row in rows if not rejections(row, **rules)]
        if by_order(record, args.asked_form):
            chosen = kept_of(ordered(good, margin=args.point_margin), args.keep)
            passed, total = order_rate(rows)
        else:
            chosen = choose(good, args.keep)
            passed, total = sum(bool(row.correct) for row in rows), len(rows)
        kept += [Trace(record=record, order=row.order, completion=row.completion or "") for row in chosen]
        passes[f"{passed}/{total}"] += 1
        if passed == 0 or passed / total < args.hard_below:
            hard.append(record)
    counts = {**_counts(kept, hard), "pairs by correct samples": dict(sorted(passes.items()))}
    used = {trace.record.id for trace in kept} | {record.id for record in hard}
    counts["neither kept nor hard"] = len(by_id) - len(used)
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
    args: SamplingArguments,
    *others: Any,
) -> dict[str, Any]:
    """Write kept.jsonl, hard.jsonl and manifest.json, each whole or not at all, and return all counts.

    The manifest goes first and comes last: where there is one, it belongs to the files beside it.
    """
    kept, hard, split = split_pairs(records, judgments, args)
    manifest = describe(args, *others, stage=STAGE, finished=True, counts={**counts, **split})
    (folder / "manifest.json").unlink(missing_ok=True)
    write_whole(folder / "kept.jsonl", json_lines(kept))
    write_whole(folder / "hard.jsonl", json_lines(hard))
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return split


if __name__ == "__main__":
    run.run_stage(main)
