"""What every stage takes besides TRL's own arguments: data, prompts, pixels, resuming.

The fields are TrlParser's: a YAML key or a `--flag` each; the command line wins over the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unifiedreward_think.media import FrameSampling
from unifiedreward_think.tasks import load_prompts


def _help(text: str, *, choices: tuple[str, ...] = (), **kwargs: Any) -> Any:
    return field(metadata={"help": text, **({"choices": list(choices)} if choices else {})}, **kwargs)


@dataclass
class DataArguments:
    """Which rows to use, and how a record becomes a prompt."""

    train_files: list[str] = _help("data files: our JSONL, or the released JSON formats", default_factory=list)
    media_root: str | None = _help("folder that relative media paths start from; the data file's own by default", default=None)
    limit: int | None = _help("use only the first N rows", default=None)
    skip_bad: bool = _help("leave bad rows out, listed in skipped.txt, instead of stopping", default=False)
    check_data: bool = _help("check the data and stop: no model is loaded", default=False)
    style: str = _help("cot or direct (answer alone)", default="cot", choices=("cot", "direct"))
    layout: str = _help("how the prompt asks for a dimension", default="one_line", choices=("one_line", "three_line"))
    prompt_dir: str | None = _help("folder of prompt templates of your own; the package's by default", default=None)
    orders: str = _help("show each pair in one order or in both", default="random", choices=("random", "both"))
    order_seed: int = _help("decides which candidate is shown first", default=0)
    frames: int = _help("frames of each video", default=8)
    decoder: str = _help("reads the videos", default="decord", choices=("decord", "pyav"))
    frame_cache: str = _help("folder that keeps decoded frames", default="outputs/frames")
    min_pixels: int | None = _help("smaller pictures are scaled up to this area", default=None)
    max_pixels: int | None = _help("larger pictures are scaled down to this area", default=None)

    @property
    def sampling(self) -> FrameSampling:
        """How videos become frames."""
        return FrameSampling(frames=self.frames, cache=Path(self.frame_cache), decoder=self.decoder)  # type: ignore[arg-type]

    @property
    def prompts(self) -> dict[str, str]:
        """Task -> prompt template."""
        return load_prompts(self.style, layout=self.layout, folder=self.prompt_dir)  # type: ignore[arg-type]


@dataclass
class TrainingExtras:
    """What the two training stages share beyond TRL's trainer configs."""

    freeze_vision: bool = _help("keep the vision tower as it is", default=True)
    resume: str = _help("auto goes on from the newest checkpoint; never starts afresh", default="auto", choices=("auto", "never"))
    overwrite: bool = _help("with `resume: never`, delete what output_dir holds", default=False)
