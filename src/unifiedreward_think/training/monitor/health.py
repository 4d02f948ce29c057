"""Tell from what a run logs that it is sick: a metric outside its band, with a likely cause and a fix.

A run is watched row by row. What is compared with a band is the mean over the last rows (`window`), so that one odd
step says nothing; a value that is no number counts at once.

>>> watch = Watch(window=2)
>>> watch.see({"step": 1, "loss": 0.1, "kl": 0.2}), watch.see({"step": 2, "loss": 0.1, "kl": 0.2})
([], [])
>>> print(watch.see({"step": 3, "loss": 0.1, "kl": 1.4})[0].headline)
kl is 0.8, should be <= 0.5
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from unifiedreward_think.training.monitor.thresholds import BANDS, HELD_OUT, Band

Row = Mapping[str, Any]
WINDOW = 10  # logged rows
EARLIER = 100  # rows before the window that a relative band looks back on


class Symptom(NamedTuple):
    """A metric outside its band: the mean over the window, and the limit at that moment."""

    band: Band
    value: float
    limit: float


class Episode(NamedTuple):
    """A stretch of steps in which a metric lies outside its band.

    Attributes:
        symptom: as it was first seen.
        first: step at which it was first seen.
        until: step at which the metric was back; None while it is not.
    """

    symptom: Symptom
    first: int
    until: int | None = None

    @property
    def headline(self) -> str:
        """What is wrong, in a few words."""
        band, value, limit = self.symptom
        return f"{band.metric} is {value:.3g}, should be {band.side} {limit:.3g}"

    def to_json(self) -> dict[str, Any]:
        """Return a line of health.jsonl; a value that is no number becomes null."""
        band, value, limit = self.symptom
        return {
            "metric": band.metric,
            "first": self.first,
            "until": self.until,
            "value": value if math.isfinite(value) else None,
            "limit": limit if math.isfinite(limit) else None,
            "band": band.text,
            "cause": band.cause,
            "fix": band.fix,
        }


def check(trained: Sequence[Row], held_out: Sequence[Row], bands: Iterable[Band], window: int) -> list[Symptom]:
    """Return the metrics that lie outside their bands at the end of a log.

    Args:
        trained: its rows of training steps.
        held_out: its rows of evaluations; each counts by itself, without a window.
        bands: to compare with; those of metrics that are not logged say nothing.
        window: logged rows that are averaged; with fewer, only a value that is no number is seen. A relative band needs
            as many before them.
    """
    sized = ((band, held_out, 1) if band.metric == HELD_OUT else (band, trained, window) for band in bands)
    return [symptom for band, rows, size in sized if (symptom := _symptom(band, rows, size)) is not None]


def _symptom(band: Band, rows: Sequence[Row], size: int) -> Symptom | None:
    recent, earlier = _values(rows[-size:], band.metric), _values(rows[:-size][-EARLIER:], band.metric)
    if not recent:
        return None
    value, limit = sum(recent) / len(recent), band.limit
    if not math.isfinite(value):
        return Symptom(band, value, limit)
    if band.reference is not None:
        known = [number for number in earlier if math.isfinite(number)]
        limit *= band.reference(known) if len(known) >= size else 0.0
    if len(rows) < size or (band.reference is not None and limit == 0):  # too early, or nothing to compare with
        return None
    inside = value >= limit if band.side == ">=" else value <= limit
    return None if inside else Symptom(band, value, limit)


class Watch:
    """Follows a run row by row and keeps its episodes: a metric that stays outside its band is one episode.

    Attributes:
        episodes: so far, in the order in which they began.
        seen: rows that were taken, of every kind.
    """

    def __init__(self, bands: Iterable[Band] = BANDS, *, window: int = WINDOW) -> None:
        self.episodes: list[Episode] = []
        self.seen = 0
        self._bands, self._window = tuple(bands), window
        self._trained: deque[Row] = deque(maxlen=window + EARLIER)
        self._held_out: deque[Row] = deque(maxlen=1 + EARLIER)
        self._open: dict[str, int] = {}  # name of the band -> place in `episodes`

    def see(self, row: Row) -> list[Episode]:
        """Take the next row of the log and return the episodes that begin with it."""
        self.seen += 1
        if "loss" not in row and HELD_OUT not in row:  # the summary at the end of a run
            return []
        (self._trained if "loss" in row else self._held_out).append(row)
        sick = {s.band.name: s for s in check([*self._trained], [*self._held_out], self._bands, self._window)}
        for name in self._open.keys() - sick.keys():
            place = self._open.pop(name)
            self.episodes[place] = self.episodes[place]._replace(until=row["step"])
        begun = [Episode(symptom, row["step"]) for name, symptom in sick.items() if name not in self._open]
        for episode in begun:
            self._open[episode.symptom.band.name] = len(self.episodes)
            self.episodes.append(episode)
        return begun


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    return [float(row[metric]) for row in rows if row.get(metric) is not None]
