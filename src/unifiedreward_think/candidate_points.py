"""What all samples say together of one candidate that was scored.

Its points are the mean over readable samples of where the score stands on its scale, from 0 to 1 (`Score.share`), so
that scales of 1 to 5, 1 to 10 and 0 to 100 compare. Unreadable and failed samples abstain.

>>> from unifiedreward_think.points import parse_points
>>> said = ["<answer>24/30</answer>", "<answer>21/30</answer>", "about 8"]
>>> rows = [Judgment(record_id="kite", order="b", form="pointwise", sample=i, completion=text, task="",
...                  verdict=parse_points(text, "Image", style="direct")) for i, text in enumerate(said)]
>>> points = points_of(rows)["kite"][2]
>>> str(points.score), round(points.share, 3), round(points.spread, 3), points.unreadable
('22.5/30', 0.722, 0.056, 1)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from unifiedreward_think.forms import POINTWISE
from unifiedreward_think.order import candidate_at
from unifiedreward_think.records import Judgment
from unifiedreward_think.scores import Dimension, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """What all samples say of one candidate.

    Attributes:
        record_id, candidate: which one, from 1 as it is stored.
        samples: the judgments.
    """

    record_id: str
    candidate: int
    samples: tuple[Judgment, ...]

    @property
    def scores(self) -> list[Score]:
        """The readable scores, as they were said."""
        return [row.verdict.score for row in self.samples if row.verdict.score is not None]

    @property
    def score(self) -> Score | None:
        """The mean of the scores as they were said; None without a readable one, or where their scales differ."""
        scales = {score[1:] for score in self.scores}
        return Score(fmean(score.value for score in self.scores), *scales.pop()) if len(scales) == 1 else None

    @property
    def share(self) -> float | None:
        """The points: the mean of the shares; None without a readable score."""
        return fmean(score.share for score in self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """The standard deviation of the shares; None with fewer than two."""
        return pstdev(score.share for score in self.scores) if len(self.scores) > 1 else None

    @property
    def expected(self) -> float | None:
        """The mean of where the expected scores stand on their scales; None where no sample has one."""
        shares = [each.score.share for row in self.samples if (each := row.expectation) and each.score is not None]
        return fmean(shares) if shares else None

    @property
    def unreadable(self) -> int:
        """How many samples have no readable score, failed ones included."""
        return len(self.samples) - len(self.scores)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The mean score on each dimension, of the readable samples that name it."""
        by_name: defaultdict[str, list[float]] = defaultdict(list)
        for row in self.samples:
            for dimension in row.verdict.dimensions if row.readable else ():
                by_name[dimension.name] += dimension.scores
        return tuple(Dimension(name, (fmean(scores),)) for name, scores in by_name.items())

    @property
    def label(self) -> float | None:
        """Where the score that people gave stands on its scale; None without one."""
        share: float | None = POINTWISE.gold(self.samples[0], self.samples[0].order)
        return share

    @property
    def cluster(self) -> str:
        """That of its judgments."""
        return self.samples[0].cluster

    @property
    def chosen(self) -> Judgment:
        """The judgment whose reasoning stands for all: the first readable one, else the first."""
        return next((row for row in self.samples if row.readable), self.samples[0])

    @property
    def error(self) -> str:
        """Why the first failed sample failed; empty if none did."""
        return next((row.error for row in self.samples if row.error), "")

    @property
    def reason(self) -> str:
        """Why there are no points; empty where there are."""
        return "" if self.scores else self.chosen.why_unreadable

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without the judgments; a score is its mean value, lowest and highest."""
        return {
            "id": self.record_id,
            "candidate": self.candidate,
            "points": self.share,
            "score": None if self.score is None else list(self.score),
            "spread": self.spread,
            **({"expected": self.expected} if any(row.expectation for row in self.samples) else {}),
            "dimensions": [[dimension.name, *dimension.scores] for dimension in self.dimensions],
            "samples": len(self.samples),
            "unreadable": self.unreadable,
            "error": self.error,
            "reason": self.reason,
        }


def points_of(judgments: Iterable[Judgment]) -> dict[str, dict[int, Points]]:
    """Return record id -> candidate -> its points, of the judgments that were asked for a score."""
    rows: defaultdict[str, defaultdict[int, list[Judgment]]] = defaultdict(lambda: defaultdict(list))
    for row in judgments:
        if row.form == POINTWISE.name:
            rows[row.record_id][candidate_at(1, row.order)].append(row)
    return {
        name: {
            candidate: Points(record_id=name, candidate=candidate, samples=tuple(samples))
            for candidate, samples in sorted(candidates.items())
        }
        for name, candidates in rows.items()
    }
