"""Lesson 09: which sample comes next, and what is random about it.  Tasks 9.3, 9.4.

Holds:    sample_generator, make_loader, ResumableSampler
Test it:  pytest testcases/basic_test.py -k "sampler or loader or sample"

Symbols:  n number of samples · e epoch · i index of a sample in the dataset
          p position: samples of this epoch that the training has consumed, 0 ≤ p ≤ n

Paper: Bottou, Curtis, Nocedal, "Optimization Methods for Large-Scale Machine Learning", SIAM Review 60
(2018), https://arxiv.org/abs/1606.04838 (passes over shuffled data).
"""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def mix_seed(*numbers: int) -> int:
    """One seed out of several numbers: neighbours have nothing in common, in every process the same.

    A sum would not do: (seed 0, epoch 1) and (seed 1, epoch 0) would be the same run. Nor would shifting the
    numbers next to each other: torch's CPU generator looks at the lowest 32 bits of its seed only.

    Args:
        numbers: any ints.

    Returns:
        An int in [0, 2⁶³).
    """
    digest = hashlib.sha256(repr(tuple(int(number) for number in numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator for everything random about sample `index` in epoch `epoch`.

    A dataset calls it in `__getitem__` and draws its noise, crop or mask from it. Then the sample does not
    depend on which worker fetches it, nor on what that worker fetched before.

    Args:
        seed: of the run.
        epoch: e ≥ 0. Another epoch, another noise.
        index: i in [0, n).

    Returns:
        A fresh CPU generator. Its draws are a function of (seed, epoch, index): the same in each process,
        and others for each other triple. No global generator is read or moved.
    """
    # TODO 9.3 draw orders and samples from generators of their own
    raise NotImplementedError("task 9.3: draw orders and samples from generators of their own")


def make_loader(dataset: Dataset, batch_size: int, sampler: Sampler[int], num_workers: int = 0) -> DataLoader:
    """A `DataLoader` over `sampler`, the short last batch included, that leaves the global generators alone.

    Each `iter(loader)` draws a seed for the workers, also where there is none. It must come from a generator of
    the loader's own: a resumed run begins the epoch once more than an uninterrupted one.

    Args:
        dataset: what to load.
        batch_size: samples in a micro-batch, ≥ 1.
        sampler: gives the indices.
        num_workers: worker processes, ≥ 0. Workers are started anew each epoch, and so see the dataset as it is
            then: set its epoch before `iter(loader)`.
    """
    # TODO 9.3 draw orders and samples from generators of their own
    raise NotImplementedError("task 9.3: draw orders and samples from generators of their own")


class ResumableSampler(Sampler[int]):
    """Indices of an epoch in an order that a fresh process finds again, from the first unconsumed one on.

    Use:
        for epoch in range(first_epoch, max_epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                …                                 # forward, backward, perhaps an update
                sampler.advance(len(batch))       # consumed: its gradient is in the model
                …                                 # perhaps a checkpoint

    Args:
        data_source_length: n ≥ 1.
        seed: of the run.
        shuffle: a new order each epoch; False: 0, 1, …, n − 1 each time.

    Attributes:
        epoch: e, the epoch whose order is in force.
        position: p, samples of it that the training has consumed. Samples that were only fetched do not
            count: with workers the loader is several batches ahead, and those would never be trained on.

    Raises:
        ValueError: where data_source_length < 1.

    Differs from torch: `RandomSampler` draws its order from a generator that goes on from epoch to epoch, so
    epoch 7 can only be found by way of epochs 0 to 6. It has no position. `DistributedSampler` seeds each
    epoch by itself, as here, with seed + epoch.
    """

    def __init__(self, data_source_length: int, seed: int, shuffle: bool = True) -> None:
        if data_source_length < 1:
            raise ValueError(f"data_source_length must be >= 1, got {data_source_length}")
        self.data_source_length = data_source_length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """n, also in the middle of an epoch: the length of a run is computed from it."""
        return self.data_source_length

    def order(self) -> list[int]:
        """The indices of the whole epoch `self.epoch`, each once: a function of (n, seed, epoch, shuffle).

        No global generator is read or moved, and asking twice gives the same answer.
        """
        # TODO 9.3 draw orders and samples from generators of their own
        raise NotImplementedError("task 9.3: draw orders and samples from generators of their own")

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch: to its beginning, but stay where we are if it is the epoch that is under way.

        The second half is what a resumed program needs: its loop calls `set_epoch` with the epoch that
        `load_state_dict` has just brought back.

        Args:
            epoch: e ≥ 0.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        # TODO 9.4 hand out the samples that are left, counting what was consumed
        raise NotImplementedError("task 9.4: hand out the samples that are left, counting what was consumed")

    def __iter__(self) -> Iterator[int]:
        """The indices of this epoch that are not consumed yet, in order. Nothing, where all are.

        Iterating consumes nothing: whoever prefetches from here may be killed before it trains.
        """
        # TODO 9.4 hand out the samples that are left, counting what was consumed
        raise NotImplementedError("task 9.4: hand out the samples that are left, counting what was consumed")

    def advance(self, num_samples: int) -> None:
        """The training loop has consumed the next `num_samples` samples: p ← p + num_samples.

        Args:
            num_samples: ≥ 0.

        Raises:
            ValueError: where that is negative, or more than the epoch has left.
        """
        left = self.data_source_length - self.position
        if not 0 <= num_samples <= left:
            raise ValueError(f"num_samples must be in [0, {left}], got {num_samples}")
        # TODO 9.4 hand out the samples that are left, counting what was consumed
        raise NotImplementedError("task 9.4: hand out the samples that are left, counting what was consumed")

    def state_dict(self) -> dict:
        """{"epoch", "position", "data_source_length", "seed", "shuffle"}, plain values."""
        # TODO 9.4 hand out the samples that are left, counting what was consumed
        raise NotImplementedError("task 9.4: hand out the samples that are left, counting what was consumed")

    def load_state_dict(self, state: dict) -> None:
        """Go back to a state: the next index is the one that would have come next.

        Raises:
            ValueError: where the state is of another dataset length, seed or shuffle: its position would
                point into another order. Nothing is changed then.
        """
        for name in ("data_source_length", "seed", "shuffle"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name} of the sampler is {getattr(self, name)}, in the state {state[name]}"
                )
        # TODO 9.4 hand out the samples that are left, counting what was consumed
        raise NotImplementedError("task 9.4: hand out the samples that are left, counting what was consumed")
