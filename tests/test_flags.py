"""Flags from dataclasses: what they take, what they refuse, and that all commands mean the same by a name."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Count, Parser, Share, check_values, option, read
from unifiedreward_think.judging.api import Judge
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.old_names import current
from unifiedreward_think.training import parsing
from unifiedreward_think.training.arguments import (
    DataArguments,
    SharedPrefixArguments,
    StreamArguments,
    TrainingExtras,
)

ROOT = Path(__file__).parents[1]


@dataclass(kw_only=True)
class Settings:
    """What a made-up command takes."""

    output: str = option("where to")
    kind: Literal["cot", "direct"] = option("100% of them", default="cot")
    strict: bool = option("a switch", default=True)
    files: list[str] = option("many", default_factory=list)
    max_pixels: Count | None = option("an area", default=None)
    top_p: Share = option("a share", default=1.0)


def parsed(*words, **defaults):
    parser = Parser("A command.")
    parser.add(Settings, **defaults)
    return read(parser.parse_args(["--output", "o", *words]), Settings)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--max-pixels", "9"], "max_pixels", 9),
        (["--max_pixels=9"], "max_pixels", 9),
        (["--max-pixels", "9", "--max-pixels", "none"], "max_pixels", None),
        (["--strict"], "strict", True),
        (["--strict", "false"], "strict", False),
        (["--strict=No"], "strict", False),
        (["--files", "a_b", "c"], "files", ["a_b", "c"]),
        (["--kind", "direct"], "kind", "direct"),
        (["--output=a_b=c"], "output", "a_b=c"),
        (["--top-p", "1"], "top_p", 1.0),
        ([], "files", []),
    ],
)
def test_a_flag_gives_the_value_of_its_field(words, name, value):
    assert getattr(parsed(*words), name) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "other"], "invalid choice: 'other'"),
        (["--strict", "perhaps"], "expected true or false, found 'perhaps'"),
        (["--max-pixels", "many"], "invalid int value: 'many'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--max-pixels", "0"], "argument --max-pixels: expected a whole number, 1 or more; found 0"),
        (["--top-p", "nan"], "argument --top-p: expected a number, from 0 to 1; found nan"),
        (["--top-p", "1.5"], "argument --top-p: expected a number, from 0 to 1; found 1.5"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*words)
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_command_has_defaults_of_its_own_and_its_help_tells_them(capsys):
    assert parsed(max_pixels=4).max_pixels == 4 and parsed("--max-pixels", "8", max_pixels=4).max_pixels == 8
    with pytest.raises(SystemExit):
        parsed("--help", max_pixels=4)
    said = " ".join(capsys.readouterr().out.split())
    assert "an area (default: 4)" in said and "100% of them (default: cot)" in said and "what a made-up command" in said


def test_what_is_needed_is_asked_for():
    parser = Parser("")
    parser.add(Settings)
    with pytest.raises(InputError, match="output is needed: where to"):
        read(parser.parse_args([]), Settings)
    assert read(parser.parse_args([]), Settings, output="o").output == "o"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "x.yaml: kind is 'other'; expected cot or direct"),
        ({"strict": "no"}, "strict is 'no'; expected bool"),
        ({"max_pixels": 1.5}, "max_pixels is 1.5; expected int"),
        ({"files": "a"}, "files is 'a'; expected list"),
        ({"max_pixels": 0}, "x.yaml: max_pixels is 0; expected a whole number, 1 or more"),
        ({"top_p": float("nan")}, "x.yaml: top_p is nan; expected a number, from 0 to 1"),
    ],
)
def test_a_yaml_value_of_another_type_or_range_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        check_values(Settings(**{"output": "o", **changes}), "x.yaml")


def test_old_names_are_taken_with_one_note_each(capsys):
    parser = Parser("")
    parser.add_argument("--input")
    parser.add(JudgingArguments)
    words = ["--votes=3", "--temperature", "1", "--prompt-file", "a_b.txt", "--data", "rows", "--orders", "random"]
    args = parser.parse_args(words)
    judging = read(args, JudgingArguments)
    assert (args.input, judging.samples, judging.prompts, judging.orders) == ("rows", 3, "a_b.txt", "one")
    found = [line.split(";")[0] for line in capsys.readouterr().err.splitlines()]
    pairs = [("votes", "samples"), ("prompt_file", "prompts"), ("data", "input"), ("orders: random", "orders: one")]
    assert found == [f"note: `{old}` is now `{new}`" for old, new in pairs]
    assert parser.parse_args(["--samples", "3", "--orders", "both"]) and not capsys.readouterr().err
    with pytest.raises(InputError, match="votes is now samples; leave one of them out"):
        current({"samples": 2, "votes": 3})


def parsers():
    """The parser of every command that judges or makes prompts, by its name."""
    from unifiedreward_think.evaluation.__main__ import arguments
    from unifiedreward_think.evaluation.benchmark import _parser as benchmark
    from unifiedreward_think.judging.command import _parser as inference
    from unifiedreward_think.serving.__main__ import _parser as serving
    from unifiedreward_think.traces.distillation import _parser as distillation
    from unifiedreward_think.training import rejection_sampling

    spec = importlib.util.spec_from_file_location("app", ROOT / "gradio" / "app.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    sampling = parsing._parser(rejection_sampling.ARGUMENTS, "", rejection_sampling.NO_ARGUMENTS)
    return {
        "evaluation": arguments(),
        "benchmark": benchmark("mmrb2", None, "test", None, ""),
        "inference": inference("image_generation", ""),
        "serving": serving(),
        "distillation": distillation(),
        "demo": demo.arguments(),
        "rejection sampling": sampling,
    }


# What a command means by design: judges are measured in both orders, a stage draws several samples.
OWN = {("evaluation", "orders"), ("benchmark", "orders"), ("rejection sampling", "samples")}
OWN |= {("rejection sampling", "temperature"), ("distillation", "model")}


def test_a_flag_has_one_default_and_one_help_text_in_all_commands():
    shared = Parser("")
    shared.add(JudgingArguments)
    shared.add(BackendArguments)
    wanted = {action.dest: action for action in shared._actions}
    found = parsers()
    for command, parser in found.items():
        for action in parser._actions:
            if action.dest in wanted and (command, action.dest) not in OWN:
                one = wanted[action.dest]
                told = (action.option_strings, action.default, action.help, action.choices)
                assert told == (one.option_strings, one.default, one.help, one.choices), (command, action.dest)
    backends = set(vars(BackendArguments())) - {"model"}
    for command in ("evaluation", "benchmark", "inference", "serving", "demo", "rejection sampling"):
        assert backends <= {action.dest for action in found[command]._actions}


# Commands that make their parser where they read it.
OTHERS = [
    "data.curation.check",
    "data.curation.split",
    "data.exporting",
    "data.formats.loading",
    "data.importing",
    "data.report",
    "data.rows",
    "evaluation.report",
    "evaluation.training_report",
]


def parser_of(module, monkeypatch):
    """The parser that the main function of a module makes."""

    class Found(Exception):
        pass

    def found(self, *_):
        raise Found(self)

    with monkeypatch.context() as patch, pytest.raises(Found) as caught:
        patch.setattr(Parser, "parse_known_args", found)
        importlib.import_module(f"unifiedreward_think.{module}").main()
    return caught.value.args[0]


def stage_parser(*ours):
    return parsing._parser(ours, "")


def reading(parser, action, word, capsys):
    """The number that a flag makes of a word, or what is said instead."""
    flag = max(action.option_strings, key=len)
    words = [f"{flag}={word}"] if action.nargs is None else [flag, *[word] * action.nargs]
    try:
        return getattr(parser.parse_args(words), action.dest), ""
    except SystemExit:
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"argument {'/'.join(action.option_strings)}: " in said, said
        return None, said


ANY_WHOLE = {"seed", "order_seed"}
BELOW_ZERO = {"near"}


def test_every_number_of_every_command_is_held_against_its_range(monkeypatch, capsys):
    from unifiedreward_think.training.grpo import RewardArguments

    found = parsers() | {name: parser_of(name, monkeypatch) for name in OTHERS}
    found["sft"] = stage_parser(DataArguments, TrainingExtras, StreamArguments)
    found["grpo"] = stage_parser(DataArguments, TrainingExtras, RewardArguments, SharedPrefixArguments)
    numbers = 0
    for name, parser in found.items():
        for action in parser._actions:
            action.required = False  # nothing but the number is at fault
        for action in parser._actions:
            if getattr(action.type, "__name__", "") not in ("int", "float"):
                continue
            numbers += 1
            for word in ("nan", "inf", "-inf", "1e999"):
                assert reading(parser, action, word, capsys)[1], (name, action.dest, word)
            for word in ("0", "-1", "-" + "9" * 400, "9" * 400):
                value, said = reading(parser, action, word, capsys)
                assert value is not None or "expected a " in said, (name, action.dest, word)
                negative = word.startswith("-") and action.dest not in ANY_WHOLE
                assert not negative or said or (action.dest in BELOW_ZERO and word == "-1"), (name, action.dest, word)
    assert numbers > 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "99999"], "--port: expected a whole number, from 0 to 65535; found 99999"),
        (["--frames", "0"], "--frames: expected a whole number, 1 or more; found 0"),
        (["--limit-candidates", "-1"], "--limit-candidates: expected a whole number, 2 or more; found -1"),
        (["--limit-deadline", "0"], "--limit-deadline: expected a number, above 0; found 0"),
        (["--temperature", "nan"], "--temperature: expected a number, 0 or more; found nan"),
        (["--top-p", "0"], "--top-p: expected a number, above 0 and up to 1; found 0"),
    ],
)
def test_a_server_does_not_start_with_a_number_that_it_cannot_use(words, said, capsys):
    from unifiedreward_think.serving.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["--model", "m", *words])
    found = capsys.readouterr().err
    assert ended.value.code == 2 and found.count("\n") == 1 and said in found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": float("nan")}, "temperature is nan; expected a number, 0 or more"),
        ({"frames": 0}, "frames is 0; expected a whole number, 1 or more"),
        ({"timeout": 0}, "timeout is 0; expected a number, above 0"),
    ],
)
def test_a_keyword_of_the_judge_has_the_range_of_its_flag(settings, said):
    with pytest.raises(InputError, match=said):
        Judge("m", **settings)
