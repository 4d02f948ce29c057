"""GPUs for one process among those that torchrun started on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from unifiedreward_think.backends import BackendError

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def own_device() -> str:
    """Return the GPU of this process, or the CPU where there is none."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@contextmanager
def alone(gpus: int) -> Iterator[None]:
    """Show a library that starts processes of its own this rank's share of the GPUs, and hide the launcher from it.

    Raises:
        BackendError: the ranks of this machine need more GPUs than there are.
    """
    import torch

    hidden = {
        name: os.environ.pop(name) for name in [*os.environ] if name in LAUNCHER or name.startswith("TORCHELASTIC_")
    }
    try:
        count, total = int(hidden.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if "LOCAL_RANK" in hidden and total:
            if count * gpus > total:
                raise BackendError(
                    f"{count} processes with tensor_parallel_size {gpus} need {count * gpus} GPUs, and {total} are "
                    f"visible: set NPROC={total // gpus}, or another tensor_parallel_size"
                )
            visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(total)))).split(",")
            first = int(hidden["LOCAL_RANK"]) * gpus
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + gpus])
        yield
    finally:
        os.environ |= hidden
