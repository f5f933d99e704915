"""What training.Trainer costs over the same loop written by hand: CPU time of one update of a near-empty model.

Run:  python -m benchmarks.overhead [--updates 1000] [--rounds 5] [--check]

Both do the same work, and the end shows it: their weights are equal in every bit. One update is two micro-batches
out of the same DataLoader, their loss weighted by tokens, clip, fused AdamW, cosine. The model is so small that
what is left is Python: on a real model the same microseconds do not show.

The Trainer logs and saves as the default configuration of `pretrain` says: metrics.jsonl, system metrics and
progress lines every log_interval updates, an asynchronous checkpoint every save_interval. The loop by hand does
neither, and does not look for NaN: all of that is counted as overhead.

A round consists of short runs, of save_interval updates, that take turns: a machine that becomes slower does so for
all loops. The median of the rounds counts. CPU time, because the clock also sees what else the machine does.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from benchmarks.machine import facts
from training.data import TokenDataset
from training.execute import train_visibly
from training.logger import TrainerLogger
from training.optimizer import configure_optimizer
from training.sampler import resumable_loader
from training.scheduler import create_scheduler
from training.schema import PretrainConfig
from training.trainer import Trainer

TITLE = "CPU time of one update of a near-empty model: training.Trainer beside the same loop by hand."
BAR = 1.15
WINDOW, MAX_NORM = 2, 1.0
VOCAB, LENGTH, BATCH_SIZE = 32, 8, 4


@dataclass(frozen=True)
class Work:
    """What both loops get: built anew for each round, the same each time."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    loader: DataLoader[dict[str, Tensor]]
    updates: int


def make_work(updates: int) -> Work:
    """An embedding and a linear layer on random tokens; 100 windows of micro-batches an epoch, the last one short."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB))
    optimizer = configure_optimizer(model, "adamw", 1e-3, 0.1)
    scheduler = create_scheduler("cosine", optimizer, updates // 20, updates)
    num_windows = 100 * WINDOW * BATCH_SIZE - BATCH_SIZE
    tokens = torch.randint(VOCAB, (num_windows * LENGTH + 1,))
    loader = resumable_loader(TokenDataset(tokens, LENGTH), BATCH_SIZE)
    return Work(model, optimizer, scheduler, loader, updates)


def train_by_hand(work: Work) -> None:
    """The loop that one writes oneself."""
    model, optimizer, scheduler = work.model, work.optimizer, work.scheduler
    params = list(model.parameters())
    device = params[0].device
    sampler = work.loader.sampler
    update = epoch = 0
    model.train()
    while update < work.updates:
        sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches = iter(work.loader)
        while update < work.updates and (window := list(islice(batches, WINDOW))):
            num_tokens = sum(int((batch["labels"] != -100).sum()) for batch in window)
            for batch in window:
                input_ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)  # (B, T)
                logits = model(input_ids).flatten(0, 1)  # (B·T, V)
                loss = cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
                (loss / num_tokens).backward()
            clip_grad_norm_(params, MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            update += 1
        epoch += 1


def train_with_trainer(work: Work, folder: Path) -> None:
    """The same by training.Trainer, its log and its progress attached by the function that `pretrain` uses."""
    default = PretrainConfig().trainer
    trainer = Trainer(
        work.model,
        work.optimizer,
        work.loader,
        scheduler=work.scheduler,
        max_epochs=work.updates,
        max_steps=work.updates,
        grad_accum_steps=WINDOW,
        max_grad_norm=MAX_NORM,
        log_interval=default.log_interval,
        save_dir=folder,
        save_interval=default.save_interval,
        keep_last=default.keep_last,
        async_save=default.async_save,
    )
    with TrainerLogger(folder) as logger, redirect_stderr(io.StringIO()):  # where the progress lines go
        train_visibly(trainer, logger)


def train_bare(work: Work, folder: Path) -> None:
    """By training.Trainer with nothing attached: what is left is the loop itself."""
    options: dict[str, Any] = {
        "max_epochs": work.updates,
        "max_steps": work.updates,
        "log_interval": work.updates,
    }
    options |= {"grad_accum_steps": WINDOW, "max_grad_norm": MAX_NORM}
    Trainer(work.model, work.optimizer, work.loader, scheduler=work.scheduler, **options).train()


LOOPS: dict[str, Callable[[Work, Path], None]] = {
    "by hand": lambda work, folder: train_by_hand(work),
    "training.Trainer": train_with_trainer,
    "without log and files": train_bare,
}


@dataclass(frozen=True)
class Sample:
    """Microseconds an update: of the process's CPU time (its threads included), and of the clock."""

    cpu: float
    wall: float


