"""Completions from stored judgments: the judge runs again as it did, without a model.

    python inference/image_generation.py --backend replay --model outputs/run/judgments.jsonl --input pairs.jsonl ...

The rows that come out are those of the stored run, read by the parser of today. A judgment that is not stored is an
item with an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import BackendError, Completion, Failure
from unifiedreward_think.backends.placement import PLACEMENT
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import RecordError
from unifiedreward_think.records import Judgment
from unifiedreward_think.strict_json import read_json_lines

LONGEST_TALE = 10.0


class ReplayBackend:
    """Answer from a file of judgments.

    `model` and `settings` are those of the stored run: what decided a completion stays with it, whatever the command
    line of the replay says.

    Args:
        path: a `judgments.jsonl`, all of one run.
        batch_size: pairs in one batch.

    Raises:
        BackendError: the file holds no completion, or those of several models or settings.
        RecordError: a line is no judgment.
    """

    def __init__(self, path: str | Path, *, batch_size: int = 256) -> None:
        rows = [row for row in _read(Path(path)) if row.completion is not None]
        made = {str((row.model, sorted((k, v) for k, v in row.settings.items() if k != PLACEMENT))) for row in rows}
        decoders = sorted({row.decoder for row in rows} - {""})
        if len(made) != 1 or len(decoders) > 1:
            raise BackendError(f"{path}: {len(made) or 'no'} settings among its completions; one run is needed")
        self.model = rows[0].model
        self.batch_size = batch_size
        self.settings: Mapping[str, Any] = {
            # How to parse is asked anew; everything else was decided when the completion was made.
            **{key: value for key, value in rows[0].settings.items() if key not in ("style", "expectation")},
            **({"decoder": decoders[0]} if decoders else {}),
        }
        self._path = path
        self._stored: dict[tuple[str, str, int], Judgment] = {(r.record_id, r.order, r.sample): r for r in rows}

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        """Return the stored completions of the samples of prompt i, from 0 on; `sampling` changes nothing."""
        return [
            [self._find(prompt["id"], prompt["order"], prompt.get("sample", 0) + k) for k in range(len(prompt_seeds))]
            for prompt, prompt_seeds in zip(prompts, seeds, strict=True)
        ]

    def stream(
        self, prompt: Mapping[str, Any], *, sampling: Sampling, seed: int, on_text: Callable[[str], object]
    ) -> Completion | Failure:
        """Return the stored first sample of a prompt; `on_text` takes it word by word, at the pace of its writing.

        A slow one is told faster, so that nobody waits longer than LONGEST_TALE seconds. An exception of `on_text` is
        passed on.
        """
        answer = self._find(prompt["id"], prompt["order"], 0)
        if isinstance(answer, Completion):
            words = re.findall(r"\s*\S+|\s+$", answer.text)
            pause = min(answer.seconds or 0.0, LONGEST_TALE) / max(1, len(words))
            for word in words:
                time.sleep(pause)
                on_text(word)
        return answer

    def _find(self, name: str, order: str, sample: int) -> Completion | Failure:
        row = self._stored.get((name, order, sample))
        if row is None or row.completion is None:
            return Failure(f"{self._path}: holds no completion of order {order!r}, sample {sample}")
        return Completion(row.completion, row.finish_reason, row.seconds)


def _read(path: Path) -> list[Judgment]:
    if not path.is_file():
        raise BackendError(f"{path}: no such file; name the judgments.jsonl of a run")
    rows = []
    for number, row in read_json_lines(path):
        try:
            rows.append(Judgment.from_json(row))
        except RecordError as error:
            raise RecordError(f"{path}:{number}: {error}") from error
    return rows
