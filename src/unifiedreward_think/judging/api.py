"""Judge from Python in three lines: pairs or single candidates, one at a time, or thousands into a file.

    from unifiedreward_think import Judge
    judge = Judge("CodeGoat24/UnifiedReward-Think-qwen-7b")
    print(judge("image_generation", "a red kite", ["a.png", "b.png"]).winner)

    judge = Judge("MODEL", form="pointwise")
    print(judge.score("image_generation", "a red kite", ["a.png"])[0].share)

The scripts in `inference/` are the same on the command line (`command.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.candidate_points import Points, points_of
from unifiedreward_think.errors import InputError
from unifiedreward_think.forms import PAIRWISE, POINTWISE, Form
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.presets import with_preset
from unifiedreward_think.judging.settings import JudgingArguments, set_up
from unifiedreward_think.metrics import by_record
from unifiedreward_think.old_names import current
from unifiedreward_think.records import PreferenceRecord, digest
from unifiedreward_think.votes import Result, combine

_BACKEND = {each.name for each in fields(BackendArguments)}


class Judge:
    """A model, and how it is asked.

    Args:
        model: folder or Hub name for transformers; with `backend` what that takes; or a backend that is made already.
        task: whose template a file of `prompts` is.
        settings: the fields of `JudgingArguments` and `BackendArguments`, which are the flags of the commands:
            `samples`, `orders`, `temperature`, `prompts`, `backend`, `server` ... `preset` names what a family of
            released judges needs; the others win over it.

    Raises:
        InputError: the settings contradict each other, or the backend cannot be made.
    """

    def __init__(self, model: str | Path | BackendArguments | Backend, *, task: str = "", **settings: Any) -> None:
        ways = with_preset(current(settings))
        chosen = {name: ways.pop(name) for name in _BACKEND & ways.keys()}
        judging = JudgingArguments(**ways)
        named = BackendArguments(model=str(model), **chosen) if isinstance(model, str | Path) else model
        self.tie_margin = judging.tie_margin
        self.config, self.backend = set_up(judging, named, task=task)

    def __call__(self, task: str, prompt: str, media: Sequence[str | Path], answers: Sequence[str] = ()) -> Result:
        """Judge one pair.

        Args:
            task: one of `records.TASK_NAMES`.
            prompt: the caption, or the question.
            media: the two candidates, or the pictures or the video that the question is about.
            answers: the two answers to the question.

        Raises:
            InputError: the judge was made for scores.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.file([_record(task, prompt, media, answers)], Path(folder, "judgments.jsonl"))[0]

    def score(self, task: str, prompt: str, media: Sequence[str | Path], answers: Sequence[str] = ()) -> list[Points]:
        """Score candidates, each alone, and return the points of each.

        Args:
            task: one of `records.TASK_NAMES`.
            prompt: the caption, or the question.
            media: the candidates, one or more; or the pictures or the video that the question is about.
            answers: the answers to the question, one or more.

        Raises:
            InputError: the judge was not made with `form="pointwise"`.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.score_file([_record(task, prompt, media, answers)], Path(folder, "judgments.jsonl"))

    def file(self, records: Sequence[PreferenceRecord], output: Path) -> list[Result]:
        """Judge pairs into `output`, going on from what it holds; an item that fails has an `error`."""
        self._must_ask(PAIRWISE, "score")
        rows = by_record(judge(records, self.backend, self.config, output))
        return [combine(rows[record.id], tie_margin=self.tie_margin) for record in records]

    def score_file(self, records: Sequence[PreferenceRecord], output: Path) -> list[Points]:
        """Score the candidates of records into `output`, going on from what it holds; see `file`."""
        self._must_ask(POINTWISE, "call the judge")
        points = points_of(judge(records, self.backend, self.config, output))
        return [each for record in records for each in points[record.id].values()]

    def _must_ask(self, form: Form, instead: str) -> None:
        if self.config.form is not form:
            raise InputError(
                f"the judge was made with form {self.config.form.name!r}: make one with {form.name!r}, or {instead}"
            )


def _record(task: str, prompt: str, media: Sequence[str | Path], answers: Sequence[str]) -> PreferenceRecord:
    paths = [str(path) for path in media]
    return PreferenceRecord(
        id=f"{digest(task, prompt, *paths, *answers):016x}",
        task=task,
        prompt=prompt,
        media=tuple((path,) for path in paths),
        answers=tuple(answers),
    )
