"""How the numbers of a report came about: model, data, sampling, prompts, backend, versions, commit and date.

>>> facts = of_judgments({"arguments": {"orders": "both"}, "commit": "abc1234"}, [])
>>> facts["Orders"], facts["Commit"], facts["Model"]
('both', 'abc1234', 'not recorded')

What decided a judgment stands in it; the rest is read from config.yaml beside the judgments, and of a training run from
its run.json. What neither says is "not recorded": so it is with runs of 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unifiedreward_think.data.formats.files import read_yaml
from unifiedreward_think.pages.origin import NOT_RECORDED, files, recorded, versions
from unifiedreward_think.records import Judgment


def read_config(folder: Path) -> dict[str, Any]:
    """Return what config.yaml of an evaluation says, nothing where there is none."""
    path = folder / "config.yaml"
    return read_yaml(path) if path.is_file() else {}


def of_judgments(config: Mapping[str, Any], judgments: Sequence[Judgment]) -> dict[str, str]:
    """Return how a run of judging came about: the name of each fact, and what is recorded of it."""
    asked: Mapping[str, Any] = config.get("arguments", {})
    made = {key: _different(row.settings.get(key) for row in judgments) for key in _keys(judgments)}
    known = {**{key: str(value) for key, value in asked.items() if value is not None}, **made}
    return {
        "Model": recorded(
            _different(row.model for row in judgments) or asked.get("model"), weights=made.get("weights")
        ),
        "Data": files(config.get("data")),
        "Sampling": _sampling(made),
        "Seed": recorded(made.get("seed")),
        "Orders": _orders(asked, judgments),
        "Prompts": _prompts(asked, made),
        "Style": recorded(
            known.get("style"),
            form=_different(row.form for row in judgments),
            layout=asked.get("layout"),
            replies=made.get("reply_format"),
        ),
        "Frames of a video": recorded(known.get("frames"), decoder=_different(row.decoder for row in judgments)),
        "Backend": recorded(known.get("backend"), dtype=known.get("dtype")),
        **versions(config),
        "Date": recorded(config.get("date")),
    }


def of_training(about: Mapping[str, Any]) -> dict[str, str]:
    """Return how a training run came about, from its run.json."""
    asked = about["arguments"]
    counted = ", ".join(f"{name} {number:,}" for name, number in about.get("counts", {}).items())
    named = [file for key in ("train_files", "eval_files") for file in asked.get(key) or ()]
    return {
        "Stage": about["stage"],
        "Model it began with": recorded(asked.get("model_name_or_path"), revision=asked.get("model_revision")),
        "Data": files(about.get("data") or [{"file": file, "sha256": ""} for file in named]),
        "Counts": recorded(counted),
        "Seed": recorded(asked.get("seed"), order_seed=asked.get("order_seed")),
        "Style": recorded(asked.get("style"), form=asked.get("form"), layout=asked.get("layout")),
        "Precision": recorded(asked.get("dtype"), bf16=asked.get("bf16")),
        **versions(about),
        "Started": recorded(about.get("started")),
        "Ended": recorded(about.get("ended")),
    }


class Table(NamedTuple):
    """A table of texts; the first cell of a row is its name."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def argument_tables(about: Mapping[str, Any]) -> list[Table]:
    """Return the arguments of a run.json, those that differ from their default first, and its versions.

    >>> for each in argument_tables({"arguments": {"beta": 0.1, "seed": 0}, "defaults": {"beta": 0.0}}):
    ...     print(*each)
    1 of 2 arguments differs from its default ('Argument', 'Value', 'Default') [('beta', '0.1', '0.0')]
    The other arguments ('Argument', 'Value') [('seed', '0')]
    Versions ('Package', 'Version') []
    """
    arguments, defaults = about["arguments"], about.get("defaults")
    versions_of = Table("Versions", ("Package", "Version"), list(about.get("versions", {}).items()))
    if defaults is None:
        every = [(key, _plain(value)) for key, value in arguments.items()]
        return [Table("Arguments (their defaults are not recorded)", ("Argument", "Value"), every), versions_of]
    other = [(key, _plain(arguments[key]), _plain(defaults[key])) for key in defaults]
    same = [(key, _plain(value)) for key, value in arguments.items() if key not in defaults]
    differ = "differs from its default" if len(other) == 1 else "differ from their defaults"
    title = f"{len(other)} of {len(arguments)} arguments {differ}"
    return [
        Table(title, ("Argument", "Value", "Default"), other),
        Table("The other arguments", ("Argument", "Value"), same),
        versions_of,
    ]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _keys(judgments: Iterable[Judgment]) -> dict[str, None]:
    return dict.fromkeys(key for row in judgments for key in row.settings)


def _different(values: Iterable[Any]) -> str:
    """Return different values in words: one, unless a file was put together by hand."""
    return " or ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _sampling(made: Mapping[str, str]) -> str:
    warmth = made.get("temperature")
    if warmth is None:
        return NOT_RECORDED
    drawn = "greedy" if warmth in ("0", "0.0") else f"temperature {warmth}, top-p {made.get('top_p')}"
    return f"{drawn}, at most {made.get('max_new_tokens')} new tokens"


def _orders(asked: Mapping[str, Any], judgments: Sequence[Judgment]) -> str:
    shown = ", ".join(sorted({row.order for row in judgments}))
    seed = asked.get("order_seed") if asked.get("orders") == "one" else None
    samples = max((row.sample + 1 for row in judgments), default="")
    return recorded(asked.get("orders"), seed=seed, shown=shown, samples=samples)


def _prompts(asked: Mapping[str, Any], made: Mapping[str, str]) -> str:
    chosen = (asked["prompts"] or "those of the package") if "prompts" in asked else ""
    return recorded(chosen, digest=made.get("prompts"))
