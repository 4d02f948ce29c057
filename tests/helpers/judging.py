"""A scripted backend and the records it judges."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Completion
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.ranks import Ranks
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.points import render_points
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.verdict import render


class LooksForRed:
    """Prefers the red picture; its sums, and with a seed its winner, vary with the seed."""

    def __init__(self, *, batch_size=3, model="red", settings=None, wait=0.0):
        self.batch_size, self.model, self.settings, self.wait = batch_size, model, settings or {}, wait
        self.batches = []

    def complete(self, prompts, *, sampling, seeds):
        self.batches.append([row["id"] for row in prompts])
        time.sleep(self.wait)
        return [[self.answer(row, seed, sampling) for seed in mine] for row, mine in zip(prompts, seeds, strict=True)]

    def answer(self, row, seed, sampling):
        red = [image.getpixel((0, 0))[0] > 100 for image in row["images"]]
        winner = 2 if red[1] else 1
        if sampling.temperature and seed % 3 == 0:
            winner = 3 - winner
        scores = (9, 1 + seed % 7) if winner == 1 else (1 + seed % 7, 9)
        return Completion(render(winner, [("Aesthetics", *scores)], noun="Image"), "stop")


class ScoresRed:
    """Scores a red picture about 26 of 30 and a blue one about 11; the seed moves the sum, greedy ones do not."""

    batch_size, model, settings = 3, "red", {}

    def complete(self, prompts, *, sampling, seeds):
        return [[self.answer(row, seed, sampling) for seed in mine] for row, mine in zip(prompts, seeds, strict=True)]

    def answer(self, row, seed, sampling):
        (picture,) = row["images"]
        red = picture.getpixel((0, 0))[0] > 100
        moved = seed % 3 if sampling.temperature else 0
        scores = [
            ("Semantic consistency", 9 if red else 2),
            ("Aesthetics", 8 if red else 5),
            ("Authenticity", 7 + moved),
        ]
        return Completion(render_points(scores), "stop")


def make_records(folder, count):
    """Pairs of a red and a blue picture; the red one is preferred."""
    rows = []
    for i in range(count):
        names = ("red", "blue") if i % 3 else ("blue", "red")
        media = tuple((str(folder / f"{name}.png"),) for name in names)
        preferred = names.index("red") + 1
        rows.append(
            PreferenceRecord(id=f"r{i}", task="image_generation", prompt="red", media=media, preferred=preferred)
        )
    return rows


def protocol(**changes):
    chosen = {
        "prompts": load_prompts("cot"),
        "style": "cot",
        "sampling": Sampling(temperature=1.0),
        "frames": FrameSampling(frames=4, cache=Path("unused")),
        "samples": 2,
    }
    return JudgingConfig(**{**chosen, **changes})


def told(judgments):
    """What was judged, without the time it took."""
    return [replace(row, seconds=0.0) for row in judgments]


def inputs_of(backend, prompts):
    """What a model of this process is given for prompts."""
    return backend._reader.read(prompts, 0).inputs(range(len(prompts)))[0]


@dataclass(frozen=True, kw_only=True)
class Threads(Ranks):
    """Ranks in threads of one process."""

    barrier: Any = None
    brought: list[Any] | None = None  # one list for all

    def gather(self, item):
        self.brought[self.rank] = item
        self.barrier.wait(timeout=60)
        brought = [*self.brought]
        self.barrier.wait(timeout=60)
        return brought
