"""Tests of training/rng.py and training/sampler.py: the random generators, and the place in the data."""

import random

import numpy as np
import pytest
import torch

from training.data import TokenDataset
from training.rng import get_rng_state, set_rng_state
from training.sampler import DataCursor, ResumableSampler, resumable_loader


def test_every_generator_goes_on_with_the_same_draws_also_the_second_of_a_pair(tmp_path):
    random.gauss(0, 1), np.random.randn()  # each keeps a number back
    torch.save(get_rng_state(), tmp_path / "rng.pt")

    def draws():
        return (
            random.gauss(0, 1),
            random.random(),
            np.random.randn(),
            np.random.rand(),
            torch.rand(2).tolist(),
        )

    want = draws()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draws() == want
    with pytest.raises(ValueError, match="the RNG state lacks numpy, cuda"):
        set_rng_state({"python": None, "torch": None})


def test_order_is_a_function_of_seed_and_epoch_and_neighbours_have_nothing_in_common():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ResumableSampler(50, seed)
        sampler.set_epoch(epoch)
        return sampler.order()

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(each) for each in orders}) == 9
    assert all(sorted(each) == list(range(50)) for each in orders)
    assert order(1, 2) == order(1, 2)
    assert ResumableSampler(3, shuffle=False).order() == [0, 1, 2]


@pytest.mark.parametrize("loader_kind", ["own", "list", "shuffling"])
def test_cursor_gives_every_sample_once_an_epoch_wherever_it_was_interrupted(loader_kind):
    data = TokenDataset(torch.arange(24), 1)  # 23 windows, batches of 4

    def build() -> DataCursor:
        if loader_kind == "own":
            return DataCursor(resumable_loader(data, 4, seed=3))
        loader = torch.utils.data.DataLoader(
            data, 4, shuffle=True, generator=torch.Generator().manual_seed(1)
        )
        return DataCursor(list(loader) if loader_kind == "list" else loader)

    def two_epochs(stop: int) -> list[int]:
        """12 batches, with a fresh cursor after `stop` of them."""
        cursor, taken = build(), []
        for number in range(12):
            if number == stop:
                state, cursor = cursor.state_dict(), build()
                cursor.load_state_dict(state)
            if number % 6 == 0 or number == stop:
                stream = cursor.iterate(number // 6)
            taken += next(stream)["input_ids"].flatten().tolist()
            cursor.advance(1)
            if number == 5:
                cursor.finish_epoch()
        return taken

    want = two_epochs(-1)
    assert sorted(want[:23]) == sorted(want[23:]) == list(range(23))
    assert (want[:23] == want[23:]) == (loader_kind == "list"), "each epoch has its own order"
    for stop in range(12):
        assert two_epochs(stop) == want, stop


def test_place_in_other_data_is_refused():
    state = DataCursor(resumable_loader(TokenDataset(torch.arange(24), 1), 4, seed=3)).state_dict()
    for other, message in (
        ((25, 3), "num_samples of the data is 24, in"),
        ((24, 4), "seed of the data is 4"),
    ):
        loader = resumable_loader(TokenDataset(torch.arange(other[0]), 1), 4, seed=other[1])
        with pytest.raises(ValueError, match=message):
            DataCursor(loader).load_state_dict(state)
