"""Several processes at one piece of work: which share is mine, waiting for the others, and ending with them.

    with joined(prepare) as (ranks, ready):    # torchrun tells each process its rank; without it there is one
        for batch in ranks.share(batches): ...
        ranks.wait()

What ends one rank early ends all: nobody waits for a rank that has gone, or is left while it still connects.

>>> Ranks(rank=1, count=3).share("abcdefg")
'be'
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # a rank may have hours more to do than another; torchrun ends all when one dies
MEETING = timedelta(hours=1)  # for ranks to come together after they have loaded their models


class EndedElsewhere(SystemExit):
    """Another rank has ended: with status 0, or for the reason that this says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        group: torch's process group they speak in; None is the default one.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `count`-th item, from this rank's first one on."""
        return items[self.rank :: self.count]

    def wait(self, end: str | None = None) -> None:
        """Return when all ranks have come here and none has ended.

        Args:
            end: why this rank ends; "" where nothing is wrong, None where it goes on.

        Raises:
            EndedElsewhere: another rank has ended; where nothing is wrong with this one, for the reason of that one.
        """
        ends = self.gather(end)
        problems = [f"error: rank {rank}: {text}" for rank, text in enumerate(ends) if text]
        if problems and not end:
            raise EndedElsewhere(problems[0])
        if end is None and "" in ends:
            raise EndedElsewhere(0)

    def gather(self, item: T) -> list[T]:
        """Return what each rank brings."""
        if self.count == 1:
            return [item]
        from torch import distributed

        brought = [item] * self.count
        distributed.all_gather_object(brought, item, group=self.group)
        return brought

    def together(self) -> AbstractContextManager[None]:
        """Let all ranks leave a block together: where it ends one, it ends all."""
        return together(lambda: self)


ALONE = Ranks()


@contextmanager
def together(find: Callable[[], Ranks]) -> Iterator[None]:
    """Let all ranks leave a block together, as they are known at its end; each must reach the same waits in it."""
    try:
        yield
    except EndedElsewhere:
        raise
    except (Exception, SystemExit) as error:
        find().wait(_reason(error))
        raise
    find().wait()


def _reason(error: BaseException) -> str:
    if not isinstance(error, SystemExit):
        return str(error) or type(error).__name__
    return f"it ended with status {error.code}" if isinstance(error.code, int) and error.code else str(error.code or "")


def met() -> Ranks:
    """Return the ranks that accelerate or DeepSpeed has brought together; this process alone before that."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from torch import distributed

    if not distributed.is_initialized():
        return ALONE
    return Ranks(rank=distributed.get_rank(), count=distributed.get_world_size())


@contextmanager
def joined(prepare: Callable[[], T]) -> Iterator[tuple[Ranks, T]]:
    """Meet the other processes of this launch, which may be on other machines, once each is prepared, or has failed to.

    Preparing comes first because vLLM starts processes of its own, which must find no process group. The group is not
    destroyed: `training.run.run_stage` says why, and ends the process.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, prepare()
        return
    from torch import distributed

    ready: Any = None
    failed: Exception | SystemExit | None = None
    try:
        ready = prepare()
    except (Exception, SystemExit) as error:  # told to the others, who may be waiting for this rank
        failed = error
    distributed.init_process_group("gloo", timeout=MEETING)  # only waits: gloo serves machines with and without GPUs
    group = distributed.new_group(timeout=PATIENCE)
    ranks = Ranks(rank=distributed.get_rank(), count=count, group=group)
    with ranks.together():
        if failed is not None:
            raise failed
    yield ranks, ready
