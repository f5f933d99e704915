"""Which sample comes next, and how a resumed run finds its place in the data again.

Used by pretrain.py (`resumable_loader`) and trainer.py (`DataCursor`).

The order of an epoch is a function of (seed, epoch) alone, so that a fresh process finds it without going
through the epochs before. A position counts what the training has *taken*, not what was prefetched.

Several processes *share out* the rows of each micro-batch: how many they are changes who computes a row, and not
what is computed. So a position, which counts the rows of all, is good for any number of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from training.distributed import Ranks
from training.losses import IGNORE_INDEX
from training.rng import get_rng_state, set_rng_state

Batch = dict[str, Tensor]


def mix_seed(*numbers: int) -> int:
    """One seed in [0, 2⁶³) out of several numbers, the same in every process.

    A sum would give (seed 0, epoch 1) and (seed 1, epoch 0) the same order; shifting would not help, since
    torch's CPU generator looks at the lowest 32 bits only.
    """
    digest = hashlib.sha256(repr(tuple(int(number) for number in numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class ResumableSampler(Sampler[int]):
    """Indices of an epoch, from the first one that the training has not taken.

    Args:
        num_samples: n >= 1.
        seed: of the run.
        shuffle: a new order each epoch; False: 0, 1, …, n - 1.

    Attributes:
        epoch, position: the epoch whose order is in force, and how many of its samples were taken.

    Differs from torch: RandomSampler's order hangs on all epochs before, and it has no position.
    """

    def __init__(self, num_samples: int, seed: int = 0, shuffle: bool = True) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be >= 1, got {num_samples}")
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = self.position = 0

    def __len__(self) -> int:
        """n, also in the middle of an epoch: lengths of runs are computed from it."""
        return self.num_samples

    def order(self) -> list[int]:
        """All indices of the epoch, each once. Reads and moves no global generator."""
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; stay where we are if it is the one under way (after a resume)."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.position :])

    def advance(self, num_samples: int) -> None:
        """The training took the next num_samples samples, or the few that were left."""
        self.position = min(self.position + num_samples, self.num_samples)

    def state_dict(self) -> dict[str, Any]:
        names = ("epoch", "position", "num_samples", "seed", "shuffle")
        return {name: getattr(self, name) for name in names}

    def mismatch(self, state: dict[str, Any]) -> str | None:
        """Why the position in `state` points into another order, or None."""
        for name in ("num_samples", "seed", "shuffle"):
            if state.get(name) != getattr(self, name):
                return f"{name} of the data is {getattr(self, name)}, in the checkpoint {state.get(name)}"
        if not 0 <= state["position"] <= self.num_samples:
            return f"the position in the data is {state['position']} of {self.num_samples}"
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            ValueError: the state is of another number of samples, seed or shuffle. Nothing is changed then.
        """
        if problem := self.mismatch(state):
            raise ValueError(problem)
        self.epoch, self.position = state["epoch"], state["position"]


