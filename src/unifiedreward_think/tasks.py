"""The four tasks: a table that everything else asks. A new task is a row here, its prompts and its toy scenes.

>>> TASKS["video_understanding"].kind, TASKS["video_understanding"].media_kind, TASKS["video_understanding"].noun
('understanding', 'video', 'Answer')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["generation", "understanding"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is fixed about a task.

    Attributes:
        kind: "generation" compares media made from a caption, "understanding" answers to a question about media.
        noun: what the candidates are called in prompts and answers.
        media_kind: "image" or "video", of the candidates (generation) or of what the question is about.
        dimensions: what the paper scores.
    """

    kind: Kind
    noun: str
    media_kind: Literal["image", "video"]
    dimensions: tuple[str, str, str]

    @property
    def compares_media(self) -> bool:
        """Whether the candidates are media; otherwise they are answers, and the media are shown once."""
        return self.kind == "generation"


TASKS: dict[str, Task] = {
    "image_generation": Task("generation", "Image", "image", ("Semantic consistency", "Aesthetics", "Authenticity")),
    "video_generation": Task(
        "generation", "Video", "video", ("Semantic consistency", "Temporal coherence", "Authenticity")
    ),
    "image_understanding": Task("understanding", "Answer", "image", ("Semantic accuracy", "Correctness", "Clarity")),
    "video_understanding": Task("understanding", "Answer", "video", ("Semantic accuracy", "Correctness", "Clarity")),
}
TASK_NAMES = tuple(TASKS)
