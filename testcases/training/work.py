"""Work for trainers: batches of random tokens, and what is asked of them in several test files."""

import torch
from torch import nn

VOCAB = 32


def make_batches(
    *sizes: int, length: int = 8, ignored: tuple[int, ...] = ()
) -> list[dict[str, torch.Tensor]]:
    """One batch of each size; in batch i the first ignored[i] labels of every row are no target."""
    generator = torch.Generator().manual_seed(7)
    batches = []
    for i, size in enumerate(sizes):
        ids = torch.randint(0, VOCAB, (size, length + 1), generator=generator)
        labels = ids[:, 1:].clone()
        if ignored:
            labels[:, : ignored[i]] = -100
        batches.append({"input_ids": ids[:, :-1], "labels": labels})
    return batches


def concatenate(batches):
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([param.detach().flatten() for param in model.parameters()])
