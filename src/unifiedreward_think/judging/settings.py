"""How records are judged and by whom: the settings that every command, YAML file and `Judge` shares.

parser.add(JudgingArguments)
parser.add(BackendArguments)
args = parser.parse_args()
config, backend = set_up(read(args, JudgingArguments), read(args, BackendArguments))
judge(records, backend, config, output)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import BackendArguments, make_backend
from unifiedreward_think.blocks import Style
from unifiedreward_think.data.arguments import ShownArguments
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Amount, Count, Nucleus, Seed, check_ranges, option
from unifiedreward_think.forms import PAIRWISE, POINTWISE, Form
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.order import Orders


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingConfig:
    """How records are judged.

    Attributes:
        prompts: task -> template (`prompting.load_prompts`).
        style: "cot" or "direct"; what the strict parser expects.
        sampling: how completions are drawn.
        samples: completions for each record and order.
        orders: "one" shows each record once, in the order of `order_seed`; "both" shows it in all orders of the form.
        order_seed: decides the order shown.
        form: what is asked for.
        frames: how videos become frames.
        native_video: show a video as a video, for released checkpoints that were trained so; by default its frames
            are shown as pictures, as in training here.
    """

    prompts: Mapping[str, str]
    style: Style
    sampling: Sampling
    frames: FrameSampling
    samples: int = 1
    orders: Orders = "one"
    order_seed: int = 0
    form: Form = PAIRWISE
    native_video: bool = False


@dataclass(kw_only=True)
class JudgingArguments(ShownArguments):
    """How records are judged."""

    samples: Count = option("completions of each pair and order; more than one need a temperature above 0", default=1)
    temperature: Amount = option("of sampling; 0 is greedy", default=0.0)
    top_p: Nucleus = option("nucleus of sampling", default=1.0)
    max_new_tokens: Count = option("limit of a completion", default=2048)
    seed: Seed = option("of sampling: with record, order and sample number it seeds each draw", default=0)
    tie_margin: Amount | None = option(
        "call a tie where the score sums differ by this at most in the mean over samples (default: never)", default=None
    )
    native_video: bool = option("show videos as videos, not as pictures: released Qwen checkpoints", default=False)

    def __post_init__(self) -> None:
        """Refuse numbers out of range, samples that would all be the same, and a tie margin without scores.

        Raises:
            InputError: the settings contradict each other.
        """
        check_ranges(self)
        if self.samples > 1 and self.temperature <= 0:
            raise InputError(
                f"samples is {self.samples} at temperature {self.temperature:g}; take 1, or a temperature above 0: "
                "greedy completions are all the same"
            )
        if self.tie_margin is not None and self.style == "direct":
            raise InputError(f"tie margin {self.tie_margin:g}: it needs the scores of style 'cot'")

    def config(self, task: str = "") -> JudgingConfig:
        """Return the settings with prompts read; a file of `prompts` is that of `task`."""
        return JudgingConfig(
            prompts=self.templates(task),
            style=self.style,
            sampling=Sampling(
                temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens, seed=self.seed
            ),
            frames=self.frame_sampling,
            samples=self.samples,
            orders=self.orders,
            order_seed=self.order_seed,
            form=self.asked_form,
            native_video=self.native_video,
        )

    def point_config(self) -> JudgingConfig | None:
        """Return the same settings for scores of single candidates, for what answers both forms.

        Prompts of one's own for scores stand in the folder `pointwise` of the folder of prompts, as ours do; None where
        there is no such folder: a score that is asked for in the words of others would be another judge's.
        """
        own = None if self.prompts is None else str(Path(self.prompts, POINTWISE.prompts.name))
        if own is not None and not Path(own).is_dir():
            return None
        return replace(self, form=POINTWISE.name, prompts=own).config()


def set_up(
    judging: JudgingArguments | JudgingConfig, backend: BackendArguments | Backend, *, task: str = "", **more: Any
) -> tuple[JudgingConfig, Backend]:
    """Return how to judge and the backend that answers; a missing prompt shows before a model is loaded.

    The one way there, of every command and stage. What is made already stays as it is.

    Args:
        judging: how to judge.
        backend: what answers.
        task: whose template a file of `prompts` is.
        more: what comes from no flag, for `make_backend`: a model in memory, a teacher's budget.

    Raises:
        InputError: a prompt cannot be read, or the backend cannot be made.
    """
    config = judging.config(task) if isinstance(judging, JudgingArguments) else judging
    if isinstance(backend, BackendArguments):
        backend = make_backend(backend, thinking=config.style == "cot", **more)
    return config, backend