class ShareSampler(Sampler[list[int]]):
    """Of each micro-batch the rows that one of several processes takes: rank r takes the rows r, r + N, ….

    Where a micro-batch has fewer rows than there are processes, [-1 - i] stands for the row i as a `filler`: each
    process takes part in each micro-batch, since all wait for each other.

    Args:
        sampler: the indices of all.
        batch_size: rows of a micro-batch, of all processes together.
        rank, world_size: which process of how many, N.
    """

    def __init__(self, sampler: ResumableSampler, batch_size: int, rank: int, world_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in BatchSampler(self.sampler, self.batch_size, drop_last=False):
            yield rows[self.rank :: self.world_size] or [-1 - rows[0]]


class WithFillers(Dataset[Batch]):
    """A dataset in which -1 - i is the row i as a filler."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Batch:
        return self.dataset[index] if index >= 0 else filler(self.dataset[-1 - index])


def filler(rows: Batch) -> Batch:
    """The rows without a target: they take part, count nothing, and add 0 to every sum; see objective.py."""
    return {**rows, "labels": torch.full_like(rows["labels"], IGNORE_INDEX)}


def share(batch: Batch, ranks: Ranks) -> Batch:
    """The rows of a micro-batch that this process takes, as a ShareSampler would have shared them out."""
    rows = {name: values[ranks.rank :: ranks.world_size] for name, values in batch.items()}
    if len(rows["labels"]) > 0:
        return rows
    return filler({name: values[:1] for name, values in batch.items()})


def resumable_loader(
    dataset: Dataset[Batch],
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """A DataLoader over a ResumableSampler that leaves the global generators alone.

    Every ``iter(loader)`` draws a seed, and a resumed run begins its epoch once more than an uninterrupted
    one: hence a generator of the loader's own, whose state nothing depends on.

    Args:
        dataset: rows {"labels": …}, where -100 is no target.
        batch_size: rows of a micro-batch, of all processes together; >= world_size.
        rank, world_size: which process of how many; it loads its own rows alone.
    """
    if batch_size < world_size:
        raise ValueError(f"batch_size must be >= {world_size}, a row for each process, got {batch_size}")
    sampler = ResumableSampler(len(dataset), seed, shuffle)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    if world_size == 1:
        return DataLoader(dataset, batch_size, sampler=sampler, pin_memory=pin_memory, generator=generator)
    batches = ShareSampler(sampler, batch_size, rank, world_size)
    return DataLoader(WithFillers(dataset), batch_sampler=batches, pin_memory=pin_memory, generator=generator)


class DataCursor:
    """A place in a loader: it begins an epoch at the place, counts what is taken, and is saved and loaded.

    With a ResumableSampler the place is found at once. Any other loader (a list of batches, a shuffling
    DataLoader) is read again from the beginning of the epoch, with the generators as they were then: exact
    where the order is fixed when the iteration begins, at the cost of reading.

    Args:
        loader: iterated once an epoch.
        ranks: the processes that iterate; several must share each micro-batch out.

    Attributes:
        batches: micro-batches of the epoch under way that were taken.
        sampler: the ResumableSampler, or None.

    Raises:
        ValueError: the loader is not of this process of so many.
    """

    def __init__(self, loader: Iterable[Batch], ranks: Ranks | None = None) -> None:
        self.loader = loader
        self._batches_of = getattr(loader, "batch_sampler", None)
        sampler = getattr(self._batches_of, "sampler", None)
        self.sampler = sampler if isinstance(sampler, ResumableSampler) else None
        self._check_share(Ranks() if ranks is None else ranks)
        self.batches = 0
        self._start: dict[str, Any] | None = None  # of an epoch under way: the generators before it began
        self._generator: torch.Generator | None = getattr(loader, "generator", None)

    def iterate(self, epoch: int) -> Iterator[Batch]:
        """The micro-batches of the epoch that were not taken yet."""
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)
            return iter(self.loader)
        if self._start is None:
            self._start = {"rng_state": get_rng_state(), "generator": self._generator_state()}
            return iter(self.loader)
        now = get_rng_state()
        set_rng_state(self._start["rng_state"])
        self._set_generator(self._start["generator"])
        micro_batches = iter(self.loader)
        read = sum(1 for _ in islice(micro_batches, self.batches))
        set_rng_state(now)
        if read < self.batches:
            raise ValueError(
                f"train_loader gave {read} batches where the checkpoint had taken {self.batches}"
            )
        return micro_batches

    def advance(self, batches: int) -> None:
        """The training took so many micro-batches more."""
        self.batches += batches
        if self.sampler is not None:
            self.sampler.advance(batches * self._batches_of.batch_size)  # type: ignore[union-attr]

    def finish_epoch(self) -> None:
        """The next epoch begins with its first batch."""
        self.batches, self._start = 0, None
        if self.sampler is not None:
            self.sampler.set_epoch(self.sampler.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "sampler": None if self.sampler is None else self.sampler.state_dict(),
            "start": self._start,
            "generator": self._generator_state(),
        }

    def mismatch(self, state: dict[str, Any]) -> str | None:
        """Why `state` is of other data, or None."""
        if (self.sampler is None) != (state["sampler"] is None):
            return "train_loader has a ResumableSampler in only one of program and checkpoint"
        return None if self.sampler is None else self.sampler.mismatch(state["sampler"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if problem := self.mismatch(state):
            raise ValueError(problem)
        self.batches, self._start = state["batches"], state["start"]
        if self.sampler is not None:
            self.sampler.load_state_dict(state["sampler"])
        self._set_generator(state["generator"])

    def _check_share(self, ranks: Ranks) -> None:
        batches, found = self._batches_of, (0, 1)
        if isinstance(batches, ShareSampler):
            found = (batches.rank, batches.world_size)
        if found != (ranks.rank, ranks.world_size):
            raise ValueError(
                f"train_loader is for process {found[0]} of {found[1]}, and this is process {ranks.rank} of "
                f"{ranks.world_size}: all would train on the same rows; see resumable_loader(rank=, world_size=)"
            )

    def _generator_state(self) -> Tensor | None:
        return None if self._generator is None else self._generator.get_state()

    def _set_generator(self, state: Tensor | None) -> None:
        if self._generator is not None and state is not None:
            self._generator.set_state(state.cpu())


def windows(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of size micro-batches in turn; the last one holds what is left."""
    micro_batches = iter(loader)
    while window := list(islice(micro_batches, size)):
        yield window
