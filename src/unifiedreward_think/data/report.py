r"""One HTML page about imported records: counts, labels, positions, media, lengths, and pairs to look at.

    python -m unifiedreward_think.data report --input data/clean --output data/report.html \
        --processor Qwen/Qwen2.5-VL-7B-Instruct Qwen/Qwen3-VL-8B-Instruct

Counts are of all rows. Media sizes and token lengths are of `--sample` rows, drawn by digest. The page opens offline.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unifiedreward_think.data.arguments import FRAMES, ShownArguments, command, frame_sampling
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.data.shards import MANIFEST, manifest_of, read_tracked, total_rows
from unifiedreward_think.data.tokens import TokenCounter, picture_size
from unifiedreward_think.errors import MediaError
from unifiedreward_think.flags import Count, Whole, ranged, read
from unifiedreward_think.forms import PAIRWISE, POINTWISE
from unifiedreward_think.intervals import Rate
from unifiedreward_think.media import FrameSampling, image_paths, thumbnails
from unifiedreward_think.pages import in_turn, write_page
from unifiedreward_think.pages.origin import NOT_RECORDED, recorded, versions
from unifiedreward_think.pages.origin import table as fact_table
from unifiedreward_think.progress import track
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.records import Trace, digest
from unifiedreward_think.scores import share_of
from unifiedreward_think.tasks import TASKS

CONTEXTS = (2048, 4096, 8192, 16384, 32768)
SIDES = (256, 512, 768, 1024, 1536, 2048)
CHARS = (50, 100, 200, 400, 800, 1600)
PARTS = 3  # of a folder, named one by one
TOKENS = (1024, 2048, 4096, 8192, 16384)


@dataclass(slots=True)
class Counts:
    """What is counted of all rows, by source."""

    tasks: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    shares: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0]))
    judged_by: dict[str, str] = field(default_factory=dict)
    traces: Counter[str] = field(default_factory=Counter)
    prompt_chars: Counter[str] = field(default_factory=Counter)

    def add(self, row: Trace) -> None:
        """Count a row."""
        record = row.record
        self.tasks[record.source, record.task] += 1
        self.labels[record.source, str(record.preferred)] += 1
        for score in record.scores:
            if score is not None and record.scale is not None:
                self.shares[record.source][0] += 1
                self.shares[record.source][1] += share_of(score, record.scale)
        self.judged_by.setdefault(record.source, record.judged_by)
        self.traces[record.source] += bool(row.completion)
        self.prompt_chars[bin_of(len(record.prompt), CHARS)] += 1

    def rows(self) -> list[dict[str, Any]]:
        """Return a line of the table for each source and task, with the labels of the source."""
        lines = []
        for (source, task), number in sorted(self.tasks.items()):
            first, second, ties = (self.labels[source, label] for label in ("1", "2", "tie"))
            rate = Rate(first, first + second)
            scored, total = self.shares.get(source, (0, 0.0))
            lines.append(
                {
                    "source": source,
                    "task": task.replace("_", " "),
                    "rows": number,
                    "first": first,
                    "second": second,
                    "ties": ties,
                    "scores": int(scored),
                    "mean_score": f"{total / scored:.2f} of the scale" if scored else "-",
                    "traces": self.traces[source],
                    "rate": str(rate),
                    "off": rate.low is not None and rate.high is not None and not rate.low <= 0.5 <= rate.high,
                    "judged_by": self.judged_by[source],
                }
            )
        return lines


def bin_of(value: int, edges: Sequence[int]) -> str:
    """Return the name of the bin a number falls into.

    >>> bin_of(50, (50, 100)), bin_of(51, (50, 100)), bin_of(101, (50, 100))
    ('up to 50', 'up to 100', 'more')
    """
    return next((f"up to {edge:,}" for edge in edges if value <= edge), "more")


def bars(counts: Mapping[str, int], edges: Sequence[int]) -> list[dict[str, Any]]:
    """Return the bins of a histogram with their share and the length of their bar."""
    names = [*(f"up to {edge:,}" for edge in edges), "more"]
    total, most = sum(counts.values()) or 1, max(counts.values(), default=1) or 1
    return [
        {"name": name, "share": 100 * counts.get(name, 0) / total, "width": 100 * counts.get(name, 0) / most}
        for name in names
    ]


def fitting(lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return which share of rows fits each context.

    >>> [round(line["share"]) for line in fitting([1000, 3000, 9000, 40000])]
    [25, 50, 50, 75, 75]
    """
    total = len(lengths) or 1
    return [{"context": c, "share": 100 * sum(length <= c for length in lengths) / total} for c in CONTEXTS]


