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
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from unifiedreward_think.blocks import Style
from unifiedreward_think.checksums import read_checked, summed
from unifiedreward_think.data.arguments import FRAMES, PROMPTS, ShownArguments, command, frame_sampling
from unifiedreward_think.data.export_files import WRITTEN, is_whole, listed, write_rows
from unifiedreward_think.data.formats.files import BadRow
from unifiedreward_think.data.rows import grpo_row, prompt_row, sft_row
from unifiedreward_think.data.shards import (
    MANIFEST,
    Removal,
    as_json,
    claim,
    described,
    read_tracked,
    reason_kind,
)
from unifiedreward_think.errors import MediaError, RecordError
from unifiedreward_think.flags import read
from unifiedreward_think.forms import PAIRWISE, POINTWISE, Form
from unifiedreward_think.in_use import LOCK, release
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.plain_text import as_text
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import Trace, digest
from unifiedreward_think.writing import open_whole, write_whole

FORMATS = ("records", "trl", "released-grpo", "released-sft", "llamafactory", "easyr1")
IMAGE = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """How rows become rows of another tool.

    Attributes:
        prompts: task -> template.
        style: "cot" or "direct".
        sampling: how videos become frames.
        form: what is asked for; only stock TRL's rows may ask for a score.
        media_root: paths below it are written relative to it; None writes absolute paths.
    """

    prompts: Mapping[str, str]
    style: Style
    sampling: FrameSampling
    media_root: Path | None = None
    form: Form = PAIRWISE

    def settings(self) -> dict[str, Any]:
        """Return what decides the rows besides the records."""
        return {
            "prompts": f"{digest(*sorted(self.prompts.items())):016x}",
            "style": self.style,
            "frames": self.sampling.frames,
            "decoder": self.sampling.decoder,
            "media root": str(self.media_root or ""),
            **({"form": self.form.name} if self.form is not PAIRWISE else {}),
        }

    def question(self, row: Trace) -> tuple[str, list[str]]:
        """Return the prompt of a row as one text with a placeholder for each picture, and the pictures.

        Raises:
            MediaError: a picture cannot be found.
        """
        shown = prompt_row(row.record, row.order, self.prompts, self.sampling)
        texts = [piece["text"] for piece in shown["prompt"][0]["content"]]
        return "".join(text or IMAGE for text in texts), [self._path(image) for image in shown["images"]]

    def answered(self, row: Trace) -> str:
        """Return the target of supervised training.

        Raises:
            RecordError: the row has no chain of thought.
        """
        if self.style == "direct":
            return f"<answer>{self.solution(row)}</answer>"
        if not row.completion:
            raise RecordError("the row has no chain of thought; distill one, or export with --style direct")
        return row.completion

    def solution(self, row: Trace) -> str:
        """Return the gold answer of a row.

        Raises:
            RecordError: the row is a tie, no pair, or has no preference.
        """
        if misfit := PAIRWISE.misfit(row.record):
            raise RecordError(f"{misfit}; export it as records, or as trl with form pointwise")
        if row.record.preferred is None:
            raise RecordError("no preference; export it as records")
        text = PAIRWISE.solution_of(row.record, row.order)  # the form of all these tools
        if text is None:
            raise RecordError("a tie")
        return text

    def released_grpo(self, row: Trace) -> dict[str, Any]:
        """Return a row with `problem`, `solution` and `images`."""
        gold = self.solution(row)
        problem, images = self._released(row)
        return {"id": row.record.id, "problem": problem, "solution": gold, "images": images}

    def released_sft(self, row: Trace) -> dict[str, Any]:
        """Return a row with `conversations` and `images`."""
        self.solution(row)
        answer = self.answered(row)
        problem, images = self._released(row)
        turns = [{"from": "human", "value": problem}, {"from": "gpt", "value": as_text(answer)}]
        return {"id": row.record.id, "conversations": turns, "images": images}

    def easyr1(self, row: Trace) -> dict[str, Any]:
        """Return a row with `problem`, `answer` and `images`."""
        released = self.released_grpo(row)
        return {"problem": released["problem"], "answer": released["solution"], "images": released["images"]}

    def trl_grpo(self, row: Trace) -> dict[str, Any] | list[dict[str, Any]]:
        """Return a GRPO row of TRL; with form pointwise, one for each candidate that has a score.

        Raises:
            RecordError: the row has no gold answer.
        """
        if self.form is POINTWISE:
            if self.form.misfit(row.record) or not self.form.decides(row.record):
                raise RecordError(self.form.misfit(row.record) or f"no score; form pointwise needs {self.form.needs}")
            orders = [order for order in self.form.orders(row.record) if self.form.gold(row.record, order) is not None]
            shown = (self.prompts, self.sampling, self.style)
            return [grpo_row(row.record, order, *shown, form=self.form) for order in orders]
        self.solution(row)
        return grpo_row(row.record, row.order, self.prompts, self.sampling, self.style)

    def trl_sft(self, row: Trace) -> dict[str, Any]:
        """Return an SFT row of TRL."""
        if self.form is POINTWISE:
            if row.order not in self.form.orders(row.record):
                raise RecordError(f"a trace in order {row.order!r} is of a pair, not of one candidate")
            return sft_row(row, self.prompts, self.sampling, form=self.form)
        self.solution(row)
        return sft_row(replace(row, completion=self.answered(row)), self.prompts, self.sampling)

    def _released(self, row: Trace) -> tuple[str, list[str]]:
        """Return prompt and pictures, refusing a video that the released formats tell from pictures by their number."""
        problem, images = self.question(row)
        if row.record.task == "video_understanding" and len(images) <= 2:
            raise RecordError(f"a video of {len(images)} frames is read back as pictures; raise --frames")
        return problem, images

    def _path(self, image: str) -> str:
        return image if self.media_root is None else os.path.relpath(image, self.media_root)


