"""What every stage takes besides TRL's own arguments: data, prompts, pixels, resuming.

The fields are TrlParser's: a YAML key or a `--flag` each; the command line wins over the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unifiedreward_think.media import FrameSampling
from unifiedreward_think.tasks import load_prompts
from unifiedreward_think.training.health import WINDOW


def option(text: str, *, choices: tuple[str, ...] = (), **kwargs: Any) -> Any:
    """Return a dataclass field with a help text, and with the values it may take."""
    return field(metadata={"help": text, **({"choices": list(choices)} if choices else {})}, **kwargs)


@dataclass
class DataArguments:
    """Which rows to use, and how a record becomes a prompt."""

    train_files: list[str] = field(
        default_factory=list, metadata={"help": "data files: our JSONL, or the released JSON formats"}
    )
    media_root: str | None = option("folder that relative media paths start from (default: the file's)", default=None)
    limit: int | None = option("use only the first N rows", default=None)
    skip_bad: bool = option("leave bad rows out, counted and listed, instead of stopping", default=False)
    check_data: bool = option("check the data and stop: no model is loaded", default=False)
    style: str = option("cot or direct (answer alone)", default="cot", choices=("cot", "direct"))
    layout: str = option("how the prompt asks for a dimension", default="one_line", choices=("one_line", "three_line"))
    prompt_dir: str | None = option("folder of prompt templates of your own; the package's by default", default=None)
    orders: str = option("show each pair in one order or in both", default="random", choices=("random", "both"))
    order_seed: int = option("decides which candidate is shown first", default=0)
    frames: int = option("frames of each video", default=8)
    decoder: str = option("reads the videos", default="decord", choices=("decord", "pyav"))
    frame_cache: str = option("folder that keeps decoded frames", default="outputs/frames")
    min_pixels: int | None = option("smaller pictures are scaled up to this area", default=None)
    max_pixels: int | None = option("larger pictures are scaled down to this area", default=None)

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

    freeze_vision: bool = option("keep the vision tower as it is", default=True)
    resume: str = option(
        "auto goes on from the newest checkpoint; never starts afresh", default="auto", choices=("auto", "never")
    )
    overwrite: bool = option("with `resume: never`, delete what output_dir holds", default=False)
    eval_files: list[str] = field(
        default_factory=list,
        metadata={"help": "held-out pairs to judge during training, when eval_strategy says so (docs/health.md)"},
    )
    eval_limit: int | None = option("judge only the first N held-out pairs", default=None)
    eval_orders: str = option("show held-out pairs in one order or in both", default="both", choices=("one", "both"))
    eval_max_new_tokens: int = option("limit of an answer on a held-out pair", default=2048)
    health_window: int = option("logged rows whose mean is held against the bands of docs/health.md", default=WINDOW)
    health_bands: list[str] = field(
        default_factory=list, metadata={"help": "limits of your own, such as 'kl<=0.2'; 'kl<=inf' turns one off"}
    )


@dataclass
class SharedPrefixArguments:
    """How GRPO passes prompts through the model; results are the same either way (docs/speed.md)."""

    shared_prefix: bool = option("read each prompt once for its group; false takes TRL's own passes", default=True)
    max_stream_tokens: int | None = option(
        "most tokens of one forward with shared_prefix (default: a micro-batch in one)", default=None
    )