def sampled(rows: Iterable[Trace], size: int) -> list[Trace]:
    """Return `size` rows, those of the smallest digests."""
    return heapq.nsmallest(size, rows, key=lambda row: digest("report", row.record.id))


def spread(rows: Iterable[Trace], size: int) -> list[Trace]:
    """Return `size` of the rows, every source and task in turn, so that a large source does not hide the others."""

    def kind(row: Trace) -> tuple[str, str]:
        return row.record.source, row.record.task

    return in_turn(sorted(rows, key=kind), kind)[:size]


def token_lengths(
    rows: Sequence[Trace], counter: TokenCounter, sampling: FrameSampling, prompts: Mapping[str, str]
) -> tuple[list[int], list[str]]:
    """Return the tokens of each row, its completion included, and why the other rows have none."""
    lengths, problems = [], []
    alone = load_prompts(candidates=POINTWISE.candidates, home=POINTWISE.prompts)
    for row in track(rows, f"counting tokens of {counter.name}", unit="row"):
        try:
            shown = _asked(row, prompts, alone, sampling)
            sizes = [picture_size(Path(path)) for path in shown["images"]]
            lengths.append(counter.count(shown["prompt"][0]["content"], sizes, row.completion))
        except MediaError as error:
            problems.append(str(error))
    return lengths, problems


def _asked(row: Trace, pairs: Mapping[str, str], alone: Mapping[str, str], sampling: FrameSampling) -> dict[str, Any]:
    """Return the prompt of a pair, or that which asks for a score of the first of other numbers of candidates."""
    if PAIRWISE.misfit(row.record):
        return prompt_row(row.record, POINTWISE.orders(row.record)[0], alone, sampling, form=POINTWISE)
    return prompt_row(row.record, row.order, pairs, sampling)


def example(row: Trace, sampling: FrameSampling) -> dict[str, Any]:
    """Return a pair as the page shows it."""
    record, task = row.record, TASKS[row.record.task]
    media = thumbnails(record.media, task.media_kind, sampling)
    return {"record": record, "media": media, "noun": task.noun, "compares_media": task.compares_media}


def media_sides(rows: Sequence[Trace], sampling: FrameSampling) -> Counter[str]:
    """Return how many pictures have which longer side; those that cannot be read are counted as such."""
    sides: Counter[str] = Counter()
    for row in rows:
        kind = TASKS[row.record.task].media_kind
        for entry in row.record.media:
            try:
                sides.update(bin_of(max(picture_size(path)), SIDES) for path in image_paths(entry, kind, sampling))
            except MediaError:
                sides["unreadable"] += 1
    return sides


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    prompts: Mapping[str, str],
    sampling: FrameSampling,
    processors: Sequence[str] = (),
    sample: int = 1000,
    examples: int = 12,
) -> None:
    """Write the page.

    Raises:
        DataError: a folder is not complete, or a processor cannot be loaded.
    """
    counters = [TokenCounter(name) for name in processors]
    counts = Counts()
    for _, _, row in read_tracked(folders, "counting"):
        counts.add(row)
    drawn = sampled((row for _, _, row in read_tracked(folders, "drawing")), max(sample, examples))
    measured = [_measured(drawn[:sample], counter, sampling, prompts) for counter in counters]
    sides = media_sides(drawn[:sample], sampling)
    unreadable = sides.pop("unreadable", 0)
    write_page(
        output,
        Path(__file__).with_name("report.html"),
        title="Preference data",
        folders=[str(folder) for folder in folders],
        origin=fact_table({str(folder): origin(folder) for folder in folders}),
        total=total_rows(folders),
        table=counts.rows(),
        removed=removals(folders),
        sample=len(drawn[:sample]),
        sides=bars(sides, SIDES),
        unreadable=unreadable,
        chars=bars(counts.prompt_chars, CHARS),
        tokens=measured,
        examples=[example(row, sampling) for row in spread(drawn, examples)],
    )


