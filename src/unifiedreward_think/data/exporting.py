r"""Write records in the formats of training tools.

    python -m unifiedreward_think.data export --input data/split/train --format released-grpo --output data/train.export

records         records.jsonl and traces.jsonl: what the stages of this project read
trl             train/*.parquet with TRL's columns for GRPO, sft/*.parquet for traces; pictures inside
released-grpo   train_data.json: problem, solution, images
released-sft    train_data.json: conversations, images
llamafactory    released-sft with one <image> for each picture, and dataset_info.json
easyr1          train/*.parquet: problem, answer, images (pictures inside); set data.prompt_key=problem

SFT formats need a chain of thought (import traces, or `distill`); with `--style direct` the answer alone is the target.
Ties are left out of all but `records`. What is left out is listed in left_out.jsonl.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from unifiedreward_think.data.arguments import add_frames, add_prompts, command, frame_sampling
from unifiedreward_think.data.formats.files import BadRow
from unifiedreward_think.data.formats.released import PLACEHOLDER
from unifiedreward_think.data.rows import grpo_row, sft_row, to_content, to_dataset, write_parquet
from unifiedreward_think.data.shards import (
    Removal,
    Stored,
    as_json,
    claim,
    described,
    read_tracked,
    reason_kind,
)
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.media import FrameSampling, MediaError
from unifiedreward_think.prompting import build_parts, load_prompts, solution
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import Trace, digest
from unifiedreward_think.verdict import Style
from unifiedreward_think.writing import open_whole, write_whole

FORMATS = ("records", "trl", "released-grpo", "released-sft", "llamafactory", "easyr1")
PARQUET_ROWS = 1000  # pictures are inside: this is what memory holds
IMAGE = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """How rows become rows of another tool.

    Attributes:
        prompts: task -> template.
        style: "cot" or "direct".
        sampling: how videos become frames.
        media_root: paths below it are written relative to it; None writes absolute paths.
    """

    prompts: Mapping[str, str]
    style: Style
    sampling: FrameSampling
    media_root: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Return what decides the rows besides the records."""
        return {
            "prompts": f"{digest(*sorted(self.prompts.items())):016x}",
            "style": self.style,
            "frames": self.sampling.frames,
            "decoder": self.sampling.decoder,
            "media root": str(self.media_root or ""),
        }

    def asked(self, row: Stored) -> tuple[str, list[str]]:
        """Return the prompt of a row as one text with a placeholder for each picture, and the pictures.

        Raises:
            RecordError: the text itself holds a placeholder, which no tool could tell from a picture.
            MediaError: a picture cannot be found.
        """
        parts = build_parts(row.record, order=row.order, prompts=self.prompts)
        content, images = to_content(parts, self.sampling)
        texts = [piece["text"] for piece in content]
        if any(text and PLACEHOLDER.search(text) for text in texts):
            raise RecordError("a text of the row holds <image> or <video>; the tool would take it for a picture")
        return "".join(text or IMAGE for text in texts), [self._path(image) for image in images]

    def answered(self, row: Stored) -> str:
        """Return the target of supervised training.

        Raises:
            RecordError: the row has no chain of thought.
        """
        if self.style == "direct":
            return f"<answer>{self.solution(row)}</answer>"
        if not row.completion:
            raise RecordError("the row has no chain of thought; distill one, or export with --style direct")
        return row.completion

    def solution(self, row: Stored) -> str:
        """Return the gold answer of a row.

        Raises:
            RecordError: the row is a tie.
        """
        said = solution(row.record, row.order)
        if said is None:
            raise RecordError("a tie")
        return said

    def released_grpo(self, row: Stored) -> dict[str, Any]:
        """Return a row with `problem`, `solution` and `images`."""
        said = self.solution(row)
        problem, images = self._released(row)
        return {"id": row.record.id, "problem": problem, "solution": said, "images": images}

    def released_sft(self, row: Stored) -> dict[str, Any]:
        """Return a row with `conversations` and `images`."""
        self.solution(row)
        said = self.answered(row)
        problem, images = self._released(row)
        turns = [{"from": "human", "value": problem}, {"from": "gpt", "value": said}]
        return {"id": row.record.id, "conversations": turns, "images": images}

    def easyr1(self, row: Stored) -> dict[str, Any]:
        """Return a row with `problem`, `answer` and `images`."""
        found = self.released_grpo(row)
        return {"problem": found["problem"], "answer": found["solution"], "images": found["images"]}

    def trl_grpo(self, row: Stored) -> dict[str, Any]:
        """Return a GRPO row of TRL."""
        self.solution(row)
        return grpo_row(row.record, row.order, self.prompts, self.sampling, self.style)

    def trl_sft(self, row: Stored) -> dict[str, Any]:
        """Return an SFT row of TRL."""
        self.solution(row)
        trace = Trace(record=row.record, order=row.order, completion=self.answered(row))
        return sft_row(trace, self.prompts, self.sampling)

    def _released(self, row: Stored) -> tuple[str, list[str]]:
        """Return prompt and pictures, refusing a video that the released formats tell from pictures by their number."""
        problem, images = self.asked(row)
        if row.record.task == "video_understanding" and len(images) <= 2:
            raise RecordError(f"a video of {len(images)} frames is read back as pictures; raise --frames")
        return problem, images

    def _path(self, image: Path) -> str:
        if self.media_root is None:
            return str(image)
        return os.path.relpath(image, self.media_root)


