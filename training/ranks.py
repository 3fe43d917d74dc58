"""Several processes that train one model together, started by `torchrun`; alone without it.

Every rank draws the same batches, negatives and noise, and computes its share of each batch.
Gradients are added up, so that each rank takes the same step as one process would with the whole
batch, up to rounding.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

_LONGEST_WAIT: Final = timedelta(hours=2)  # others wait while the first evaluates and publishes


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that `torchrun` started; nothing if it started none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def on_this_machine() -> int:
    """How many of them share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def share() -> slice:
    """Which examples of a batch are this rank's; every so many, since lengths are sorted."""
    return slice(rank(), None, size())


def share_of_mean(mean: Tensor, count: Tensor) -> Tensor:
    """What this rank's mean adds to the mean over all ranks.

    Args:
        mean: over `count` targets.
        count: int64 scalar, this rank's targets; may be 0.
    """
    if size() == 1:
        return mean
    total = count.clone()
    dist.all_reduce(total)
    return mean * (count / total.clamp(min=1))


def add_gradients(model: nn.Module) -> None:
    """Replace each parameter's gradient by the sum over ranks."""
    if size() == 1:
        return
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def share_the_first(model: nn.Module) -> None:
    """Give every rank the first one's parameters: eigenvectors may differ between processors."""
    if size() == 1:
        return
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)


def added(value: float) -> float:
    """The sum over ranks."""
    if size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def as_the_first(values: list[int]) -> list[int]:
    """The first rank's numbers, as many as this rank's own."""
    if size() == 1:
        return values
    numbers = torch.tensor(values, dtype=torch.int64)
    dist.broadcast(numbers, 0)
    return [int(number) for number in numbers]


def wait_for_all() -> None:
    """Go on when every rank is here."""
    if size() > 1:
        dist.barrier()
