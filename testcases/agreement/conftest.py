"""The batches of the agreement tests, and a corpus cache that is not the user's."""

import pytest
import torch

from testcases.agreement.work import STEPS
from training.data import TokenDataset, load_text, make_loader, train_val_split


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_tests(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("cache"))
        patch.setenv("XDG_CACHE_HOME", folder)
        patch.setenv("LOCALAPPDATA", folder)
        yield


@pytest.fixture
def loaders():
    """loaders() -> (train, val): the same batches in the same order at every call, with a small last batch."""
    parts = train_val_split(load_text()[:40_000], val_fraction=0.1, block_size=32)

    def build():
        train, val = (TokenDataset(part, 32) for part in parts)
        train = torch.utils.data.Subset(train, range(8 * STEPS - 3))
        return make_loader(train, 8, shuffle=True, seed=3), make_loader(val, 16)

    return build