Convert = Callable[[Stored], dict[str, Any]]


def export(folders: Sequence[Path], output: Path, form: str, exporter: Exporter) -> dict[str, Any]:
    """Write the records of `folders` as `form` into `output`; return the counts.

    Every file appears whole, and the manifest comes last. What is complete is not written again: the whole export, or a
    file with pictures inside of one that was killed.

    Raises:
        DataError: a folder is not complete, or `output` holds an export of other inputs or settings.
    """
    inputs = [described(folder) for folder in folders]
    about = {"command": "export", "format": form, "inputs": inputs, "settings": exporter.settings()}
    claim(output, about)
    manifest = output / "manifest.json"
    if manifest.is_file():
        counts: dict[str, Any] = json.loads(manifest.read_bytes())["counts"]
        return counts
    written: dict[str, int] = {}
    reasons: Counter[str] = Counter()
    with open_whole(output / "left_out.jsonl") as left:
        for name, convert, wanted in _files(form, exporter):
            written[name] = _write(output / name, _converted(folders, convert, wanted, left, reasons))
    if form == "llamafactory":
        write_whole(output / "dataset_info.json", as_json(DATASET_INFO))
    counts = {"written": written, "left out": dict(reasons)}
    write_whole(manifest, as_json({**about, "counts": counts, **provenance()}))
    return counts


# The default tags of LLaMA-Factory are those of the released files; they are written out all the same.
DATASET_INFO = {
    "unifiedreward_think": {
        "file_name": "train_data.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    }
}


def _files(form: str, exporter: Exporter) -> Sequence[tuple[str, Convert, Callable[[Stored], bool]]]:
    """Return the files of a format: name, what makes a row, and which rows go in."""

    def every(row: Stored) -> bool:
        return True

    def traced(row: Stored) -> bool:
        return bool(row.completion)

    return {
        "records": [
            ("records.jsonl", lambda row: row.record.to_json(), lambda row: not row.completion),
            ("traces.jsonl", _trace, traced),
        ],
        "trl": [("train", exporter.trl_grpo, every), ("sft", exporter.trl_sft, traced)],
        "released-grpo": [("train_data.json", exporter.released_grpo, every)],
        "released-sft": [("train_data.json", exporter.released_sft, every)],
        "llamafactory": [("train_data.json", exporter.released_sft, every)],
        "easyr1": [("train", exporter.easyr1, every)],
    }[form]


def _trace(row: Stored) -> dict[str, Any]:
    return Trace(record=row.record, order=row.order, completion=row.completion).to_json()


def _converted(
    folders: Sequence[Path], convert: Convert, wanted: Callable[[Stored], bool], left: TextIO, reasons: Counter[str]
) -> Iterator[dict[str, Any]]:
    for file, number, row in read_tracked(folders, "exporting"):
        if not wanted(row):
            continue
        try:
            yield convert(row)
        except (RecordError, MediaError) as error:
            bad = BadRow(file, number, row.record.id, str(error)[:500])
            left.write(json.dumps(Removal(bad, broken=str(error) != "a tie").to_json()) + "\n")
            reasons[reason_kind(bad.reason)] += 1


def _write(target: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write rows as JSON lines, as a JSON list, or as parquet files in a folder of their own; return how many."""
    count = 0
    if not target.suffix:
        while chunk := list(islice(rows, PARQUET_ROWS)):
            part = target / f"train-{count // PARQUET_ROWS:05d}.parquet"
            if not part.is_file():  # else a killed run has written it, of the same rows: it is whole
                write_parquet(to_dataset(chunk), part)
            count += len(chunk)
        return count
    opening, between, closing = ("[\n", ",\n", "\n]\n") if target.suffix == ".json" else ("", "\n", "\n")
    with open_whole(target) as file:
        file.write(opening)
        for row in rows:
            file.write((between if count else "") + json.dumps(row))
            count += 1
        file.write(closing if count or opening else "")
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Export from the command line."""
    parser = command("export", __doc__, output="folder for the files")
    add = parser.add_argument
    add("--format", choices=FORMATS, required=True, help="of the tool that reads them")
    add("--media-root", type=Path, help="write paths relative to this folder (image_folder); default: absolute")
    add("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add_prompts(parser)
    add_frames(parser)
    args = parser.parse_args(arguments)
    exporter = Exporter(
        prompts=load_prompts(args.style, layout=args.layout, folder=args.prompt_dir),
        style=args.style,
        sampling=frame_sampling(args, args.output / "frames"),
        media_root=args.media_root.absolute() if args.media_root else None,
    )
    print(as_json(export(args.input, args.output, args.format, exporter)), end="")


if __name__ == "__main__":
    run_main(main)