Convert = Callable[[Trace], dict[str, Any] | list[dict[str, Any]]]


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
    before = read_checked(output / MANIFEST) or {}
    files: dict[str, str] = before.get("files", {})
    counts: dict[str, Any] = before.get("counts", {})
    if not files or not is_whole(output, files):
        counts = _export(folders, output, form, exporter, files)
        manifest = {**about, "counts": counts, "files": listed(output, files), **provenance()}
        write_whole(output / MANIFEST, as_json(summed(manifest)))
    shutil.rmtree(output / WRITTEN, ignore_errors=True)
    release(output / LOCK)
    return counts


def _export(
    folders: Sequence[Path], output: Path, form: str, exporter: Exporter, files: dict[str, str]
) -> dict[str, Any]:
    """Write all files but the manifest; return the counts."""
    written: dict[str, int] = {}
    reasons: Counter[str] = Counter()
    with open_whole(output / "left_out.jsonl") as left:
        for name, convert, wanted in _files(form, exporter):
            rows = _converted(folders, convert, wanted, left, reasons)
            written[name] = write_rows(output, name, rows, files)
    if form == "llamafactory":
        write_whole(output / "dataset_info.json", as_json(DATASET_INFO))
    return {"written": written, "left out": dict(reasons)}


# The default tags of LLaMA-Factory are those of the released files; they are written out all the same.
DATASET_INFO = {
    "unifiedreward_think": {
        "file_name": "train_data.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    }
}


def _files(form: str, exporter: Exporter) -> Sequence[tuple[str, Convert, Callable[[Trace], bool]]]:
    """Return the files of a format: name, what makes a row, and which rows go in."""

    def every(row: Trace) -> bool:
        return True

    def traced(row: Trace) -> bool:
        return bool(row.completion)

    return {
        "records": [
            ("records.jsonl", lambda row: row.record.to_json(), lambda row: not row.completion),
            ("traces.jsonl", lambda row: row.to_json(), traced),
        ],
        "trl": [("train", exporter.trl_grpo, every), ("sft", exporter.trl_sft, traced)],
        "released-grpo": [("train_data.json", exporter.released_grpo, every)],
        "released-sft": [("train_data.json", exporter.released_sft, every)],
        "llamafactory": [("train_data.json", exporter.released_sft, every)],
        "easyr1": [("train", exporter.easyr1, every)],
    }[form]


def _converted(
    folders: Sequence[Path], convert: Convert, wanted: Callable[[Trace], bool], left: TextIO, reasons: Counter[str]
) -> Iterator[dict[str, Any]]:
    for file, number, row in read_tracked(folders, "exporting"):
        if not wanted(row):
            continue
        try:
            converted = convert(row)
            yield from converted if isinstance(converted, list) else [converted]
        except (RecordError, MediaError) as error:
            bad = BadRow(file, number, row.record.id, str(error)[:500])
            left.write(json.dumps(Removal(bad, broken=str(error) != "a tie").to_json()) + "\n")
            reasons[reason_kind(bad.reason)] += 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Export from the command line."""
    parser = command("export", __doc__, output="folder for the files")
    add = parser.add_argument
    add("--format", choices=FORMATS, required=True, help="of the tool that reads them")
    add("--media-root", type=Path, help="write paths relative to this folder (image_folder); default: absolute")
    parser.add(ShownArguments, "form", *PROMPTS, *FRAMES)
    args = parser.parse_args(arguments)
    shown = read(args, ShownArguments)
    if shown.asked_form is POINTWISE and args.format not in ("records", "trl"):
        parser.error(f"--format {args.format} is of pairs; --form {POINTWISE.name} goes with --format trl")
    exporter = Exporter(
        form=shown.asked_form,
        prompts=shown.templates(),
        style=args.style,
        sampling=frame_sampling(args, args.output / "frames"),
        media_root=args.media_root.absolute() if args.media_root else None,
    )
    print(as_json(export(args.input, args.output, args.format, exporter)), end="")
