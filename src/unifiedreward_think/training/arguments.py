"""What every stage takes besides TRL's own arguments: data, prompts, pixels, resuming.

The fields are TrlParser's: a YAML key or a `--flag` each; the command line wins over the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from unifiedreward_think.errors import InputError
from unifiedreward_think.media import DECODERS, FrameSampling
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.training.monitor.health import WINDOW


def option(text: str, *, choices: tuple[str, ...] = (), **kwargs: Any) -> Any:
    """Return a dataclass field with a help text, and with the values it may take."""
    return field(metadata={"help": text, **({"choices": list(choices)} if choices else {})}, **kwargs)


def check_values(part: Any, origin: str) -> None:
    """Refuse values of our own dataclasses that a YAML file may hold and a command line may not.

    TrlParser takes over what a YAML file says without looking at its type, and at the choices of a field.

    Raises:
        InputError: names the key, and what it may be.
    """
    if not type(part).__module__.startswith("unifiedreward_think."):
        return
    hints = get_type_hints(type(part))
    for each in fields(part):
        value, choices = getattr(part, each.name), each.metadata.get("choices")
        if choices and value not in choices and value is not each.default:
            raise InputError(f"{origin}: {each.name} is {value!r}; write one of {', '.join(choices)}")
        if not _fits(value, hints[each.name]):
            expected = getattr(hints[each.name], "__name__", str(hints[each.name]))
            raise InputError(f"{origin}: {each.name} is {value!r}; expected {expected}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type hint: a plain type, a list of one, or a union of these.

    >>> _fits(3, int), _fits(True, int), _fits(3, float), _fits(["a"], list[str]), _fits(None, int | None)
    (True, False, True, True, True)
    """
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


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
    decoder: str = option("reads the videos", default="decord", choices=DECODERS)
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
    embedding_cache: str | None = option(
        "folder that keeps what a frozen vision tower makes of pictures (default: none)", default=None
    )
    dynamic_sampling: int = option(
        "most extra rollouts of a batch, to replace groups whose rewards are all equal; 0 replaces none", default=0
    )


@dataclass
class StreamArguments:
    """How SFT passes rows through the model; results are the same either way (docs/speed.md)."""

    shared_prefix: bool = option(
        "a batch is one stream without padding, each prompt in it once; false takes TRL's padded rows", default=False
    )
