"""How records are judged and by whom: the settings that every command, YAML file and `Judge` shares.

parser.add(JudgingArguments)
parser.add(BackendArguments)
args = parser.parse_args()
config, backend = set_up(read(args, JudgingArguments), read(args, BackendArguments))
judge(records, backend, config, output)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from unifiedreward_think.backends import Backend, BackendError, ExpectingBackend, Numbers, VideoBackend
from unifiedreward_think.backends.choose import BackendArguments, make_backend
from unifiedreward_think.blocks import Style
from unifiedreward_think.data.arguments import ShownArguments
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.flags import Amount, Count, Nucleus, Seed, check_ranges, option
from unifiedreward_think.forms import PAIRWISE, POINTWISE, Form
from unifiedreward_think.judging.presets import preset_settings
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.order import Orders
from unifiedreward_think.points import number_places
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.reply_formats.formats import OWN, format_named, read_reply
from unifiedreward_think.tasks import TASK_NAMES
from unifiedreward_think.verdict import Verdict


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
        reply_format: how replies are read: `reply_formats.OWN` or a format of released judges.
        enable_thinking: the switch of chat templates that have one; None: on for style "cot", off for "direct".
        frames: how videos become frames.
        native_video: show a video as a video, for released checkpoints that were trained so; by default its frames
            are shown as pictures, as in training here.
        expectation: ask for the expected score besides the one that was said.
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
    reply_format: str = OWN
    enable_thinking: bool | None = None
    expectation: bool = False

    @property
    def thinking(self) -> bool:
        """Whether a chat template that has a switch lets the model think."""
        return self.style == "cot" if self.enable_thinking is None else self.enable_thinking

    @property
    def numbers(self) -> Numbers | None:
        """Where completions say the numbers whose probabilities are wanted; None where none are."""
        return partial(number_places, style=self.style) if self.expectation else None

    def read(self, completion: str, task: str) -> Verdict:
        """Return what a completion says of a record of a task."""
        return read_reply(completion, task, form=self.form, style=self.style, reply_format=self.reply_format)

    def check(self, backend: Backend) -> None:
        """Refuse a backend that does not take what is shown, or does not tell what is asked for.

        Raises:
            BackendError: names the flag to leave out.
        """
        name = f"{type(backend).__name__} with {backend.model}"
        if self.native_video and not (isinstance(backend, VideoBackend) and backend.native_video):
            raise BackendError(f"{name} takes no native video; leave --native-video out")
        if self.expectation and not (isinstance(backend, ExpectingBackend) and backend.numbers is not None):
            raise BackendError(f"{name} tells no probabilities; leave --expectation out")

    def check_task(self, record: PreferenceRecord) -> None:
        """Refuse a record of a task that the reply format is not of.

        Raises:
            RecordError: names the record, and the tasks of the format.
        """
        tasks = TASK_NAMES if self.reply_format == OWN else format_named(self.reply_format).tasks
        if record.task not in tasks:
            known = ", ".join(tasks)
            raise RecordError(
                f"record {record.id!r}: reply format {self.reply_format!r} is of {known}, not of {record.task}"
            )


@dataclass(kw_only=True)
class JudgingArguments(ShownArguments):
    """How records are judged."""

    PRESETS: ClassVar[Callable[[str], Mapping[str, Any]]] = staticmethod(preset_settings)

    reply_format: str = option("how replies are read: a format of released judges (docs/released.md)", default=OWN)
    enable_thinking: bool | None = option(
        "the switch of chat templates that have one (default: on for style cot, off for direct)", default=None
    )
    samples: Count = option("completions of each pair and order; more than one need a temperature above 0", default=1)
    temperature: Amount = option("of sampling; 0 is greedy", default=0.0)
    top_p: Nucleus = option("nucleus of sampling", default=1.0)
    max_new_tokens: Count = option("limit of a completion", default=2048)
    seed: Seed = option("of sampling: with record, order and sample number it seeds each draw", default=0)
    tie_margin: Amount | None = option(
        "call a tie where the score sums differ by this at most in the mean over samples (default: never)", default=None
    )
    expectation: bool = option(
        "of scores: the expected one besides, by the probabilities of all numbers (docs/scores.md)", default=False
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
        check_reply_format(self.asked_form, self.style, self.reply_format)
        scored = self.reply_format != OWN and format_named(self.reply_format).margins
        if self.reply_format != OWN and self.style == "direct" and self.prompts is None:
            raise InputError(
                f"reply format {self.reply_format!r} needs prompts, a file or folder of your own wording: those of the "
                "package ask for our form (docs/released.md)"
            )
        if self.tie_margin is not None and self.style == "direct" and not scored:
            raise InputError(f"tie margin {self.tie_margin:g}: it needs the scores of style 'cot'")
        if self.expectation and self.form != POINTWISE.name:
            raise InputError(f"expectation: it is that of a score, so it needs form {POINTWISE.name!r}")
        if self.expectation and self.reply_format != OWN:
            raise InputError(f"expectation: it is of our own form alone, not of reply format {self.reply_format!r}")

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
            reply_format=self.reply_format,
            enable_thinking=self.enable_thinking,
            expectation=self.expectation,
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
        backend = make_backend(backend, thinking=config.thinking, numbers=config.numbers, **more)
    return _as_stored(config, backend), backend


def check_reply_format(form: Form, style: Style, name: str) -> None:
    """Refuse a reply format that answers another form than is asked for, or in another style.

    Raises:
        InputError: names what to write instead; or there is no such format.
    """
    if name == OWN:
        return
    wanted = format_named(name)
    what = f"reply format {name!r} is of"
    if wanted.form != form.name:
        raise InputError(f"{what} form {wanted.form!r}, not {form.name!r}: ask for form {wanted.form}")
    if wanted.style != style:
        raise InputError(f"{what} style {wanted.style!r}, not {style!r}: ask for style {wanted.style}")


def _as_stored(config: JudgingConfig, backend: Backend) -> JudgingConfig:
    """Return how to judge where replies are stored already: they are read by the format that they were asked in.

    Raises:
        InputError: another is named, or it does not fit what is asked for.
    """
    stored = backend.settings.get("reply_format", config.reply_format)
    if config.reply_format not in (OWN, stored):
        raise InputError(f"{backend.model}: its stored replies are of format {stored!r}, not {config.reply_format!r}")
    check_reply_format(config.form, config.style, stored)
    return replace(config, reply_format=stored)
