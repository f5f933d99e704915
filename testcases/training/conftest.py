"""Fixtures of the production package's tests: a corpus cache that is not the user's, and a small model."""

from pathlib import Path

import pytest
import torch

from training.checkpoint import save_checkpoint
from training.model import GPT, GPTConfig
from training.scheduler import create_scheduler
from training.trainer import Trainer


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests: the corpus is extracted once a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache_of_the_tests(corpus_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(corpus_cache))
    monkeypatch.setenv("LOCALAPPDATA", str(corpus_cache))


@pytest.fixture
def tiny_gpt():
    """A builder of small GPTs: tiny_gpt(dropout=0.1)."""

    def build(**changes) -> GPT:
        shape = {"vocab_size": 32, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
        return GPT(GPTConfig(**{**shape, **changes}))

    return build


@pytest.fixture
def start_file(tmp_path: Path, tiny_gpt) -> Path:
    """A checkpoint with the weights of a TINY model."""
    torch.manual_seed(5)
    path = tmp_path / "start.pt"
    save_checkpoint({"model_state_dict": tiny_gpt(vocab_size=256, n_layer=1).state_dict()}, path)
    return path


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """About 3 kB of text in a file."""
    path = tmp_path / "small.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. 0123456789\n" * 55)
    return path


@pytest.fixture
def make_trainer(tiny_gpt):
    """make_trainer(train_loader, model=…, lr=…, **trainer's arguments): the same init every time."""

    def build(
        train_loader, val_loader=None, *, model=None, lr=0.1, momentum=0.0, dropout=0.0, **options
    ) -> Trainer:
        torch.manual_seed(0)
        model = tiny_gpt(dropout=dropout) if model is None else model
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        if options.get("scheduler"):
            options["scheduler"] = create_scheduler(options["scheduler"], optimizer, 2, 10)
        return Trainer(model, optimizer, train_loader, val_loader, **options)

    return build
