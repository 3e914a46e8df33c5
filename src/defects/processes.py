"""Several processes, as torchrun or accelerate's launcher start them: what they share out and agree on."""

import os

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import distributed, nn
from torch.distributed import distributed_c10d

ROWS = 8192  # added up at a time: a second copy of all of them might not fit into memory


def several() -> bool:
    """Whether this is one of several processes that have met."""
    return distributed.is_available() and distributed.is_initialized()


def own_rows(count: int, batch_size: int, process: int, processes: int) -> np.ndarray:
    """Which of `count` rows are this process's: those of every n-th batch.

    Whole batches, so that a network is given the same ones as in a single process.
    """
    return np.flatnonzero(np.arange(count) // batch_size % processes == process)


def add_up(values: torch.Tensor) -> torch.Tensor:
    """`values` [N, ...] of all processes summed, in place."""
    if several():
        for part in values.split(ROWS):
            distributed.all_reduce(part)
    return values


def average_buffers(module: nn.Module) -> None:
    """Give every process the mean of all processes' buffers, such as running statistics: each has seen its
    own images only. In double precision, where the mean of equal values is that value.
    """
    if not several():
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            total = buffer.double()
            distributed.all_reduce(total)
            buffer.copy_(total / distributed.get_world_size())


def follow_main(module: nn.Module) -> None:
    """Give every process the main process's parameters and buffers, their sizes included."""
    if not several():
        return
    state = [{name: value.cpu() for name, value in module.state_dict().items()}]
    broadcast_object_list(state)
    module.load_state_dict(state[0])


def first_to_fail() -> bool:
    """Whether it is for this process to say what went wrong: no other has failed before.

    While they have not met yet, the first process of each machine speaks for all.
    """
    return _failures(1) == 1 if several() else os.environ.get("LOCAL_RANK", "0") == "0"


def another_failed() -> bool:
    """Whether some process has said what went wrong, so that errors here come of having lost it."""
    return several() and _failures(0) > 0


def _failures(more: int) -> int:
    """How many processes have failed, after adding `more`."""
    try:
        return distributed_c10d._get_default_store().add("defects/failures", more)
    except RuntimeError:  # the store went down with the process, or the launcher, that held it
        return 2
