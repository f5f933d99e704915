"""The processes of one training: who they are, and the few operations in which they all take part.

Run: ``torchrun --nproc_per_node=2 -m training pretrain``. Used by trainer.py: ``ranks.sum(num_tokens)``;
``with ranks.micro_step(last=True): ranks.forward(model, input_ids)…backward()``. meeting.py makes the group.

Every operation is *collective*: all ranks come to it, in the same order, or those that came wait for the timeout.

Paper: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
https://arxiv.org/abs/2006.15704.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.rng import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket


class PeerLost(RuntimeError):
    """Another process of the training has ended, or has not answered within the timeout."""


class Ranks:
    """The processes of a training. This class is the case of one process: nothing to do, and nothing is done.

    Attributes:
        rank: of this process, 0 <= rank < world_size. world_size: how many there are.
        is_main: rank 0 writes, prints and saves; the others compute.
    """

    rank = 0
    world_size = 1
    is_main = True

    def sum(self, *numbers: int) -> list[int]:
        """Each number, added up over all ranks; the same on every rank."""
        return list(numbers)

    def gather(self, value: Any) -> list[Any]:
        """The small value of every rank, in the order of ranks; the same on every rank."""
        return [value]

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """Around forward and backward. After the last of a window, gradients are the sum over all ranks."""
        yield

    def forward(self, model: nn.Module, input_ids: Tensor) -> Tensor:
        """model(input_ids), with the gradients to be summed; inside of `micro_step`."""
        return model(input_ids)

    def close(self) -> None:
        """Wait until every rank is done: a launcher ends all processes as soon as one leaves with an error."""


class ManyRanks(Ranks):
    """Several processes, each with the same model, on shares of the same micro-batches.

    The gradient is Σ over the ranks, not their mean: the loss is already divided by the targets of all ranks.

    Args:
        rank, world_size: as in torch.distributed's default group, which need not exist yet. On tensors in host
            memory it works with gloo, on those of a GPU with NCCL.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.is_main = rank, world_size, rank == 0
        self._shared: DistributedDataParallel | None = None
        self._last = True
        self._lost = False

    def sum(self, *numbers: int) -> list[int]:
        total = torch.tensor(numbers, dtype=torch.int64)
        with _named("adding up numbers"):
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        with _named("gathering states"):
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        self._last, self._lost = last, False
        try:
            yield
        except RuntimeError as error:  # of the connection, or of the model
            if not (self._lost or isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise peer_lost("adding up gradients", error) from error

    def forward(self, model: nn.Module, input_ids: Tensor) -> Tensor:
        if self._shared is None or self._shared.module is not model:
            self._shared = self._share(model, input_ids)
        with nullcontext() if self._last else self._shared.no_sync():  # the forward decides for its backward
            return self._shared(input_ids)

    def close(self) -> None:
        with _named("waiting for the end"):
            dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()

    def _share(self, model: nn.Module, input_ids: Tensor) -> DistributedDataParallel:
        """The model with rank 0's weights on every rank, and gradients that are summed in buckets.

        DDP arranges its buckets anew after its first backward, and the place of a gradient in a bucket decides in
        which order three ranks or more are added up. With a first backward that nobody sees, a resumed run adds in
        the order of an uninterrupted one.
        """
        device = input_ids.device
        ids = [device.index] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for it than 2.6
            # Buffers are tables (rotary), and each rank has its own running statistics where a model has those.
            shared = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        # a lambda, since DDP refuses annotations that are texts
        shared.register_comm_hook(None, lambda _, bucket: self._arriving(sum_gradients(bucket)))
        params = list(model.parameters())
        grads = [param.grad for param in params]
        model.zero_grad(set_to_none=True)
        rng_state = get_rng_state()
        shared(input_ids).float().sum().backward()
        set_rng_state(rng_state)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        return shared

    def _arriving(self, summed: torch.futures.Future[list[Tensor]]) -> torch.futures.Future[Tensor]:
        """The sum of a bucket, once it is there. DDP passes an error on as a RuntimeError like any other."""

        def arrived(done: torch.futures.Future[list[Tensor]]) -> Tensor:
            try:
                return done.value()[0]
            except RuntimeError:
                self._lost = True
                raise

        return summed.then(arrived)


def sum_gradients(bucket: GradBucket) -> torch.futures.Future[list[Tensor]]:
    """For DDP's communication hook: Σ over the ranks. Without a hook DDP would divide by their number."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future()


def peer_lost(operation: str, error: RuntimeError) -> PeerLost:
    """The error of the connection in a sentence; gloo's begins with its own file and line."""
    reason = str(error).rpartition("] ")[2] if "closed by peer" not in str(error) else "it has ended"
    return PeerLost(
        f"lost contact with another process while {operation} ({reason.partition('. ')[0].strip()})"
    )


@contextmanager
def _named(operation: str) -> Iterator[None]:
    """An error of an operation in host memory, in which nothing but the connection can fail, becomes PeerLost."""
    try:
        yield
    except RuntimeError as error:
        raise peer_lost(operation, error) from error
