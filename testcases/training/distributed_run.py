"""A small training that one process makes, or several; and how to start several, and to look at what they did.

Used by distributed_test.py, distributed_cli_test.py and distributed_demo.py: ``ranks = run_group(folder)``.
"""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from testcases.training.work import ROOT, TINY, rows, weights
from training.__main__ import main
from training.checkpoint import CheckpointManager
from training.distributed import Ranks
from training.logger import comparable
from training.losses import IGNORE_INDEX
from training.model import GPT, GPTConfig
from training.objective import NextToken
from training.optimizer import configure_optimizer
from training.sampler import resumable_loader
from training.scheduler import create_scheduler
from training.trainer import Trainer

# In micro-batches of 4 and windows of 3: 4 4 4 | 4 4 4 | 1, so one rank has nothing of the last one.
ROWS = 25
UPDATES_PER_EPOCH = 3


def launch(world_size: int, *command: str, store: dist.TCPStore | None = None) -> list[subprocess.Popen]:
    """The ranks of a group, as a launcher on one machine starts them: with a store of its own, or rank 0 has it."""
    if store is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    else:
        port = store.port
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    group["TORCHELASTIC_USE_AGENT_STORE"] = str(store is not None)
    ranks = []
    for rank in range(world_size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **group, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(exit code, stderr) of each rank."""
    said = [process.communicate(timeout=100)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def run_group(folder: Path) -> list[dict]:
    """What each of two ranks saw. The files of one process that they begin with are made here."""
    for place, text in (("", "0123456789 abcdef\n"), ("a", "0123456789\n"), ("b", "abcdefghij\n")):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "text.txt").write_text(text * 150)
    saving = ["--max_steps", "2", "--save_interval", "1", "--output_dir", str(folder / "saved")]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main(["pretrain", *TINY, "--data", str(folder / "text.txt"), *saving]) == 0
    build(Ranks(), folder / "one", max_steps=2).train()
    inside = build(Ranks(), folder / "inside")
    raise_at(inside, 4)
    inside.train()
    assert (inside.global_step, inside.progress.micro_step) == (1, 2)
    # The ranks meet several times: a store that outlives a meeting, as torchrun's does.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = launch(2, "-m", "testcases.training.distributed_ranks", str(folder), store=store)
    for rank, (code, said) in enumerate(ends(ranks)):
        assert code == 0, f"rank {rank}: {said}"
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def raise_at(trainer: Trainer, forward: int) -> None:
    """SIGTERM to this process as that forward begins, counted from 0."""
    count = iter(range(10**6))
    trainer.model.register_forward_pre_hook(
        lambda *_: signal.raise_signal(signal.SIGTERM) if next(count) == forward else None
    )


class UnequalRows(Dataset):
    """Rows with 1 to 8 targets; the first token is the number of the row."""

    def __init__(self, rows: int, seed: int = 1) -> None:
        self.tokens = torch.randint(0, 32, (rows, 9), generator=torch.Generator().manual_seed(seed))
        self.tokens[:, 0] = torch.arange(rows)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.tokens[index, 1:].clone()
        labels[: index % 8] = IGNORE_INDEX
        return {"input_ids": self.tokens[index, :-1], "labels": labels}


class Recorder(NextToken):
    """Next token; knows which rows it saw, multiplies the loss of chosen micro-steps, and fails at one."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.factors: dict[int, float] = {}
        self.calls, self.fails_at = 0, -1

    def sums(self, forward, batch):
        if self.calls == self.fails_at:
            raise ArithmeticError("this rank fails")
        sums = super().sums(forward, batch)
        if torch.is_grad_enabled():
            real = (batch["labels"] != IGNORE_INDEX).any(dim=1)
            self.rows += batch["input_ids"][real, 0].tolist()
            sums["loss"] = sums["loss"] * self.factors.get(self.calls, 1.0)
            self.calls += 1
        return sums


def build(ranks: Ranks, folder: Path | None = None, dropout: float = 0.0, **options) -> Trainer:
    """A GPT on ROWS unequal rows; two epochs, clipped, validated after every second update."""
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**shape, dropout=dropout))
    optimizer = configure_optimizer(model, "adamw", 1e-2, 0.1)
    scheduler = create_scheduler("cosine", optimizer, 2, 10)
    loader = resumable_loader(UnequalRows(ROWS), 4, seed=3, rank=ranks.rank, world_size=ranks.world_size)
    validation = list(resumable_loader(UnequalRows(13), 3, shuffle=False))
    settings = {"max_epochs": 2, "grad_accum_steps": 3, "max_grad_norm": 0.5, "log_interval": 2}
    settings |= {"eval_interval": 2, "save_dir": folder, "save_interval": 100, "objective": Recorder()}
    return Trainer(model, optimizer, loader, validation, scheduler, ranks=ranks, **{**settings, **options})


def observe(trainer: Trainer) -> dict:
    """Train; the gradients and the weights of every update, the rows of the log and of the data."""
    seen: dict = {"grads": [], "weights": []}

    def before(*_) -> None:
        seen["grads"].append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))

    def after(*_) -> None:
        seen["weights"].append(weights(trainer.model))

    handles = [
        trainer.optimizer.register_step_pre_hook(before),
        trainer.optimizer.register_step_post_hook(after),
    ]
    trainer.train()
    for handle in handles:
        handle.remove()
    seen["history"] = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in trainer.history]
    return {**seen, "rows": trainer.objective.rows, "stopped_by": trainer.stopped_by}


# ---- the command line

FLAGS = ["--max_steps", "60", "--log_interval", "2", "--eval_interval", "20", "--save_interval", "3"]
FLAGS += [
    "--grad_accum_steps",
    "3",
    "--dropout",
    "0.1",
    "--use_amp",
    "--amp_dtype",
    "fp16",
    "--timeout",
    "60",
]


def pretrain(folder: Path, *more: str) -> list[str]:
    """The arguments of a tiny run, with everything that makes it hard to go on with."""
    data = folder / "text.txt"
    data.write_text("The quick brown fox jumps over the lazy dog. 0123456789\n" * 55)
    return ["-m", "training", "pretrain", *TINY, *FLAGS, "--data", str(data), *more]


def wait_for_rows(output_dir: Path, number: int) -> None:
    """Until the log has so many rows: a place in the run, whatever the machine's speed."""
    metrics, deadline = output_dir / "metrics.jsonl", time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text().count("\n") >= number):
        assert time.monotonic() < deadline, f"{metrics} has no {number} rows yet"
        time.sleep(0.01)


def outcome(output_dir: Path) -> dict:
    """What two runs are compared by: the rows of the log, and the last checkpoint, in which times have no part."""
    path = CheckpointManager(output_dir).latest_valid().path
    assert path is not None
    state = torch.load(path)
    names = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict")
    return {
        "rows": [{k: repr(v) for k, v in row.items()} for row in comparable(rows(output_dir))],
        "sampler": state["data_state_dict"]["sampler"],
        "ranks": [
            (rank["loss_sum"], rank["rng_state"]["torch"]) for rank in state["ranks"]
        ],  # others are not seeded
        **{name: state[name] for name in (*names, "progress", "global_step")},
    }
