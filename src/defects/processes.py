"""Several processes, as torchrun or accelerate's launcher start them: what they share out and agree on."""

import os
from datetime import timedelta

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import distributed, nn

from defects.numerics import as_double

ROWS_AT_ONCE = 8192  # to be added up: a second copy of all rows might not fit into memory
STORE_TIMEOUT = timedelta(seconds=5)  # for a launcher that does not answer


def is_distributed() -> bool:
    """Whether this is one of several connected processes."""
    return distributed.is_available() and distributed.is_initialized()


def print_once(text: str) -> None:
    """Print in the first of several processes alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def own_rows(count: int, batch_size: int, process: int, processes: int) -> np.ndarray:
    """Which of `count` rows are this process's: those of every n-th batch.

    In whole batches, so that a network gets the same ones as in a single process.
    """
    return np.flatnonzero(np.arange(count) // batch_size % processes == process)


def add_up(values: torch.Tensor) -> torch.Tensor:
    """`values` [N, ...] of all processes summed, in place."""
    if is_distributed():
        for part in values.split(ROWS_AT_ONCE):
            distributed.all_reduce(part)
    return values


def average_buffers(module: nn.Module) -> None:
    """Give every process the mean of all processes' buffers, such as running statistics of its own images.

    In double precision, where the mean of equal values is that value.
    """
    if not is_distributed():
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            total = as_double(buffer)
            distributed.all_reduce(total)
            buffer.copy_(total / distributed.get_world_size())


def follow_main(module: nn.Module) -> None:
    """Give every process the main process's parameters and buffers, their sizes included."""
    if not is_distributed():
        return
    state = [{name: value.cpu() for name, value in module.state_dict().items()}]
    broadcast_object_list(state)
    module.load_state_dict(state[0])


def is_first_to_fail() -> bool:
    """Whether this process is to say what went wrong: no other has failed before.

    Where that cannot be known, the first process of every machine says it.
    """
    failures = _count_failures(1)
    return os.environ["LOCAL_RANK"] == "0" if failures is None else failures == 1


def has_another_failed() -> bool:
    """Whether some process has failed and said why: what fails here is a consequence."""
    return bool(_count_failures(0))


def _count_failures(more: int) -> int | None:
    """How many processes have failed, after adding `more`, in the launcher's store.

    None without a store: it ends with the launcher.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address = os.environ["MASTER_ADDR"]
        port = int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT)
        return store.add(f"failures of attempt {attempt}", more)
    except (KeyError, RuntimeError):
        return None
