"""The work on which solutions are compared: a small GPT of training/model.py that learns real text."""

import torch
import torch.nn.functional as F

from training.model import GPT, GPTConfig

STEPS = 12


def make_gpt(dropout: float = 0.0) -> GPT:
    torch.manual_seed(11)
    return GPT(GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=dropout))


def train(model: GPT, optimizer, loader, scheduler=None) -> list[float]:
    """A loop by hand. The dropout of two calls is the same."""
    torch.manual_seed(12)
    losses = []
    for batch in loader:
        loss = F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def assert_same_bits(ours: GPT, theirs: GPT) -> None:
    for (name, param), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(param, other), name
