"""One bad item never ends a run of many: it fails alone, and the others get their answers.

>>> def longest(words):
...     if "" in words:
...         raise ValueError("an empty word")
...     return max(map(len, words))
>>> [(words, str(said)) for words, said in apart(longest, ["a", "b", "", "kite"], ValueError)]
[(['a', 'b'], '1'), ([''], 'an empty word'), (['kite'], '4')]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
Errors = type[Exception] | tuple[type[Exception], ...]


def apart(
    work: Callable[[Sequence[T]], R], items: Sequence[T], errors: Errors
) -> Iterator[tuple[Sequence[T], R | Exception]]:
    """Yield all items in order, as many together as `work` takes, with what it makes of them.

    Those that make it raise one of `errors` are halved, until the item at fault is alone and comes with its error.
    """
    if not items:
        return
    try:
        made: R | Exception = work(items)
    except errors as error:
        made = error
    if not isinstance(made, Exception) or len(items) == 1:
        yield items, made
        return
    middle = len(items) // 2
    yield from apart(work, items[:middle], errors)
    yield from apart(work, items[middle:], errors)


def out_of_memory(error: Exception) -> bool:
    """Return whether the memory of a device or of the machine ran out; torch says so in the words of its errors."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or bool(should_reduce_batch_size(error))
