"""Make the toy data set: preference pairs of all four tasks, teacher traces for the cold start, a held-out set.

    python -m unifiedreward_think.toy.dataset --output outputs/toy/data --seed 0

Writes `cold_start.jsonl` (traces), `train.jsonl` and `heldout.jsonl` (records), `media/` and `manifest.json`. The same
seed gives the same bytes. Splits are disjoint by content: a combination of prompt, scenes and answers seen in training,
in either order, never occurs among the held-out pairs.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unifiedreward_think.checksums import read_checked, sha256_if_there, summed
from unifiedreward_think.entry import run_main
from unifiedreward_think.order import Order, in_order, place_shown
from unifiedreward_think.records import PreferenceRecord, Trace, digest
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.toy.teacher import (
    Reply,
    Score,
    observe_pair,
    observe_replies,
    score_candidate,
    score_reply,
    total,
    write_trace,
)
from unifiedreward_think.toy.world import COLOURS, MOTIONS, SHAPES, Scene, random_scene, write_scene
from unifiedreward_think.writing import write_whole

QUESTIONS = {"colour": "What colour is it?", "shape": "What shape is it?", "motion": "Which way does it move?"}
CHOICES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": tuple(MOTIONS)}
MANIFEST = "manifest.json"
HELDOUT_SHARE = 0.25  # of all contents
PATIENCE = 10_000  # draws in search of a pair that is new


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two candidates and their true scores, before anything is drawn.

    Attributes:
        task: one of TASKS.
        prompt: caption or question.
        asked: generation: the scene the caption asks for; understanding: the true answer.
        scenes: generation: one for each candidate; understanding: the one asked about.
        replies: the two answers of understanding, empty otherwise.
        scores: the true scores of both candidates.
    """

    task: str
    prompt: str
    asked: Scene | str
    scenes: tuple[Scene, ...]
    replies: tuple[Reply, ...] = ()
    scores: tuple[list[Score], list[Score]]

    @property
    def content(self) -> str:
        """Name the content without the order of the candidates: equal keys must not be split apart."""
        return json.dumps([self.task, self.prompt, *sorted(str(part) for part in (*self.scenes, *self.replies))])

    @property
    def heldout(self) -> bool:
        """Whether this content belongs to the held-out side."""
        return digest("toy split", self.content) % 1000 < 1000 * HELDOUT_SHARE

    @property
    def preferred(self) -> int:
        """The candidate with the larger total."""
        return 1 if total(self.scores[0]) > total(self.scores[1]) else 2

    def trace(self, order: Order) -> str:
        """Write the teacher's chain of thought for the candidates in the order shown."""
        return write_trace(self.task, self.observations(order), *in_order(self.scores, order))

    def observations(self, order: Order) -> str:
        """Write what the teacher sees and checks before scoring."""
        if isinstance(self.asked, str):
            return observe_replies(self.asked, in_order(self.replies, order))
        return observe_pair(TASKS[self.task].noun, self.asked, in_order(self.scenes, order))


def random_pair(rng: random.Random, task: str) -> Pair:
    """Draw a pair whose totals differ."""
    draw = _random_generation if TASKS[task].compares_media else _random_understanding
    while True:
        pair = draw(rng, task)
        if total(pair.scores[0]) != total(pair.scores[1]):
            return pair


def make_record(pair: Pair, name: str, media: Path, rng: random.Random, *, label_noise: float) -> PreferenceRecord:
    """Draw a pair's media into `media` and return its record; paths are relative to the folder above `media`."""
    files = [
        write_scene(scene, rng.getrandbits(32), media / f"{name}-{i}") for i, scene in enumerate(pair.scenes, start=1)
    ]
    preferred = pair.preferred if rng.random() >= label_noise else place_shown(pair.preferred, "ba")
    return PreferenceRecord(
        id=name,
        task=pair.task,
        prompt=pair.prompt,
        media=tuple((f"{media.name}/{file.name}",) for file in files),
        answers=tuple(reply.text for reply in pair.replies),
        preferred=preferred,
        source="toy",
        group=f"{digest(pair.content):016x}",
    )


def make_split(
    folder: Path, split: str, count: int, *, seed: int, label_noise: float = 0.0
) -> list[tuple[PreferenceRecord, Pair]]:
    """Draw `count` pairs of one split, the tasks in turn, none twice.

    Raises:
        ValueError: the toy world has fewer different pairs.
    """
    rng = random.Random(digest("toy", seed, split))
    rows: list[tuple[PreferenceRecord, Pair]] = []
    seen: set[str] = set()
    while len(rows) < count:
        task = tuple(TASKS)[len(rows) % len(TASKS)]
        pairs = (random_pair(rng, task) for _ in range(PATIENCE))
        new = (p for p in pairs if p.heldout == (split == "heldout") and p.content not in seen)
        if (pair := next(new, None)) is None:
            raise ValueError(f"{split}: no new {task} pair left after {len(rows)} pairs in all; ask for fewer")
        seen.add(pair.content)
        name = f"toy-{split}-{len(rows):05d}"
        rows.append((make_record(pair, name, folder / "media", rng, label_noise=label_noise), pair))
    return rows


