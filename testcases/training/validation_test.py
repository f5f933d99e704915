"""Tests of Trainer.validate(), with training/losses.py and training/evaluation.py."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from testcases.training.work import VOCAB, make_batches
from training.data import TokenDataset
from training.evaluation import preserved_rng
from training.losses import count_tokens, token_loss
from training.trainer import Trainer


class Constant(nn.Module):
    """Logits that give label 0 a chosen loss a token: the input id selects it."""

    def __init__(self, losses: dict[int, float]) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.table = nn.Parameter(torch.zeros(VOCAB, 2), requires_grad=False)
        for token, loss in losses.items():
            self.table[token, 1] = math.log(math.expm1(loss))  # −ln softmax([0, x])[0] = ln(1 + eˣ)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table[input_ids] + self.offset


# ---- the loss


def test_token_loss_sums_over_targets_in_float32():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, -100, 4], [1, 2, -100]])
    log_probs = logits.log_softmax(dim=-1)
    want = -(log_probs[0, 0, 0] + log_probs[0, 2, 4] + log_probs[1, 0, 1] + log_probs[1, 1, 2])
    # another order of the four additions
    torch.testing.assert_close(token_loss(logits, labels), want, atol=1e-6, rtol=0)
    assert count_tokens(labels) == 4
    assert token_loss(logits.bfloat16(), labels).dtype == torch.float32
    assert token_loss(logits, torch.full((2, 3), -100)).item() == 0.0


# ---- validation


def test_validation_weighs_tokens_and_not_batches():
    model = Constant({1: 1.0, 2: 9.0})
    labels = torch.zeros(1, 10, dtype=torch.int64)
    few = {"input_ids": torch.full((1, 10), 2), "labels": labels.masked_fill(torch.arange(10) > 0, -100)}
    many = {"input_ids": torch.full((1, 10), 1), "labels": labels.masked_fill(torch.arange(10) > 8, -100)}
    trainer = Trainer(model, torch.optim.SGD([model.offset], lr=0.1), [many], [few, many])
    metrics = trainer.validate()
    assert metrics["loss"] == pytest.approx((1 * 9.0 + 9 * 1.0) / 10, rel=1e-5)  # 1.8; a mean of means says 5
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


@pytest.mark.parametrize(("loss", "perplexity"), [(math.nan, math.nan), (800.0, math.inf)])
def test_perplexity_of_a_broken_model_is_nan_or_inf(loss, perplexity):
    model = Constant({})
    model.table[1, 1] = loss
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.int64), "labels": torch.zeros(1, 4, dtype=torch.int64)}
    trainer = Trainer(model, torch.optim.SGD([model.offset], lr=0.1), [batch], [batch])
    assert trainer.validate()["perplexity"] == pytest.approx(perplexity, nan_ok=True)


def test_validation_leaves_modes_gradients_and_generators_as_they_were(make_trainer):
    class RandomData(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            random.random(), np.random.rand(), torch.rand(1)
            return {key: value[0] for key, value in make_batches(1)[0].items()}

    loader = torch.utils.data.DataLoader(
        RandomData(), shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    trainer = make_trainer(make_batches(2), loader, dropout=0.5)
    trainer.model.blocks[0].eval()  # somebody froze this block
    modes = [module.training for module in trainer.model.modules()]
    for param in trainer.model.parameters():
        param.grad = torch.full_like(param, 2.0)

    def states():
        return (
            random.getstate(),
            repr(np.random.get_state()),
            torch.get_rng_state(),
            loader.generator.get_state(),
        )

    before = states()
    first = trainer.validate()
    for old, new in zip(before, states(), strict=True):
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new
    assert [module.training for module in trainer.model.modules()] == modes
    assert all((param.grad == 2.0).all() for param in trainer.model.parameters())
    assert trainer.validate() == first
    batch = make_batches(1)[0]
    trainer.model.eval()
    with torch.no_grad():
        want = token_loss(trainer.model(batch["input_ids"]), batch["labels"]).item() / 8
    assert first["loss"] == pytest.approx(want, rel=1e-6), "no dropout in it"


def test_generators_are_put_back_after_an_error():
    state, python_state = torch.get_rng_state(), random.getstate()

    def draw_and_fail() -> None:
        with preserved_rng(torch.device("cpu")):
            torch.rand(1)
            random.random()
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


def test_training_does_not_depend_on_how_often_it_is_validated(make_trainer):
    data = TokenDataset(torch.randint(0, VOCAB, (200,), generator=torch.Generator().manual_seed(0)), 8)

    def losses(eval_interval: int) -> list[float]:
        train_loader = torch.utils.data.DataLoader(
            data, batch_size=4, shuffle=True
        )  # on the global generator
        val_loader = torch.utils.data.DataLoader(data, batch_size=4)
        trainer = make_trainer(
            train_loader, val_loader, dropout=0.3, log_interval=1, eval_interval=eval_interval, max_epochs=2
        )
        return [row["train_loss"] for row in trainer.train() if "train_loss" in row]

    assert losses(1) == losses(100)


def test_frozen_submodule_stays_in_eval_mode_and_a_model_in_eval_mode_is_woken(make_trainer):
    trainer = make_trainer(make_batches(2), make_batches(2))
    trainer.model.blocks[0].eval()
    trainer.train()
    assert trainer.model.training
    assert not trainer.model.blocks[0].training
    asleep = make_trainer(make_batches(2), model=trainer.model.eval())
    asleep.train()
    assert asleep.model.training


def test_validation_without_loader_or_target_is_refused(make_trainer):
    with pytest.raises(ValueError, match="needs a val_loader"):
        make_trainer(make_batches(1)).validate()
    with pytest.raises(ValueError, match="val_loader has no target"):
        make_trainer(make_batches(1), make_batches(1, ignored=(8,))).validate()
