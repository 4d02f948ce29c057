"""Flags and YAML keys from dataclasses: a setting has one name, one default and one help text everywhere.

>>> from dataclasses import dataclass
>>> @dataclass(kw_only=True)
... class Videos:
...     '''How videos become pictures.'''
...     max_frames: Count = option("of each video", default=8)
>>> parser = Parser("A command.")
>>> parser.add(Videos, max_frames=4)                 # the default of this command
>>> read(parser.parse_args([]), Videos)
Videos(max_frames=4)
>>> [read(parser.parse_args([word]), Videos).max_frames for word in ("--max-frames=2", "--max_frames=2")]
[2, 2]

What a number may be stands with its declaration, here 1 or more: flags, YAML keys and keywords are held against it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from math import inf
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from unifiedreward_think.errors import InputError
from unifiedreward_think.old_names import current_words

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Span:
    """The numbers from `low` to `high`, finite ones only; `above`: without `low` itself.

    >>> str(Span(1)), str(Span(0, 1, above=True)), Span(0, 1, above=True).holds(0.0), Span(-inf).holds(float("nan"))
    ('1 or more', 'above 0 and up to 1', False, False)
    """

    low: float
    high: float = inf
    above: bool = False

    def holds(self, number: float) -> bool:
        """Return whether a number is in it; nan and the infinities never are."""
        return -inf < number < inf and self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        if self.low == -inf:
            return "finite"
        if self.above:
            return f"above {self.low:g}" + (f" and up to {self.high:g}" if self.high < inf else "")
        return f"from {self.low:g} to {self.high:g}" if self.high < inf else f"{self.low:g} or more"


# Numbers of commands, with what they may be. TRL's parser does not see that; `check_values` looks at what it parsed.
Count = Annotated[int, Span(1)]
Whole = Annotated[int, Span(0)]
Seed = Annotated[int, Span(-inf)]
Port = Annotated[int, Span(0, 65535)]
Amount = Annotated[float, Span(0)]
Positive = Annotated[float, Span(0, above=True)]
Share = Annotated[float, Span(0, 1)]
Nucleus = Annotated[float, Span(0, 1, above=True)]


def option(text: str, *, bare: str | None = None, **kwargs: Any) -> Any:
    """Return a dataclass field with a help text; `bare` is the value of its flag where none follows."""
    alone = {} if bare is None else {"nargs": "?", "const": bare}  # TrlParser hands the metadata to argparse, too
    return field(metadata={"help": text, **alone}, **kwargs)


class Parser(argparse.ArgumentParser):
    """A parser that takes `-` and `_` in a flag alike, renamed flags, and the fields of dataclasses as flags."""

    def __init__(self, about: str | None, **options: Any) -> None:
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._presets: Callable[[str], Mapping[str, Any]] | None = None
        self._stated: set[str] = set()

    def add(self, cls: Any, *names: str, without: Sequence[str] = (), **defaults: Any) -> None:
        """Add the fields of a dataclass, those that are named or all; `defaults` are those of this command.

        A dataclass with PRESETS, name -> values of its fields, has the flag `--preset`, too: the values of a preset
        stand beneath what a file (`set_defaults`) and the command line state.
        """
        group = self.add_argument_group(cls.__doc__.partition(".")[0].lower())
        hints = get_type_hints(cls, include_extras=True)
        for each in fields(cls):
            if each.name in (names or {each.name}) and each.name not in without:
                group.add_argument(f"--{each.name.replace('_', '-')}", **_kind(each, hints[each.name], defaults))
        if hasattr(cls, "PRESETS") and not names:
            self._presets = cls.PRESETS
            told = "what a family of released judges needs (docs/released.md); other arguments win over it"
            group.add_argument("--preset", metavar="NAME", help=told)

    def set_defaults(self, **values: Any) -> None:
        """See argparse; a preset does not change these."""
        self._stated |= values.keys()
        super().set_defaults(**values)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse."""
        words = current_words(sys.argv[1:] if args is None else args)
        found = super().parse_known_args(words, namespace)
        name = getattr(found[0], "preset", None)
        if self._presets is None or name is None:
            return found
        actions = {action.dest: action for action in self._actions}
        before = {dest: action.default for dest, action in actions.items()}
        super().set_defaults(**self._of_preset(name, actions))
        found = super().parse_known_args(words, namespace)
        super().set_defaults(**before)  # for the next command line
        return found

    def _of_preset(self, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a preset sets here."""
        assert self._presets is not None
        try:
            values = {key: value for key, value in self._presets(name).items() if key not in self._stated}
        except InputError as error:
            self.error(str(error))
        return {key: value for key, value in values.items() if key in known}

    def error(self, message: str) -> NoReturn:
        """End in one line; argparse would print the usage of some dozens of arguments first."""
        self.exit(2, f"{self.prog}: error: {message}; --help lists all arguments\n")


def read(args: argparse.Namespace, cls: type[T], **values: Any) -> T:
    """Return a dataclass from parsed arguments; `values` win.

    Raises:
        InputError: an argument that is needed is missing, or they contradict each other.
    """
    wanted_fields: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]
    given = {each.name: getattr(args, each.name) for each in wanted_fields if hasattr(args, each.name)} | values
    given = {name: None if value == [None] else value for name, value in given.items()}  # a list of "none" alone
    if missing := [each for each in wanted_fields if default_of(each) is MISSING and each.name not in given]:
        raise InputError(f"{missing[0].name} is needed: {missing[0].metadata['help']}")
    return cls(**given)


def ranged(hint: Any) -> Callable[[str], Any]:
    """Return what reads a number of a declared range; the `type` of an argument that is no field.

    >>> ranged(Port)("80")
    80
    >>> ranged(Port)("99999")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: expected a whole number, from 0 to 65535; found 99999
    """
    kind, span = get_args(hint)

    def value(text: str) -> Any:
        read_number = kind(text)
        if not span.holds(read_number):
            raise argparse.ArgumentTypeError(f"expected {_described(hint)}; found {text}")
        return read_number

    value.__name__ = kind.__name__  # argparse names it where the text is no number
    return value


def check_values(part: Any, origin: object) -> None:
    """Refuse values that a YAML file may hold and a command line may not: neither parser looks at their type.

    Raises:
        InputError: names the key, and what it may be.
    """
    hints = get_type_hints(type(part))
    for each in fields(part):
        value, hint = getattr(part, each.name), hints[each.name]
        if not _fits(value, hint):
            wanted = get_args(hint) if get_origin(hint) is Literal else [_name(hint)]
            raise InputError(f"{origin}: {each.name} is {value!r}; expected {' or '.join(wanted)}")
    try:
        check_ranges(part)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def check_ranges(part: Any) -> None:
    """Refuse numbers outside of what their fields declare; a value of another type is none of its business.

    Raises:
        InputError: names the field, and what it may be.
    """
    hints = get_type_hints(type(part), include_extras=True)
    for each in fields(part):
        value, hint = getattr(part, each.name), _without_none(hints[each.name])
        if get_origin(hint) is Annotated and isinstance(value, int | float) and not get_args(hint)[1].holds(value):
            raise InputError(f"{each.name} is {value!r}; expected {_described(hint)}")


def to_bool(text: str) -> bool:
    """Read a switch: `--stop` and `--stop true` mean the same."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return values[text.lower()]


def default_of(each: Field[Any]) -> Any:
    """Return the default of a dataclass field, MISSING where it has none."""
    return each.default if each.default_factory is MISSING else each.default_factory()


def _kind(each: Field[Any], hint: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what argparse is told of a field."""
    default = defaults.get(each.name, default_of(each))
    shown = "" if any(default is one for one in (None, MISSING, False)) or default == [] else f" (default: {default})"
    common = {**each.metadata, "help": each.metadata["help"].replace("%", "%%") + shown}
    common |= {"default": argparse.SUPPRESS if default is MISSING else default}
    inner = _without_none(hint)
    if get_origin(inner) is Annotated:
        return {**common, "type": ranged(inner) if inner is hint else _or_none(ranged(inner))}
    if inner is bool:
        return {**common, "type": to_bool, "nargs": "?", "const": True, "metavar": "true|false"}
    if get_origin(inner) is Literal:
        return {**common, "choices": get_args(inner)}
    if get_origin(inner) is list:
        return {**common, "type": get_args(inner)[0] if inner is hint else _or_none(get_args(inner)[0]), "nargs": "+"}
    return {**common, "type": inner if inner is hint else _or_none(inner)}


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what reads a value of a kind, or "none", which takes back what a YAML file says."""

    def value(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    value.__name__ = _name(kind)
    return value


def _without_none(hint: Any) -> Any:
    return get_args(hint)[0] if NoneType in get_args(hint) else hint


def _described(hint: Any) -> str:
    """Return what a number may be.

    >>> _described(Count), _described(Share)
    ('a whole number, 1 or more', 'a number, from 0 to 1')
    """
    kind, span = get_args(hint)
    return f"a {'whole number' if kind is int else 'number'}, {span}"


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type hint: a plain type, one of some texts, a list, or a union of these.

    >>> _fits(3, int), _fits(True, int), _fits(3, float), _fits(["a"], list[str]), _fits(None, int | None)
    (True, False, True, True, True)
    """
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " | ".join("None" if one is NoneType else _name(one) for one in get_args(hint))
    return getattr(hint, "__name__", str(hint))
