"""What every stage takes besides TRL's own arguments: data, prompts, pixels, resuming.

The fields are TrlParser's: a YAML key or a `--flag` each; the command line wins over the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unifiedreward_think.data.arguments import ShownArguments
from unifiedreward_think.data.formats.files import read_yaml
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Count, Share, Whole, option
from unifiedreward_think.forms import POINTWISE, Form
from unifiedreward_think.old_names import current
from unifiedreward_think.order import Orders
from unifiedreward_think.records import PreferenceRecord, digest
from unifiedreward_think.training.monitor.health import WINDOW

CHECKS = ("true", "false", "fast", "files")


def read_config(config: str | Path | None, overlay: str | Path | None) -> dict[str, Any]:
    """Return the keys of a stage's YAML under the names of today, those of an overlay such as lora.yaml in place.

    Raises:
        InputError: a file cannot be read, or an overlay has nothing to lie over.
    """
    if overlay and not config:
        raise InputError(f"--overlay {overlay}: replaces values of a config; name one with --config")
    return {key: value for path in (config, overlay) if path for key, value in current(read_yaml(Path(path))).items()}


@dataclass(kw_only=True)
class RowArguments:
    """Which rows to use."""

    train_files: list[str] = option("data files: our JSONL, or the released JSON formats", default_factory=list)
    media_root: str | None = option("folder that relative media paths start from (default: the file's)", default=None)
    limit: Count | None = option("use only the first N rows", default=None)
    skip_bad: bool = option("leave bad rows out, counted and listed, instead of stopping", default=False)
    check_data: str = option(
        "check the data and stop; no model is loaded: true reads rows as the run will, fast leaves the pixels out, "
        "files opens the files alone",
        bare="true",
        default="false",
    )

    def __post_init__(self) -> None:
        """Read how much to check: a YAML file holds true and false as such.

        Raises:
            InputError: it is none of CHECKS.
        """
        chosen = str(self.check_data or False).lower()
        if chosen not in CHECKS:
            raise InputError(f"check_data: expected {', '.join(CHECKS)}, found {self.check_data!r}")
        self.check_data = chosen if chosen != "false" else ""


@dataclass(kw_only=True)
class DataArguments(RowArguments, ShownArguments):
    """Which rows to use, and how a record becomes a prompt."""

    min_pixels: Count | None = option("smaller pictures are scaled up to this area", default=None)
    max_pixels: Count | None = option("larger pictures are scaled down to this area", default=None)
    point_share: Share = option("share of the pairs of which scores are asked, in a run of pairs", default=0.0)

    def __post_init__(self) -> None:
        """Refuse a share of scores where all are scores.

        Raises:
            InputError: see above, and RowArguments.
        """
        super().__post_init__()
        if self.point_share and self.asked_form is POINTWISE:
            raise InputError(
                f"point_share: {self.point_share:g} of a run of scores alone; leave it out, or write form: pairwise"
            )

    def form_of(self, record: PreferenceRecord) -> Form:
        """Return the form in which a record is asked about: its id and `order_seed` say if it is of `point_share`."""
        asked_for_scores = digest("points", self.order_seed, record.id) < self.point_share * 2**64
        return POINTWISE if asked_for_scores else self.asked_form

    def all_templates(self) -> dict[str, dict[str, str]]:
        """Return the name of each form that is asked for -> its prompt templates."""
        forms = [self.asked_form, *([POINTWISE] if self.point_share else [])]
        return {form.name: self.templates(form=form) for form in forms}


@dataclass
class TrainingExtras:
    """What the two training stages share beyond TRL's trainer configs."""

    freeze_vision: bool = option("keep the vision tower as it is", default=True)
    resume: Literal["auto", "never"] = option(
        "auto goes on from the newest checkpoint; never starts afresh", default="auto"
    )
    overwrite: bool = option("with `resume: never`, delete what output_dir holds", default=False)
    eval_files: list[str] = option(
        "held-out pairs to judge during training, when eval_strategy says so (docs/health.md)", default_factory=list
    )
    eval_limit: Count | None = option("judge only the first N held-out pairs", default=None)
    eval_orders: Orders = option("show held-out pairs in one order or in both", default="both")
    eval_max_new_tokens: Count = option("limit of an answer on a held-out pair", default=2048)
    health_window: Count = option("logged rows whose mean is held against the bands of docs/health.md", default=WINDOW)
    health_bands: list[str] = option(
        "limits of your own, such as 'kl<=0.2'; 'kl<=inf' turns one off", default_factory=list
    )


@dataclass
class SharedPrefixArguments:
    """How GRPO passes prompts through the model; results are the same either way (docs/speed.md)."""

    shared_prefix: bool = option("read each prompt once for its group; false takes TRL's own passes", default=True)
    max_stream_tokens: Count | None = option(
        "most tokens of one forward with shared_prefix (default: a micro-batch in one)", default=None
    )
    embedding_cache: str | None = option(
        "folder that keeps what a frozen vision tower makes of pictures (default: none)", default=None
    )
    dynamic_sampling: Whole = option(
        "most extra rollouts of a batch, to replace groups whose rewards are all equal; 0 replaces none", default=0
    )


@dataclass
class StreamArguments:
    """How SFT passes rows through the model; results are the same either way (docs/speed.md)."""

    shared_prefix: bool = option(
        "a batch is one packed sequence, each prompt in it once; false takes TRL's padded rows", default=False
    )
