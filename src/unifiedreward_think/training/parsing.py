"""The arguments of a stage: its config file, an overlay and the command line, as dataclasses of ours and of TRL."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Parser, check_values, read
from unifiedreward_think.old_names import current_words
from unifiedreward_think.terminal import note
from unifiedreward_think.training.arguments import read_config

OWN_DEFAULTS = {"lora_dropout": 0.0}  # TRL's 0.05 does not go with prompts that are read once for a group
ON_THE_CPU = ["--use-cpu", "true", "--bf16", "false", "--fp16", "false", "--deepspeed", ""]


def parse(
    *ours: type, about: str | None = None, trl: Sequence[str] = (), without: Sequence[str] = ()
) -> tuple[Any, ...]:
    """Parse YAML, overlay and command line into dataclasses: ours by our parser, with TRL's by TrlParser.

    Importing TRL takes seconds, which `--help` should not: it lists this project's arguments, `--help_all` everything.

    Args:
        ours: dataclasses of this project.
        about: what --help says.
        trl: names of TRL's classes that follow.
        without: fields that are no arguments of this stage.

    Raises:
        InputError: a file cannot be read, a key is unknown, or a value cannot mean what it says.
        SystemExit: the command line is at fault (status 2).
    """
    words = current_words(sys.argv[1:])
    if trl and {"-h", "--help"} & set(words):
        _print_help(ours, about, trl)
    types = (*ours, *(getattr(import_module("trl"), name) for name in trl))
    flags = _flags(words)
    keys = read_config(flags.config, flags.overlay)
    origin = " with ".join(filter(None, (flags.config, flags.overlay))) or "the command line"
    _must_be_known(keys, types, without, origin)
    try:
        if trl:
            parsed = _with_trl(types, words, keys, flags)
        else:
            parser = _parser(types, about, without)
            parser.set_defaults(**keys)
            args = parser.parse_args(words)
            parsed = tuple(read(args, cls) for cls in types)
    except ValueError as error:  # what TRL, transformers and our own dataclasses refuse
        raise InputError(f"{origin}: {error}") from error
    for part in parsed:
        if type(part).__module__.startswith("unifiedreward_think."):
            check_values(part, origin)
    return parsed


def _print_help(ours: Sequence[type], about: str | None, trl: Sequence[str]) -> NoReturn:
    names = ", ".join(f"trl.{name}" for name in trl)
    epilog = f"Every field of {names} is a flag and a key, too; --help_all lists them."
    _parser(ours, about, epilog=epilog).parse_args(["--help"])
    raise AssertionError("--help ends the command")


def _must_be_known(keys: Iterable[str], types: Iterable[type], without: Iterable[str], origin: str) -> None:
    known = {each.name for cls in types for each in dataclasses.fields(cls)} - set(without)
    known |= {"preset"} if any(hasattr(cls, "PRESETS") for cls in types) else set()
    if unknown := sorted(set(keys) - known):
        raise InputError(f"{origin}: Unknown arguments from config file: {', '.join(unknown)}; --help lists all")


def _wrong_argument(message: str) -> NoReturn:
    """Stand in for argparse, which would print the usage of some hundred arguments first."""
    note(f"error: {message}; --help_all lists all arguments")
    raise SystemExit(2)


def _parser(types: Sequence[type], about: str | None, without: Sequence[str] = (), **options: Any) -> Parser:
    parser = Parser(about, **options)
    parser.add_argument("--config", metavar="YAML", help="file with any of these, with _ for -; the command line wins")
    parser.add_argument("--overlay", metavar="YAML", help="file whose values replace the config's, as lora.yaml")
    for cls in types:
        parser.add(cls, without=without)
    return parser


def _with_trl(
    types: Sequence[type], words: list[str], keys: dict[str, Any], flags: argparse.Namespace
) -> tuple[Any, ...]:
    """Parse with TrlParser; with --check_data a config for GPUs is read on a machine without one, too."""
    from torch import cuda
    from trl import TrlParser

    if flags.check_data != "false" and not cuda.is_available():
        words = [*words, *ON_THE_CPU]
    file = _flags(words).deepspeed
    prepare_deepspeed(keys.get("deepspeed") if file is None else file)
    parser = TrlParser(types)
    parser.error = _wrong_argument
    parser.add_argument("--config")
    parser.add_argument("--overlay")
    parser.set_defaults(**{**OWN_DEFAULTS, **keys})
    parsed: tuple[Any, ...] = parser.parse_args_into_dataclasses(["--help" if w == "--help-all" else w for w in words])
    return parsed[: len(types)]


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    """Return what is needed before the rest can be parsed."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--check-data", nargs="?", const="true", default="false")
    known.add_argument("--deepspeed")
    known.add_argument("--config")
    known.add_argument("--overlay")
    return known.parse_known_args(list(argv))[0]


def prepare_deepspeed(file: str | None) -> None:
    """Initialise deepspeed.comm before the trainer arguments exist, where DeepSpeed runs without a GPU.

    transformers initialises torch.distributed but not deepspeed.comm on the CPU, and DeepSpeed then miscounts the
    ranks. The shared-memory op is switched off because it would be compiled for a minute and is not needed.
    """
    if not file:
        return
    if "RANK" not in os.environ:
        raise SystemExit("deepspeed needs a launcher, even for one process: torchrun --nproc_per_node 1 -m ...")
    import torch

    if torch.cuda.is_available():
        return
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