def measure(loop: Callable[[Work, Path], None], updates: int) -> tuple[Sample, list[Tensor]]:
    """One round of one loop, and the weights that it ends with. Building and the folder are not in the time."""
    work = make_work(updates)
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        cpu, wall = time.process_time(), time.perf_counter()
        loop(work, Path(folder))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    per_update = 1e6 / updates
    return Sample(cpu * per_update, wall * per_update), [p.detach() for p in work.model.parameters()]


def benchmark(updates: int, rounds: int) -> dict[str, Sample]:
    """The medians of each loop. RuntimeError: two loops have not done the same work."""
    per_run = PretrainConfig().trainer.save_interval or updates
    runs = max(1, round(updates / per_run))
    samples: dict[str, list[Sample]] = {name: [] for name in LOOPS}
    for number in range(rounds + 1):
        found = one_round(runs, min(per_run, updates), reverse=number % 2 == 0)
        if number:  # the first one warms up: imports, allocator, caches
            for name, sample in found.items():
                samples[name].append(sample)
    return {
        name: Sample(statistics.median(s.cpu for s in of_loop), statistics.median(s.wall for s in of_loop))
        for name, of_loop in samples.items()
    }


def one_round(runs: int, updates: int, reverse: bool) -> dict[str, Sample]:
    """Each loop in turn, again and again: what slows the machine down for a second meets all of them."""
    samples: dict[str, list[Sample]] = {name: [] for name in LOOPS}
    wanted: list[Tensor] = []
    for _ in range(runs):
        for name in reversed(LOOPS) if reverse else LOOPS:
            sample, weights = measure(LOOPS[name], updates)
            wanted = wanted or weights
            if not all(torch.equal(a, b) for a, b in zip(weights, wanted, strict=True)):
                raise RuntimeError(f"{name} ends with other weights: the loops do not do the same work")
            samples[name].append(sample)
    return {
        name: Sample(statistics.mean(s.cpu for s in of_loop), statistics.mean(s.wall for s in of_loop))
        for name, of_loop in samples.items()
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=TITLE)
    parser.add_argument(
        "--updates", type=int, default=1000, help="of each loop in each round (default: 1000)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken (default: 5)")
    parser.add_argument("--check", action="store_true", help=f"exit code 1 if the ratio is above {BAR}")
    args = parser.parse_args(argv)
    if min(args.updates, args.rounds) < 1:
        parser.error(f"--updates and --rounds must be >= 1, got {args.updates} and {args.rounds}")
    torch.set_num_threads(1)
    print(f"{TITLE}\n{facts()}\n")
    medians = benchmark(args.updates, args.rounds)
    hand = medians["by hand"]
    print(f"{'one update':<22}  {'CPU':>9}  {'clock':>9}  {'CPU ratio':>9}")
    for name, sample in medians.items():
        print(f"{name:<22}  {sample.cpu:6.0f} µs  {sample.wall:6.0f} µs  {sample.cpu / hand.cpu:9.3f}")
    ratio = medians["training.Trainer"].cpu / hand.cpu
    print(
        f"\nmedians of {args.rounds} rounds of {args.updates} updates; all loops end with the same weights, bit for bit"
    )
    print(f"ratio {ratio:.3f}, bar {BAR}: {'met' if ratio <= BAR else 'MISSED'}")
    return 1 if args.check and ratio > BAR else 0


if __name__ == "__main__":
    sys.exit(main())
