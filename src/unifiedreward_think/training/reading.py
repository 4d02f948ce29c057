"""Rows as a run will read them: what the processor or the model would refuse is found before the first step.

    --check_data true      every row is rendered, tokenized and processed with its pictures
    --check_data fast      the same without pixels: how many tokens a picture takes is told from its size
    --check_data files     the files alone, where there is no model whose processor could read the rows

A run itself begins as `fast` does. Rows that were read once are not read again until they, their files or the processor
change: their digests are in `frame_cache`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.loading import Loaded, Row, settle
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.data.seen import digest_of, remembering
from unifiedreward_think.data.tokens import TokenCounter, picture_size
from unifiedreward_think.judging.judge import orders_of
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.models.chat_template import answer_alone
from unifiedreward_think.models.fitting import misplaced, positions, too_long
from unifiedreward_think.models.loading import UnsupportedModelError, load_config, load_processor
from unifiedreward_think.progress import in_threads
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.training.arguments import DataArguments, RowArguments
from unifiedreward_think.training.output import must_be_finished

Rows = Sequence[Mapping[str, Any]]


def reading_of(model_args: Any, data: DataArguments, args: Any) -> Reading:
    """Return how a training stage reads its rows; `args` are TRL's.

    Raises:
        InputError: the model is that of a run that was stopped before its end.
    """
    if data.check_data != "files":
        must_be_finished(model_args.model_name_or_path)
    template = dict(getattr(args, "chat_template_kwargs", None) or {})
    if (path := getattr(args, "chat_template_path", None)) and Path(path).is_file():
        template["chat_template"] = Path(path).read_text(encoding="utf-8")
    return Reading(
        model=model_args.model_name_or_path,
        data=data,
        cache=Path(data.frame_cache),
        revision=model_args.model_revision,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        completion=getattr(args, "max_completion_length", 0),
        most=args.vllm_max_model_length if getattr(args, "use_vllm", False) else None,
        template=template,
    )


def prompt_rows(record: PreferenceRecord, config: JudgingConfig) -> list[dict[str, Any]]:
    """Return the rows by which a record is judged, one for each order it is shown in."""
    form = config.form
    return [prompt_row(record, order, config.prompts, config.frames, form=form) for order in orders_of(record, config)]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a run reads its rows.

    Attributes:
        model: folder or Hub name.
        data: how much to check, and what to do with bad rows.
        cache: folder of what was read before.
        revision, min_pixels, max_pixels: as in `models.loading`.
        completion: most tokens that may follow a prompt; a row with a completion has its own.
        most: tokens of a prompt with its completion that the run allows itself; by default the model's positions.
        template: arguments of the chat template.
        learns: whether it trains, on a template that leaves the whole answer to the model.
    """

    model: str
    data: RowArguments
    cache: Path
    revision: str = "main"
    min_pixels: int | None = None
    max_pixels: int | None = None
    completion: int = 0
    most: int | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = True

    def readable(self, loaded: Loaded[Row], rows_of: Callable[[Row], Rows]) -> Loaded[Row]:
        """Return what is loaded, without those of whose rows one cannot be read; they are with the bad ones.

        Args:
            loaded: records or traces.
            rows_of: makes the rows of one.

        Raises:
            DataError: a row cannot be read and `skip_bad` is off, or none is left.
            InputError: there is no such model.
        """
        if self.data.check_data == "files":
            return loaded
        with remembering(self.cache / "read" / f"{self._context}.txt") as seen:
            reasons = list(
                in_threads(lambda one: self._problem(rows_of(one), seen), loaded.rows, "reading rows", unit="row")
            )
        return settle(loaded.without(reasons), skip_bad=self.data.skip_bad)

    def problem(self, row: Mapping[str, Any]) -> str:
        """Return why a run would refuse a row; "" where it would not."""
        texts = self._texts(row)
        if wrong := misplaced(texts["prompt"], self._processor, images=len(row["images"])):
            return wrong
        try:
            tokens = self._tokens(texts["prompt"], row["images"])
        except ValueError as error:  # what processors refuse, and pictures that cannot be opened
            return str(error)
        written = self.completion
        if "completion" in row:
            written = len(self._processor.tokenizer(texts["completion"], add_special_tokens=False)["input_ids"])
            if not row["completion"][0]["content"][0]["text"].strip():
                return "the completion is empty; there is nothing to learn"
        return too_long(tokens, written, self._most)

    def _problem(self, rows: Rows, seen: set[str]) -> str:
        """Return the first problem of rows that were not read before."""
        for row in rows:
            about = (row["prompt"], row.get("completion"), self.completion)
            key, pixels = digest_of(*about, files=row["images"]), self.data.check_data == "true"
            if f"{key}+" in seen or (key in seen and not pixels):
                continue
            if wrong := self.problem(row):
                return wrong
            if key:
                seen.add(f"{key}+" if pixels else key)
        return ""

    def _texts(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return the prompt, rendered, and the completion with the end of its turn, as TRL makes them."""
        from trl.data_utils import apply_chat_template

        messages = {key: row[key] for key in ("prompt", "completion") if key in row}
        texts: dict[str, str] = apply_chat_template(messages, self._processor, **self.template)
        return texts

    def _tokens(self, prompt: str, images: Sequence[str]) -> int:
        """Return the tokens of a rendered prompt, from its pictures or from their sizes."""
        if self.data.check_data != "true":
            return TokenCounter(self._processor).tokens(prompt, [picture_size(Path(image)) for image in images])
        from unifiedreward_think.data.picture_column import Picture

        pictures = [Picture().decode_example({"path": image, "bytes": None}) for image in images]
        fields = self._processor(
            images=[pictures] if pictures else None, text=[prompt], add_special_tokens=False, return_tensors="pt"
        )
        return int(fields["input_ids"].shape[1])

    @cached_property
    def _processor(self) -> Any:
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        processor = load_processor(self.model, revision=self.revision, **limits)
        if self.learns:
            answer_alone(processor, self.model)
        return processor

    @cached_property
    def _most(self) -> int:
        try:
            most = positions(load_config(self.model, self.revision))
        except UnsupportedModelError as error:
            fix = "; before it is there, --check_data files checks the files alone" if self.data.check_data else ""
            raise UnsupportedModelError(f"{error}{fix}") from error
        return most if self.most is None else min(most, self.most)

    @cached_property
    def _context(self) -> str:
        """What reads the rows: all that decides of tokenizer, chat template and processor."""
        most, processor = self._most, self._processor
        parts = (processor.to_json_string(), processor.chat_template, processor.tokenizer.backend_tokenizer.to_str())
        return hashlib.sha256(repr((*parts, sorted(self.template.items()), most)).encode()).hexdigest()[:32]
