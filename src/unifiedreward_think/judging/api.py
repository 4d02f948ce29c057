"""Judge pairs from Python in three lines: one at a time, or thousands into a file.

    from unifiedreward_think import Judge
    judge = Judge("CodeGoat24/UnifiedReward-Think-qwen-7b")
    print(judge("image_generation", "a red kite", ["a.png", "b.png"]).winner)

The scripts in `inference/` are the same on the command line (`command.py`).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Literal

from unifiedreward_think.backends import Backend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.protocol import Protocol
from unifiedreward_think.media import Decoder, FrameSampling
from unifiedreward_think.prompting import FORMAT_FILES, PROMPTS, load_prompts
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.verdict import Layout, Style
from unifiedreward_think.votes import Result, combine

FRAME_CACHE = Path("outputs/frames")


class Judge:
    """A model, and how it is asked.

    Args:
        model: folder or Hub name for transformers, a backend, or a function that returns one, called last.
        style: "cot" or "direct".
        layout: how the prompt asks for a dimension.
        prompts: task -> template in place of ours (`prompting.load_prompts`, `read_prompt_file`).
        votes: samples of each pair and order.
        orders: "one", drawn from `order_seed` and the pair, or "both".
        tie_margin: call a tie up to this difference of the score sums, the mean over votes; None never does.
        temperature, top_p, max_new_tokens, seed: of sampling; temperature 0 is greedy.
        order_seed: decides the order shown, where it is one.
        frames, decoder, frame_cache: how videos become pictures.
        native_video: show videos as videos, for released Qwen checkpoints; the backend must take them.

    Raises:
        InputError: the arguments contradict each other.
    """

    def __init__(
        self,
        model: str | Path | Backend | Callable[[], Backend],
        *,
        style: Style = "cot",
        layout: Layout = "one_line",
        prompts: Mapping[str, str] | None = None,
        votes: int = 1,
        orders: Literal["one", "both"] = "one",
        tie_margin: float | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 2048,
        seed: int = 0,
        order_seed: int = 0,
        frames: int = 8,
        decoder: Decoder = "decord",
        frame_cache: Path = FRAME_CACHE,
        native_video: bool = False,
    ) -> None:
        if votes < 1 or (votes > 1 and temperature <= 0):
            raise InputError(f"{votes} votes at temperature {temperature:g}: greedy answers are all the same; raise it")
        if tie_margin is not None and (style == "direct" or tie_margin < 0):
            raise InputError(f"tie margin {tie_margin:g}: it needs the scores of style 'cot', and to be 0 at least")
        self.tie_margin = tie_margin
        self.protocol = Protocol(
            prompts=load_prompts(style, layout=layout) if prompts is None else prompts,
            style=style,
            sampling=Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed),
            frames=FrameSampling(frames=frames, cache=frame_cache, decoder=decoder),
            samples=votes,
            orders=orders,
            order_seed=order_seed,
            native_video=native_video,
        )
        if isinstance(model, str | Path):
            model = partial(_local, str(model))
        self.backend: Backend = model() if callable(model) else model

    def __call__(self, task: str, prompt: str, media: Sequence[str | Path], answers: Sequence[str] = ()) -> Result:
        """Judge one pair.

        Args:
            task: one of `records.TASK_NAMES`.
            prompt: the caption, or the question.
            media: the two candidates, or the pictures or the video that the question is about.
            answers: the two answers to the question.
        """
        paths = [str(path) for path in media]
        record = PreferenceRecord(
            id=f"{digest(task, prompt, *paths, *answers):016x}",
            task=task,
            prompt=prompt,
            media=tuple((path,) for path in paths),
            answers=tuple(answers),
        )
        with tempfile.TemporaryDirectory() as folder:
            return self.file([record], Path(folder, "judgments.jsonl"))[0]

    def file(self, records: Sequence[PreferenceRecord], output: Path) -> list[Result]:
        """Judge records into `output`, going on from what it holds; an item that fails has an `error`."""
        rows: dict[str, list[Judgment]] = defaultdict(list)
        for row in judge(records, self.backend, self.protocol, output):
            rows[row.record_id].append(row)
        return [combine(rows[record.id], tie_margin=self.tie_margin) for record in records]


def read_prompt_file(file: Path, task: str, *, style: Style = "cot", layout: Layout = "one_line") -> dict[str, str]:
    """Return the prompts of one task from one template file; see `prompting.load_prompts` for what it may hold.

    {format} takes the text of the format file beside the template, or ours where there is none.

    Raises:
        InputError: the file is missing, or leaves out the caption, the question or an answer.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; name a prompt template")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"{task}.txt")
        copyfile(file, copy)
        for form in set(FORMAT_FILES.values()):
            beside = file.with_name(form)
            copyfile(beside if beside.is_file() else PROMPTS / form, Path(folder, form))
        try:
            return load_prompts(style, layout=layout, folder=folder)
        except InputError as error:
            raise InputError(str(error).replace(str(copy), str(file))) from error


def _local(path: str) -> Backend:
    from unifiedreward_think.backends.transformers import TransformersBackend

    return TransformersBackend(path)