def write(
    folder: Path, *, cold_start: int, train: int, heldout: int, seed: int = 0, label_noise: float = 0.0
) -> dict[str, object]:
    """Write the whole data set and return its manifest; one that is there as it was written stays.

    Args:
        folder: created if needed.
        cold_start: number of teacher traces.
        train: number of labelled pairs without a trace, for rejection sampling and GRPO.
        heldout: number of pairs for evaluation; always with true labels.
        seed: decides everything.
        label_noise: share of wrong labels among the training pairs.
    """
    request = {"cold_start": cold_start, "train": train, "heldout": heldout, "seed": seed, "label_noise": label_noise}
    before = read_checked(folder / MANIFEST)
    if before is not None and before.get("asked") == request and before["content"] == content_of(folder):
        return before
    (folder / "media").mkdir(parents=True, exist_ok=True)
    splits = {
        "cold_start": make_split(folder, "cold_start", cold_start, seed=seed),
        "train": make_split(folder, "train", train, seed=seed, label_noise=label_noise),
        "heldout": make_split(folder, "heldout", heldout, seed=seed),
    }
    for split, rows in splits.items():
        lines = []
        for record, pair in rows:
            order: Order = "ab" if digest("toy order", record.id) % 2 else "ba"
            trace = Trace(record=record, order=order, completion=pair.trace(order))
            lines.append(json.dumps(trace.to_json() if split == "cold_start" else record.to_json()) + "\n")
        write_whole(folder / f"{split}.jsonl", "".join(lines))
    manifest: dict[str, object] = {
        "seed": seed,
        "label_noise": label_noise,
        "counts": {split: dict(Counter(record.task for record, _ in rows)) for split, rows in splits.items()},
        "preferred": {split: dict(Counter(str(r.preferred) for r, _ in rows)) for split, rows in splits.items()},
        "asked": request,
        "content": content_of(folder),
    }
    write_whole(folder / MANIFEST, json.dumps(summed(manifest), indent=1) + "\n")
    return manifest


def content_of(folder: Path) -> str:
    """Return a digest of all records and media of a data set."""
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("media/*")])
    return f"{digest(*((file.name, sha256_if_there(file)) for file in files)):016x}"


def _random_generation(rng: random.Random, task: str) -> Pair:
    moving = task == "video_generation"
    caption = random_scene(rng, moving=moving)
    scenes = []
    for _ in range(2):
        drawn = asdict(random_scene(rng, moving=moving))
        if rng.random() < 0.5:  # half of the candidates follow the caption
            drawn |= {"colour": caption.colour, "shape": caption.shape, "motion": caption.motion}
        scenes.append(Scene(**drawn))
    scores = (score_candidate(caption, scenes[0]), score_candidate(caption, scenes[1]))
    return Pair(task=task, prompt=f"a {caption.subject}", asked=caption, scenes=tuple(scenes), scores=scores)


def _random_understanding(rng: random.Random, task: str) -> Pair:
    scene = random_scene(rng, moving=task == "video_understanding")
    topic = rng.choice(["colour", "shape", "motion"] if scene.motion else ["colour", "shape"])
    truth = str(getattr(scene, topic))
    replies = []
    for _ in range(2):
        claim = truth if rng.random() < 0.5 else rng.choice([c for c in CHOICES[topic] if c != truth])
        replies.append(Reply(claim, clear=rng.random() < 0.6))
    scores = (score_reply(truth, replies[0]), score_reply(truth, replies[1]))
    question = QUESTIONS[topic]
    return Pair(task=task, prompt=question, asked=truth, scenes=(scene,), replies=tuple(replies), scores=scores)


def main() -> None:
    """Write the data set from the command line."""
    parser = argparse.ArgumentParser(description="Draw the toy data set.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="decides everything that is drawn")
    parser.add_argument("--cold-start", type=int, default=480, help="teacher traces")
    parser.add_argument("--train", type=int, default=2000, help="labelled pairs without a trace")
    parser.add_argument("--heldout", type=int, default=800, help="pairs kept for evaluation")
    parser.add_argument("--label-noise", type=float, default=0.0, help="share of wrong training labels")
    args = parser.parse_args()
    manifest = write(
        args.output,
        cold_start=args.cold_start,
        train=args.train,
        heldout=args.heldout,
        seed=args.seed,
        label_noise=args.label_noise,
    )
    counts: Any = manifest["counts"]
    sizes = {split: sum(tasks.values()) for split, tasks in counts.items()}
    print(f"toy world: {', '.join(f'{size} {split}' for split, size in sizes.items())} -> {args.output}")


if __name__ == "__main__":
    run_main(main)
