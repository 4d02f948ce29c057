"""Pretrain the tiny base model of the toy world.

    python -m unifiedreward_think.toy.base --output src/unifiedreward_think/toy/base --seed 0

The paper starts from pretrained vision-language models; this is the toy counterpart. The base learns to describe
pictures and clips, to check them against a caption, to answer questions and check answers, to add and compare numbers,
and to name a winner at random when shown a pair. It never sees how a candidate is scored, a chain of thought, or which
candidate is better: judging is left to the stages.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.decoders import frame_indices
from unifiedreward_think.entry import run_main
from unifiedreward_think.models import tiny
from unifiedreward_think.prompting import Media, build_parts, load_prompts, to_content
from unifiedreward_think.records import PreferenceRecord, digest
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.toy.dataset import Pair, random_pair
from unifiedreward_think.toy.world import Scene, draw_frames
from unifiedreward_think.verdict import NOUNS, answer_text
from unifiedreward_think.writing import write_whole

if TYPE_CHECKING:
    from datasets import Dataset

PROMPTS = Path("configs/toy/prompts")
FRAMES = 4
FAMILY = "qwen2_5_vl"
SIZE = tiny.Size(hidden=128, layers=4, vision_hidden=64, vision_layers=3, patch=16, side=32)
Lesson = tuple[list[Any], str]  # content parts (texts and lists of frames), completion


def images(scene: Scene, rng: random.Random) -> list[Any]:
    """Draw a scene: one image, or FRAMES frames of a clip."""
    from PIL import Image

    frames = draw_frames(scene, rng.getrandbits(32))
    return [Image.fromarray(frames[i]) for i in frame_indices(len(frames), FRAMES)]


def training_pair(rng: random.Random, task: str) -> Pair:
    """Draw a pair whose content is not among those held out for evaluation."""
    while (pair := random_pair(rng, task)).heldout:
        pass
    return pair


def compare_pair(rng: random.Random) -> Lesson:
    """Describe two pictures or clips and check them against a caption."""
    task = rng.choice(("image_generation", "video_generation"))
    pair, noun = training_pair(rng, task), TASKS[task].noun
    shown = [images(scene, rng) for scene in pair.scenes]
    parts = [f"Caption: {pair.prompt}\n{noun} 1: ", shown[0], f"\n{noun} 2: ", shown[1], "\nCompare."]
    return parts, pair.observations("ab")


def check_answers(rng: random.Random) -> Lesson:
    """Answer a question about a picture or clip and check two answers against it."""
    task = rng.choice(("image_understanding", "video_understanding"))
    pair, noun = training_pair(rng, task), TASKS[task].media_kind.capitalize()
    answers = "\n".join(f"Answer {k}: {reply.text}" for k, reply in enumerate(pair.replies, start=1))
    question = f"\nQuestion: {pair.prompt}\n{answers}\nCompare."
    return [f"{noun}: ", images(pair.scenes[0], rng), question], pair.observations("ab")


def compare_totals(rng: random.Random) -> Lesson:
    """Add the scores of two candidates and name the one with the larger total."""
    noun = rng.choice(NOUNS)
    columns = [[rng.randint(1, 9) for _ in range(3)] for _ in range(2)]
    if sum(columns[0]) == sum(columns[1]):
        columns[0][0] += 1 if columns[0][0] < 9 else -1
    rows = [
        f"{i}. {noun} 1 ({a}/10); {noun} 2 ({b}/10)" for i, (a, b) in enumerate(zip(*columns, strict=True), start=1)
    ]
    sums = [f"{noun} {k}: {'+'.join(map(str, column))}={sum(column)}" for k, column in enumerate(columns, start=1)]
    larger = 1 if sum(columns[0]) > sum(columns[1]) else 2
    lines = ["Total score:", *sums, "</think>", f"<answer>{answer_text(larger, noun)}</answer>"]
    return ["\n".join([*rows, "Add the scores."])], "\n".join(lines)


def guess_winner(rng: random.Random) -> Lesson:
    """Name a winner at random: the base knows the form of an answer and nothing about judging."""
    pair = training_pair(rng, rng.choice(list(TASKS)))
    record = PreferenceRecord(
        id="guess",
        task=pair.task,
        prompt=pair.prompt,
        media=tuple((str(i),) for i in range(len(pair.scenes))),
        answers=tuple(reply.text for reply in pair.replies),
    )
    prompts = load_prompts(rng.choice(("cot", "direct")), path=PROMPTS)
    parts = build_parts(record, order="ab", prompts=prompts)
    drawn = [images(pair.scenes[int(p.paths[0])], rng) if isinstance(p, Media) else p for p in parts]
    return drawn, f"<answer>{answer_text(rng.randint(1, 2), TASKS[pair.task].noun)}</answer>"


LESSONS: tuple[tuple[Callable[[random.Random], Lesson], float], ...] = (
    (compare_pair, 0.45),
    (check_answers, 0.2),
    (compare_totals, 0.3),
    (guess_winner, 0.05),
)


def corpus() -> list[str]:
    """Return the texts the tokenizer is trained on, each word often enough to become one token."""
    rng = random.Random(0)
    texts = [*load_prompts("cot", path=PROMPTS).values(), *load_prompts("direct", path=PROMPTS).values()]
    for lesson, _ in LESSONS:
        for parts, completion in (lesson(rng) for _ in range(200)):
            texts.append(" ".join([*(part for part in parts if isinstance(part, str)), completion]))
    texts += [training_pair(rng, task).trace("ab") for task in TASKS for _ in range(100)]
    return texts


def lessons(count: int, seed: int) -> Dataset:
    """Draw `count` lessons as SFT rows: prompt, completion, images."""
    rng = random.Random(digest("toy base", seed))
    makers, weights = zip(*LESSONS, strict=True)
    rows = []
    for _ in range(count):
        parts, completion = rng.choices(makers, weights)[0](rng)
        content, pictures = to_content(parts, list)
        rows.append(
            {
                "prompt": [{"role": "user", "content": content}],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": completion}]}],
                "images": pictures,
            }
        )
    return to_dataset(rows)


def pretrain(folder: Path, *, rows: int, batch: int, learning_rate: float, seed: int) -> None:
    """Build the tiny model and train it on `rows` lessons, each seen once; the log goes to `pretraining_log.json`."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    tiny.build(FAMILY, folder, corpus=corpus(), size=SIZE, seed=seed)
    config = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        seed=seed,
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_length=None,
        completion_only_loss=True,
        gradient_checkpointing=False,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
    )
    trainer = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
        args=config,
        train_dataset=lessons(rows, seed),
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    trainer.train()
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink()
    log = json.dumps(trainer.state.log_history, indent=1)
    write_whole(folder / "pretraining_log.json", log + "\n")


def main() -> None:
    """Pretrain from the command line."""
    parser = argparse.ArgumentParser(description="Pretrain the tiny base model of the toy world.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--rows", type=int, default=48_000, help="lessons, each seen once")
    parser.add_argument("--batch", type=int, default=32, help="lessons in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the cosine schedule")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the lessons and their order")
    args = parser.parse_args()
    pretrain(args.output, rows=args.rows, batch=args.batch, learning_rate=args.learning_rate, seed=args.seed)


if __name__ == "__main__":
    run_main(main)
