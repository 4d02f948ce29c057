"""Several processes at one piece of work: which share is mine, and waiting for the others.

    with joined() as ranks:            # torchrun tells each process its rank; without it there is one
        for batch in ranks.share(batches): ...
        ranks.wait()

>>> Ranks(rank=1, count=3).share("abcdefg")
'be'
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # a rank may have hours more to do than another; torchrun ends all when one dies


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `count`-th item, from this rank's first one on."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes of this launch, which may be on other machines."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)  # only waits: gloo serves machines with and without GPUs
    try:
        yield Ranks(rank=distributed.get_rank(), count=count)
    finally:
        distributed.destroy_process_group()
