"""A calibration: a fitted model of P(1), P(tie), P(2), what it was fitted on, and the file that keeps it.

    python -m unifiedreward_think.evaluation.calibrate outputs/eval/mine --output outputs/calibration.json

    calibration = read_calibration(Path("outputs/calibration.json"))
    calibration.probabilities(judgments)["kite-1"].first

It fits judgments made as those were that it was fitted on: of this model, with these prompts, so many samples in these
orders. Any other is refused by name, and so are pairs that it was fitted on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifiedreward_think.checksums import checked, summed
from unifiedreward_think.davidson import Davidson, fit
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evidence import evidence_of
from unifiedreward_think.metrics import by_record
from unifiedreward_think.probability_metrics import Probabilities
from unifiedreward_think.records import Judgment, digest
from unifiedreward_think.writing import write_whole

# Settings of judgments that say nothing of how sure a verdict is.
_OF_NO_WEIGHT = {"seed", "placement"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted model and what it was fitted on.

    Attributes:
        model: gives the probabilities.
        settings: how the judgments were made that it was fitted on.
        pairs: labelled pairs that it was fitted on.
        labels: how many of them have which label.
        data: digest of these pairs, their judgments and labels.
        seen: digests of the clusters they belong to.
        origin: where the calibration was read; "" for one just fitted.
    """

    model: Davidson
    settings: Mapping[str, Any]
    pairs: int
    labels: Mapping[str, int]
    data: str
    seen: frozenset[str]
    origin: str = ""

    def probabilities(self, judgments: Sequence[Judgment]) -> dict[str, Probabilities]:
        """Return record id -> its probabilities.

        Raises:
            RecordError: the judgments were made in another way, or the calibration was fitted on some of the pairs.
        """
        self.check(judgments)
        return {name: self.model.probabilities(pair) for name, pair in evidence_of(judgments).items()}

    def check(self, judgments: Sequence[Judgment]) -> None:
        """Refuse judgments that the calibration does not fit.

        Raises:
            RecordError: names the setting that differs, or the pair.
        """
        name = self.origin or "the calibration"
        now = settings_of(judgments)
        if key := _difference(self.settings, now):
            raise RecordError(
                f"{name}: fitted on judgments with {key} = {self.settings.get(key)!r}, these have {now.get(key)!r}; "
                "fit another with python -m unifiedreward_think.evaluation.calibrate"
            )
        if row := next((row for row in judgments if row.preferred is not None and _seen(row) in self.seen), None):
            raise RecordError(
                f"{name}: fitted on record {row.record_id!r} or one of its group, so it cannot score it; take other "
                "pairs, or leave the calibration out: then each pair is scored by a model fitted on the others"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, with a sum of it."""
        return summed(
            {
                "strength": dict(self.model.strength),
                "tie": None if self.model.tie is None else dict(self.model.tie),
                "settings": dict(self.settings),
                "pairs": self.pairs,
                "labels": dict(self.labels),
                "data": self.data,
                "seen": sorted(self.seen),
            }
        )


def calibrate(judgments: Sequence[Judgment]) -> Calibration:
    """Return the calibration that the labelled pairs of these judgments give.

    Raises:
        RecordError: they were not made in one way, are not of pairs, or too few are labelled.
    """
    labelled = [row for row in judgments if row.preferred is not None]
    pairs = evidence_of(labelled)
    lines = sorted(json.dumps([*_key(row), row.content, row.preferred, row.verdict.to_json()]) for row in labelled)
    return Calibration(
        model=fit(list(pairs.values())),
        settings=settings_of(judgments),
        pairs=len(pairs),
        labels=dict(sorted(Counter(str(pair.label) for pair in pairs.values()).items())),
        data=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        seen=frozenset(map(_seen, labelled)),
    )


def settings_of(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """Return how judgments were made: their settings, and how many samples of a pair there are in how many orders.

    Raises:
        RecordError: two of them were made in different ways.
    """
    rows = list(judgments)
    common: dict[str, Any] = {}
    for row in rows:
        kept = {key: value for key, value in row.settings.items() if key not in _OF_NO_WEIGHT}
        made = {"form": row.form, "model": row.model, **kept}
        common = common or made
        if key := _difference(common, made):
            raise RecordError(
                f"record {row.record_id!r}: judged with {key} = {made.get(key)!r}, others with {common.get(key)!r}; "
                "take judgments that were made in one way"
            )
    groups = by_record(rows).values()
    samples = max((len({row.sample for row in group}) for group in groups), default=0)
    orders = max((len({row.order for row in group}) for group in groups), default=0)
    return {**common, "samples": samples, "orders": orders}


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration file.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole(path, json.dumps(calibration.to_json(), indent=1) + "\n")


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        RecordError: there is none, or it is no calibration, or has changed since it was written.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file; python -m unifiedreward_think.evaluation.calibrate writes one")
    try:
        row = checked(json.loads(path.read_bytes()))
        tie = row["tie"]
        return Calibration(
            model=Davidson(_numbers(row["strength"]), None if tie is None else _numbers(tie)),
            settings=row["settings"],
            pairs=row["pairs"],
            labels=row["labels"],
            data=row["data"],
            seen=frozenset(row["seen"]),
            origin=str(path),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}: not a calibration ({error}); fit it again") from error


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return a setting that differs, "" where none does; the same weights in another folder are the same model."""
    moved = one.get("weights") is not None and one.get("weights") == other.get("weights")
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key) and not (moved and key == "model")]
    return keys[0] if keys else ""


def _numbers(weights: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(weight) for name, weight in weights.items()}


def _key(row: Judgment) -> tuple[str, str, int]:
    return row.record_id, row.order, row.sample


def _seen(row: Judgment) -> str:
    return f"{digest('seen', row.cluster):016x}"
