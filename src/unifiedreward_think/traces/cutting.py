r"""Cut traces of pairs into traces of scores: what a teacher said of each candidate, with its sum.

    python -m unifiedreward_think.data cut --input data/cold_start/traces.jsonl --output data/points.jsonl

A pair's trace becomes two, whose order is the letter of the candidate; the record stays the pair's. Scores and sums are
those of the teacher. Of what stands before the first dimension a candidate keeps what is said of it ("Image 1: ...")
and what names none. A reason or a sentence that compares (names a candidate, "both" or "the other") says nothing of one
alone, and is left out. Then train on them with `form: pointwise`.

>>> from unifiedreward_think.records import PreferenceRecord
>>> from unifiedreward_think.verdict import render
>>> record = PreferenceRecord(id="kite", task="image_generation", prompt="a kite", media=(("a",), ("b",)), preferred=2)
>>> text = render(1, [("Light", 9, 4)], noun="Image", notes=[("even", "darker than Image 1")])
>>> for part in cut(Trace(record=record, order="ba", completion=text)):
...     print(part.order, part.completion.replace("\n", " | "))
b <think> | 1. Light: 9/10 - even | Total score: 9=9 | </think> | <answer>9/10</answer>
a <think> | 1. Light: 4/10 | Total score: 4=4 | </think> | <answer>4/10</answer>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unifiedreward_think.blocks import thinking
from unifiedreward_think.data.arguments import command
from unifiedreward_think.data.formats.files import BadRow, report_left_out
from unifiedreward_think.data.formats.loading import load_traces
from unifiedreward_think.errors import RecordError
from unifiedreward_think.flags import Parser
from unifiedreward_think.forms import PAIRWISE, POINTWISE
from unifiedreward_think.points import render_points
from unifiedreward_think.records import Trace
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Layout, read_notes
from unifiedreward_think.writing import write_whole

_FIRST_DIMENSION = re.compile(r"^[\s*#-]{0,8}1[.)]", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_COMPARES = re.compile(r"\b(?:image|video|answer|candidate) ?[12]\b|\bboth\b|\bthe other\b", re.IGNORECASE)


def cut(trace: Trace, layout: Layout = "one_line") -> list[Trace]:
    """Return a trace for each candidate of a pair, in the order shown.

    Raises:
        RecordError: the record cannot be asked for a score, or the scores and sums of the trace do not hold.
    """
    record, noun = trace.record, TASKS[trace.record.task].noun
    verdict = PAIRWISE.parse(trace.completion, noun)
    if misfit := POINTWISE.misfit(record):
        raise RecordError(misfit)
    if not verdict.arithmetic_ok:
        raise RecordError(f"cannot be cut: {verdict.problems[-1]}; only a trace whose sums hold can")
    notes = read_notes(trace.completion, noun)
    traces = []
    for place, order in enumerate(trace.order):
        scores = [(dimension.name, dimension.scores[place]) for dimension in verdict.dimensions]
        reasons = ["" if _COMPARES.search(note[place]) else note[place] for note in notes]
        preamble = seen_of(thinking(trace.completion), noun, place + 1)
        completion = render_points(scores, layout=layout, notes=reasons, preamble=preamble)
        traces.append(Trace(record=record, order=order, completion=completion))
    return traces


def seen_of(think: str, noun: str, place: int) -> str:
    r"""Return what a chain of thought says of one candidate before its first dimension.

    >>> seen_of("Asked: a kite. Image 1: red. It is sharp. Image 2: blue.\nImage 2 is smaller.\n1. Light:", "Image", 1)
    'Asked: a kite. Image: red. It is sharp.'
    """
    kept = []
    for line in _FIRST_DIMENSION.split(think)[0].strip().splitlines():
        owner = place  # until a candidate is named, what is said is said of each
        for sentence in _SENTENCE_END.split(line):
            if named := re.match(rf"{noun} ([12]): ", sentence):
                owner, sentence = int(named[1]), f"{noun}: {sentence[named.end() :]}"
            if owner == place and not _COMPARES.search(sentence):
                kept.append(sentence)
    return " ".join(kept)


def main(arguments: Sequence[str] | None = None) -> None:
    """Cut trace files from the command line."""
    args = _parser().parse_args(arguments)
    loaded = load_traces([str(file) for file in args.input], media_root=args.media_root, skip_bad=True)
    traces: list[Trace] = []
    bad = list(loaded.bad)
    for trace, place in zip(loaded.rows, loaded.places, strict=True):
        try:
            traces += cut(trace, args.layout)
        except RecordError as error:
            bad.append(BadRow(*place, trace.record.id, str(error)))
    report_left_out(bad)
    write_whole(args.output, json_lines(traces))
    print(f"{len(traces)} traces of scores, of {len(loaded.rows) + len(loaded.bad)} traces of pairs -> {args.output}")


def _parser() -> Parser:
    parser = command("cut", __doc__, output="file of the traces of scores (.jsonl)", inputs=False)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="files of traces of pairs")
    parser.add_argument("--media-root", help="folder that relative media paths start from (default: that of the input)")
    parser.add_argument("--layout", choices=("one_line", "three_line"), default="one_line", help="of a dimension")
    return parser