def _measured(
    rows: Sequence[Trace], counter: TokenCounter, sampling: FrameSampling, prompts: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the page says of the token lengths with one processor."""
    lengths, problems = token_lengths(rows, counter, sampling, prompts)
    bins = Counter(bin_of(length, TOKENS) for length in lengths)
    block = {"name": counter.name, "rows": len(lengths), "unreadable": len(problems), "bars": bars(bins, TOKENS)}
    return {**block, "longest": max(lengths, default=0), "fits": fitting(lengths)}


def origin(folder: Path) -> dict[str, str]:
    """Return how the records of a folder came about, from its manifest.

    It names no time, so that the same input makes the same bytes: the date is that of the file.
    """
    manifest = manifest_of(folder)
    written = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)
    inputs = (recorded(each.get("name") or each.get("folder"), **_digest(each)) for each in manifest.get("inputs", ()))
    asked = {name: value for name, value in manifest.get("settings", {}).items() if value not in (None, "", [], {})}
    settings = ", ".join(f"{name} {value}" for name, value in asked.items())
    parts = [f"{part['file']} (rows {part['rows']:,}, sha256 {part['sha256'][:12]})" for part in manifest["parts"]]
    more = f"; {len(parts) - PARTS:,} more in {MANIFEST}" if len(parts) > PARTS else ""
    return {
        "Made by": recorded(manifest.get("command")),
        "From": "; ".join(inputs) or NOT_RECORDED,
        "Settings": settings or NOT_RECORDED,
        "Parts": "; ".join(parts[:PARTS]) + more,
        **versions(manifest),
        "Date": f"{written:%Y-%m-%d %H:%M} UTC, that of {MANIFEST}",
    }


def _digest(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest knows of an input: the hash of a file, the commit of a data set, the hashes of parts."""
    parts = " ".join(sha256[:12] for sha256 in known.get("parts", ())[:PARTS])
    return {"sha256": known.get("sha256", "")[:12] or parts, "revision": known.get("revision")}


def removals(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return how many rows each folder left out, for which reason."""
    lines = []
    for folder in folders:
        counts = manifest_of(folder)["counts"]
        for key in ("left out", "broken"):
            lines += [
                {"folder": folder.name, "kind": key, "reason": reason, "rows": number}
                for reason, number in counts.get(key, {}).items()
            ]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Report from the command line."""
    parser = command("report", __doc__, output="the HTML file")
    add = parser.add_argument
    add("--processor", nargs="*", default=[], help="folders or Hub names of processors; token lengths are by each")
    add("--sample", type=ranged(Count), default=1000, help="rows whose media and tokens are measured")
    add("--examples", type=ranged(Whole), default=12, help="pairs to show")
    parser.add(ShownArguments, "prompts", *FRAMES)
    args = parser.parse_args(arguments)
    write_report(
        args.input,
        args.output,
        sampling=frame_sampling(args, args.output.parent / "frames"),
        processors=args.processor,
        sample=args.sample,
        examples=args.examples,
        prompts=read(args, ShownArguments).templates(),
    )
    print(args.output)
