r"""Numbers in replies: whole, signed and decimal ones, never a part of something longer; and the ends of their scales.

>>> number_after("4.7/5."), number_after(" **-3**"), number_after("4-5 points")
((4.7, 5.0), (-3.0, None), (None, None))
>>> outside("Style", 5.5, (1, 5))
"'Style' is 5.5, outside of 1 to 5"
"""

from __future__ import annotations

import re

MINUS = "\u2212"
NUMBER = rf"[+{MINUS}-]?(?:\d{{1,9}}(?:\.\d{{1,9}})?|\.\d{{1,9}})"
# Neither a range ("4-5", "4 to 5"), nor another way to write decimals ("4,7"), nor a version, a share or a word.
ENDS = rf"(?![\w%]|[.,]\d| ?[{MINUS}\u2013~-] ?\d| (?:to|or) \d)"
_AFTER = re.compile(rf"[\s*\[(]{{0,8}}({NUMBER}){ENDS}(?: ?(?:/|out of) ?(\d{{1,9}}){ENDS})?")


def value_of(text: str) -> float:
    """Return the number that a match of NUMBER spells."""
    return float(text.replace(MINUS, "-"))


def number_after(text: str, at: int = 0) -> tuple[float | None, float | None]:
    """Return the number at a place of a text, and what it is stated to be out of; None for each that is not there.

    Brackets, stars and line breaks may stand before the number.
    """
    match = _AFTER.match(text, at)
    if match is None:
        return None, None
    return value_of(match[1]), None if match[2] is None else float(match[2])


def no_constant(name: str) -> float:
    """Refuse NaN and the infinities, which Python's reader of JSON takes: its `parse_constant`.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is no number of JSON")


def outside(name: str, value: float, scale: tuple[float, float]) -> str:
    """Return that a value lies outside of its scale; "" where it does not."""
    lowest, highest = scale
    return "" if lowest <= value <= highest else f"{name!r} is {value:g}, outside of {lowest:g} to {highest:g}"
