"""Several processes on one model, as `torchrun` starts them: each takes some of the documents.

What is exchanged goes by gloo where it is on the CPU and by nccl where it is on a GPU. Nothing is pickled.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(hours=6)
"""How long a rank waits for another: as long as a layer, or a whole evaluation, may take."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what all of them found."""
        return self.rank == 0

    def shares(self, n: int, per_batch: int) -> list[slice]:
        """Return which of n items are whose, by rank: whole batches side by side, the same as one process has.

        Args:
            n: items.
            per_batch: items that run at once.
        """
        n_batches = -(-n // per_batch)
        edges = [min(n, n_batches * rank // self.size * per_batch) for rank in range(self.size + 1)]
        return [slice(*pair) for pair in pairwise(edges)]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def from_first(self, values: Tensor) -> Tensor:
        """Return the first process's values; all give a tensor of that shape and type."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def number_from_first(self, number: int) -> int:
        """Return the first process's number."""
        return int(self.from_first(torch.tensor(number)).item())

    def text_from_first(self, text: str) -> str:
        """Return the first process's text."""
        if self.size == 1:
            return text
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
        length = self.number_from_first(len(encoded))
        sent = encoded if self.first else torch.empty(length, dtype=torch.uint8)
        return bytes(self.from_first(sent).tolist()).decode()

    def all_hold(self, holds: bool) -> bool:
        """Say whether it holds in every process."""
        told = torch.tensor(int(holds))
        if self.size > 1:
            dist.all_reduce(told, op=dist.ReduceOp.MIN)
        return bool(told.item())

    def to_first(self, own: Tensor, lengths: list[int] | None = None) -> list[Tensor]:
        """Return every rank's tensor in the first process, [] in the others.

        Args:
            own: of this process.
            lengths: of the first axis, by rank; None when it is the same in all. The other axes are the same.
        """
        if not self.first:
            dist.send(own.contiguous(), dst=0)
            return []
        found = [own]
        for rank in range(1, self.size):
            shape = own.shape if lengths is None else (lengths[rank], *own.shape[1:])
            found.append(torch.empty(shape, dtype=own.dtype, device=own.device))
            dist.recv(found[-1], src=rank)
        return found


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started; `ALONE` without it. This process's GPU becomes the default."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
