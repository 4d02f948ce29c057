"""Reward functions in TRL's signature, over the project's one parser.

    trl grpo --reward_funcs unifiedreward_think.rewards.format_reward unifiedreward_think.rewards.accuracy_reward ...

`format_reward` and `accuracy_reward` (weights 1 and 1) are the paper's. The others are opt-in. Each takes the columns
of the training set (`solution`, `task`) as lists beside the completions and returns one number for each completion, or
None where the reward does not apply to the row.

>>> said = "<think>1. Aesthetics: Image 1 (9/10)</think><answer>Image 1 is better</answer>"
>>> completion = [{"role": "assistant", "content": said}]
>>> format_reward([completion], task=["image_generation"]), accuracy_reward([completion], ["Image 2 is better"])
([1.0], [0.0])
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from unifiedreward_think.forms import FORMS, PAIRWISE, Form
from unifiedreward_think.gathering import gathered
from unifiedreward_think.metrics import VERDICT_MEASURES
from unifiedreward_think.order import winner_as_stored
from unifiedreward_think.standings import STANDINGS, Sample, earned_together
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Verdict, Winner, answer_text

Completion = str | Sequence[dict[str, Any]]
_LOG = logging.getLogger(__name__)


def format_reward(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
    """Return 1 where the whole completion is strictly well formed, else 0 (the paper's format reward).

    The columns are those of `read_verdicts`.
    """
    return [float(v.strict) for v in read_verdicts(completions, **columns)]


def accuracy_reward(
    completions: Sequence[Completion],
    solution: Sequence[str | None],
    task: Sequence[str] | None = None,
    form: Sequence[str | None] | None = None,
    id: Sequence[str] | None = None,
    order: Sequence[str] | None = None,
    **more: Any,
) -> list[float | None]:
    """Return how far each completion agrees with its gold answer, by its form (`forms.Form.agreement`).

    Pairwise, the form of rows without the column: 1 where the answer block names the preferred candidate, 0 where it
    does not or cannot be read. A score whose label is a pair's preference (`solution` is one of STANDINGS) is held
    against those of the pair's other candidate, on whatever process they are: `standings.earned`.

    A row without a gold answer gets None, which TRL leaves out of the sum. So does a score of a pair whose other
    candidate is not in the batch; these are counted in a warning and in TRL's log, as `scores_without_their_pair`.

    Raises:
        ValueError: a gold answer cannot be read, or scores of pairs come without the columns `id` and `order`.
    """
    rewards: list[float | None] = []
    of_pairs: dict[int, Sample] = {}
    for i, text in enumerate(solution):
        row_form = form_of(form[i] if form is not None else None)
        gold = _gold(text, row_form)
        noun = _noun(task[i] if task is not None else None, text) if text else ""
        verdict = row_form.parse(_text(completions[i]), noun) if text else Verdict(winner=None, strict=False)
        if gold in STANDINGS:
            if id is None or order is None:
                raise ValueError(f"solution {gold!r} is that of a pair's candidate: add the columns `id` and `order`")
            of_pairs[i] = Sample(id[i], order[i], gold, verdict.score.share if verdict.score else None)
            rewards.append(None)
        else:
            rewards.append(row_form.agreement(verdict, gold))
    if form is not None:  # all processes have the column, or none has
        for i, reward in zip(of_pairs, _held_against_each_other(list(of_pairs.values()), **more), strict=True):
            rewards[i] = reward
    return rewards


def consistency_reward(
    completions: Sequence[Completion], style: Sequence[str | None] | None = None, **columns: Any
) -> list[float | None]:
    """Return 1 where each total is the sum of its scores and the larger total wins, else 0 (opt-in).

    A row of style "direct" asks for no scores and gets None. The other columns are those of `read_verdicts`.
    """
    verdicts = read_verdicts(completions, **columns)
    scores_asked = [True] * len(verdicts) if style is None else [name != "direct" for name in style]
    return [float(v.arithmetic_ok) if scored else None for v, scored in zip(verdicts, scores_asked, strict=True)]


def swap_agreement_reward(
    completions: Sequence[Completion],
    id: Sequence[str] | None = None,
    order: Sequence[str] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return how often the completions of the same pair in the other order name the same candidate (opt-in).

    Needs both orders of a pair in one generation batch, on whatever process (`orders: both`; this project's trainer
    keeps them together). An unreadable completion gets 0; a row whose other order is not in the batch gets None.
    """
    if id is None or order is None:
        raise ValueError("swap_agreement_reward needs the columns `id` and `order`; train with `orders: both`")
    verdicts = read_verdicts(completions, **columns)
    named = [winner_as_stored(verdict.winner, shown) for verdict, shown in zip(verdicts, order, strict=True)]
    everyone, own = gathered(list(zip(id, order, named, strict=True)))
    answers: defaultdict[tuple[str, str], defaultdict[str, list[Winner | None]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for pair, shown, candidate in everyone:
        answers[pair, "".join(sorted(shown))][shown].append(candidate)
    rewards: list[float | None] = []
    for pair, shown, candidate in everyone[own]:
        orders = answers[pair, "".join(sorted(shown))]
        others = [other for order, some in orders.items() if order != shown for other in some]
        rewards.append(None if not others else 0.0 if candidate is None else fmean(o == candidate for o in others))
    return rewards


def length_reward(
    completion_ids: Sequence[Sequence[int]], *, limit: int = 1024, margin: int = 256, **_: Any
) -> list[float]:
    """Return 0 up to `limit - margin` tokens, falling linearly to -1 at `limit` (opt-in).

    The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13). `training.grpo` sets `limit` and `margin` from
    its config; stock `trl grpo` takes these defaults.

    >>> length_reward([[0] * 700, [0] * 896, [0] * 2000])
    [0.0, -0.5, -1.0]
    """
    return [0.0 - min(1.0, max(0.0, (len(ids) - (limit - margin)) / margin)) for ids in completion_ids]


def verdict_rates(
    verdicts: Sequence[Verdict], styles: Sequence[str | None], forms: Sequence[str | None]
) -> dict[str, float]:
    """Return the rates that evaluation reports, of the completions of a step; one that no row counts in is left out.

    >>> verdict = PAIRWISE.parse("<answer>Image 1 is better</answer>", "Image", style="direct")
    >>> sorted(verdict_rates([verdict], ["direct"], [None]))
    ['first_position_rate', 'parse_rate', 'readable_rate']
    """
    rates = {}
    for name, measure in VERDICT_MEASURES.items():
        rows = zip(verdicts, styles, map(form_of, forms), strict=True)
        values = [measure(verdict, style or "cot", form) for verdict, style, form in rows]
        if counted := [value for value in values if value is not None]:
            rates[name] = fmean(counted)
    return rates


def read_verdicts(
    completions: Sequence[Completion],
    task: Sequence[str] | None = None,
    solution: Sequence[str | None] | None = None,
    style: Sequence[str | None] | None = None,
    form: Sequence[str | None] | None = None,
    **_: Any,
) -> list[Verdict]:
    """Return what each completion says.

    Args:
        completions: texts, or TRL's conversational completions.
        task: each row's task; where absent the noun of its candidates is taken from `solution`.
        solution: gold answer strings.
        style: "cot" or "direct" for each row; "cot" where absent.
        form: key of `forms.FORMS` for each row; "pairwise" where absent.
    """
    nothing = [None] * len(completions)
    columns = (nothing if column is None else column for column in (task, solution, style, form))
    return [
        form_of(form_name).parse(_text(completion), _noun(name, gold), style=how or "cot")
        for completion, name, gold, how, form_name in zip(completions, *columns, strict=True)
    ]


def _held_against_each_other(samples: Sequence[Sample], log_metric: Any = None, **_: Any) -> list[float | None]:
    """Return what each score of this process earns among those of all, counting those without their pair."""
    everyone, own = gathered(samples)
    rewards, alone = earned_together(everyone)
    if alone and not own.start:  # on the first process
        _LOG.warning(
            "%d of %d scores have no reward: the other candidate of their pair is not in the generation batch; keep "
            "the rows of a pair side by side: shuffle_dataset false, and an even number of prompts in a batch",
            alone,
            len(everyone),
        )
    if log_metric is not None and everyone:
        log_metric("scores_without_their_pair", alone / len(everyone))
    return rewards[own]


def form_of(name: str | None) -> Form:
    """Return the form of a row; pairwise where the row has no such column."""
    return FORMS[name or PAIRWISE.name]


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "".join(turn["content"] for turn in completion)


def _noun(task: str | None, gold: str | None) -> str:
    if task is None and not gold:
        raise ValueError("a row has neither `task` nor `solution`: the noun of its candidates is unknown; add `task`")
    return TASKS[task].noun if task is not None else str(gold).split()[0].capitalize()


def _gold(solution: str | None, form: Form) -> Any:
    gold = form.read_solution(solution) if solution else None
    if solution and gold is None:
        example = f"; write it like {answer_text(1, 'Image')!r}, or null" if form is PAIRWISE else f" as {form.name}"
        raise ValueError(f"solution {solution!r} cannot be read{example}")
    return gold
