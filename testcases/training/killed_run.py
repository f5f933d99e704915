"""A small training that kills itself, and goes on: ``python -m testcases.training.killed_run KIND FOLDER N``.

Used by resume_test.py. A training is a sequence of events: a micro-step begins, a batch of an evaluation begins,
the optimizer steps. For N events spread over all of them, a forked child runs up to that event and sends itself
SIGKILL (or, every second time, asks itself to stop with SIGTERM); a second child goes on from the newest good
checkpoint in a fresh Trainer. What it ends with is compared bit for bit with the run that nobody disturbed.

The parent only forks and compares: a process that has run a backward pass must not be forked.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.checkpoint import CheckpointManager
from training.logger import TrainerLogger, comparable, read_metrics
from training.model import GPT, GPTConfig
from training.optimizer import configure_optimizer
from training.rng import get_rng_state
from training.sampler import resumable_loader
from training.scheduler import create_scheduler
from training.trainer import Trainer


class NoisyData(Dataset):
    """Rows of random tokens; reading one draws from every global generator, and puts the draws into the row."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randint(0, 32, (rows, 9), generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index].clone()
        row[0] = int(random.random() * 32)
        row[1] = int(np.random.randint(32))
        row[2] = int(torch.randint(0, 32, ()))
        return {"input_ids": row[:-1], "labels": row[1:]}


def build(kind: str, folder: Path) -> Trainer:
    """11 micro-batches an epoch in windows of 3 (the last has 2), 3 epochs; evaluated and saved inside epochs."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=32, block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.2))
    optimizer = configure_optimizer(model, "adamw", 1e-2, 0.1)
    scheduler = create_scheduler("cosine", optimizer, 3, 12)
    if (
        kind == "foreign"
    ):  # a loader that knows nothing of resuming; its order comes from the global generator
        loader = DataLoader(PlainData(43, 1), 4, shuffle=True)
    else:
        loader = resumable_loader(NoisyData(43, 1), 4, seed=5)
    trainer = Trainer(
        model,
        optimizer,
        loader,
        DataLoader(NoisyData(9, 2), 4),
        scheduler,
        max_epochs=3,
        grad_accum_steps=3,
        max_grad_norm=0.5,
        use_amp=kind == "fp16",
        amp_dtype="fp16",
        log_interval=3,
        save_dir=folder,
        save_interval=2,
        eval_interval=3,
        keep_last=2,
    )
    if kind == "fp16":  # grows into overflow again and again
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**21, growth_interval=2)
    return trainer


class PlainData(NoisyData):
    """The same rows without the noise."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index, :-1], "labels": self.rows[index, 1:]}


class Events:
    """Counts the events of a training; at the chosen one the process gets a signal from itself, and calls `then`."""

    def __init__(self, trainer: Trainer, at: int, signum: int, then: Callable[[], object]) -> None:
        self.count, self.at, self.signum, self.then = 0, at, signum, then
        trainer.model.register_forward_pre_hook(lambda *_: self.happen())
        trainer.optimizer.register_step_post_hook(lambda *_: self.happen())

    def happen(self) -> None:
        if self.count == self.at:
            os.kill(os.getpid(), self.signum)
            self.then()
        self.count += 1


def run(
    kind: str,
    folder: Path,
    at: int = -1,
    signum: int = signal.SIGKILL,
    then: Callable[[], object] = lambda: None,
) -> Events:
    """Begin or go on; at the end, final.pt holds everything."""
    torch.set_num_threads(1)
    trainer = build(kind, folder)
    found = CheckpointManager(folder).latest_valid().path
    if found is not None:
        trainer.load_checkpoint(found)
    step, rows = (trainer.global_step, trainer.progress.rows) if found else (None, None)
    events = Events(trainer, at, signum, then)
    with TrainerLogger(folder, resume_step=step, resume_rows=rows) as logger:
        trainer.run_log.on_log = lambda row: logger.log(row, row["global_step"])
        trainer.train()
    if trainer.stopped_by is None:
        final = {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.scheduler.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "rng": get_rng_state(),
            "progress": vars(trainer.progress),
            "best": torch.load(folder / "best_model.pt")["val_loss"],
        }
        torch.save(final, folder / "final.pt")
        (folder / "events").write_text(str(events.count))
    return events


def fork(*arguments) -> int:
    """Run in a child. Returns its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            run(*arguments)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(folder: Path) -> dict:
    rows = comparable(read_metrics(folder / "metrics.jsonl"))
    return {
        **torch.load(folder / "final.pt"),
        "rows": [{key: repr(v) for key, v in row.items()} for row in rows],
    }


def difference(got, want, name: str = "") -> str | None:
    """Where two outcomes differ, bit for bit; None if nowhere."""
    if isinstance(want, torch.Tensor):
        same = got.dtype == want.dtype and torch.equal(got, want)
        return None if same else name
    if isinstance(want, dict):
        if got.keys() != want.keys():
            return f"{name}: keys"
        pairs = [(key, got[key], want[key]) for key in want]
    elif isinstance(want, list | tuple):
        if len(got) != len(want):
            return f"{name}: {len(got)} instead of {len(want)}"
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(got, want, strict=True))]
    else:
        return None if repr(got) == repr(want) else f"{name}: {got} instead of {want}"
    return next((found for key, a, b in pairs if (found := difference(a, b, f"{name}.{key}"))), None)


def main(kind: str, folder: Path, trials: int) -> int:
    warm = torch.nn.Linear(1, 1)
    torch.optim.AdamW(warm.parameters())  # its slow imports, once for all children
    assert fork(kind, folder / "whole") == 0
    want = outcome(folder / "whole")
    events = int((folder / "whole" / "events").read_text())
    failures = 0
    for trial in range(trials):
        at = (trial * events) // trials
        signum = (signal.SIGKILL, signal.SIGTERM)[trial % 2]
        place = folder / f"at-{at}"
        first = fork(kind, place, at, signum)
        assert first == (-signal.SIGKILL if signum == signal.SIGKILL else 0), first
        assert not (place / "final.pt").exists(), "it was to be interrupted"
        second = fork(kind, place)
        found = difference(outcome(place), want) if second == 0 else f"exit status {second}"
        if found:
            failures += 1
            print(f"{kind}: {signum.name} at event {at} of {events}: {found}")
        shutil.rmtree(place)
    skipped = want["progress"]["skipped_steps"]
    print(f"{kind}: {trials} of {events} events, {skipped} skipped updates, {failures} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
