"""Work for trainers: batches of random tokens, a tiny run of the command line, and what is asked of them."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from training.logger import read_metrics

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 32
TINY = ["--block_size=16", "--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_size=4", "--device=cpu"]


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


def rows(output_dir: Path) -> list[dict]:
    return read_metrics(output_dir / "metrics.jsonl")


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "training", "pretrain", *TINY, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
