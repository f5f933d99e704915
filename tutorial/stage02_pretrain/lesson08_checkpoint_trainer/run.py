"""Photograph the disk at every moment of a save, flip bits, and go on from a checkpoint.

Run it:  python -m solutions.stage02_pretrain.lesson08_checkpoint_trainer.run  (or tutorial.…, with your code)

Whatever lies on the disk before an operation is what a kill at that moment leaves behind. So a save is run
once, with a photograph before each of its operations, and then every photograph is tried.
"""

import builtins
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import CheckpointError, describe_checkpoint, load_checkpoint, save_checkpoint
from .logger import TrainerLogger, read_metrics
from .trainer import Trainer

Photograph = dict[str, bytes]


class WatchedFile:
    """A file whose writes happen in two halves, with a photograph between them."""

    def __init__(self, file: Any, click: Callable[[], None]) -> None:
        self.file, self.click = file, click

    def write(self, data: bytes) -> int:
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.click()
            self.file.write(half)
            self.file.flush()
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


@contextmanager
def photographs(folder: Path) -> Iterator[list[Photograph]]:
    """Inside the block, what lies in `folder` is noted before every open, write, fsync and rename."""
    album: list[Photograph] = []
    true_open, true_fsync, true_replace = builtins.open, os.fsync, os.replace

    def click() -> None:
        album.append({path.name: path.read_bytes() for path in folder.iterdir()})

    def watched_open(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode != "wb":
            return true_open(path, mode, *rest, **options)
        click()
        return WatchedFile(true_open(path, mode, *rest, **options), click)

    def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            click()
            return operation(*arguments)

        return run

    builtins.open, os.fsync, os.replace = watched_open, watched(true_fsync), watched(true_replace)
    try:
        yield album
    finally:
        builtins.open, os.fsync, os.replace = true_open, true_fsync, true_replace


def write_in_place(state: dict, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)


def kill_table(folder: Path) -> None:
    """For two ways to save over an older checkpoint: what can be loaded after a kill."""
    plain = {"map_location": "cpu", "weights_only": True}
    print("killed at every moment of a save     old loads   new loads   nothing loads")
    for name, save, load in (
        ("torch.save over the old file", write_in_place, lambda path: torch.load(path, **plain)),
        ("save_checkpoint", save_checkpoint, load_checkpoint),
    ):
        home = folder / name
        home.mkdir()
        path = home / "model.pt"
        save({"step": 1, "weights": torch.zeros(64)}, path)
        with photographs(home) as album:
            save({"step": 2, "weights": torch.ones(64)}, path)
        counts = {1: 0, 2: 0, None: 0}
        for photograph in album:
            for old in home.iterdir():
                old.unlink()
            for file_name, data in photograph.items():
                (home / file_name).write_bytes(data)
            try:
                counts[load(path)["step"]] += 1
            except Exception:
                counts[None] += 1
        cells = ["yes" if counts[step] else "-" for step in (1, 2)]
        print(f"{name:<36} {cells[0]:<11} {cells[1]:<11} {'never' if not counts[None] else 'MOST TIMES'}")


def flip_table(path: Path) -> None:
    """One bit of a checkpoint flipped, at 200 places."""
    save_checkpoint({"step": 1, "weights": torch.zeros(20_000)}, path)
    whole = path.read_bytes()
    wrong = refused = 0
    for place in range(2000, 80_000, 390):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        wrong += bool(torch.load(path, weights_only=True)["weights"].count_nonzero())
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    print("\none bit flipped, at 200 places       torch.load   load_checkpoint")
    print(f"loaded, and the weights are wrong    {wrong:<12} {200 - refused}")
    print(f"refused                              {200 - wrong:<12} {refused}")


class Regression(nn.Module):
    """loss = model(batch): the mean squared error of a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch  # (B, 4), (B, 1)
        return nn.functional.mse_loss(self.net(x), y)


def build(model: nn.Module, folder: Path) -> Trainer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)
    config = {"accumulation_steps": 2, "max_grad_norm": 1.0, "log_interval": 3, "save_interval": 5}
    config |= {"save_dir": str(folder / "checkpoints"), "keep_last": 2}
    return Trainer(model, optimizer, scheduler, config, logger=TrainerLogger(folder))


def resume_demo(folder: Path) -> None:
    """Four epochs; and two, then a new process's objects, and two more."""
    torch.manual_seed(0)
    model = Regression()
    x = torch.randn(5, 8, 4)
    batches = [(part, part.sum(1, keepdim=True)) for part in x]  # 5 micro-batches: 2 + 2 + 1 make 3 updates
    whole = build(copy.deepcopy(model), folder / "whole")
    for _ in range(4):
        whole.train_epoch(batches)

    first = build(copy.deepcopy(model), folder / "resumed")
    for _ in range(2):
        first.train_epoch(batches)
    second = build(Regression(), folder / "resumed")
    latest = second.manager.latest_valid()
    epoch, step = second.load_checkpoint(latest)
    print(f"\nkilled after two epochs, resumed from {latest.name}: epoch {epoch}, step {step}")
    for _ in range(2):
        second.train_epoch(batches)
    same = all(torch.equal(a, b) for a, b in zip(whole.params, second.params, strict=True))
    print("step   loss, never killed   loss, killed and resumed")
    logs = [read_metrics(folder / name / "metrics.jsonl") for name in ("whole", "resumed")]
    for ours, theirs in zip(*logs, strict=True):
        print(f"{ours['step']:>4}   {ours['loss']:<20.3f} {theirs['loss']:.3f}")
    print(f"weights the same bit for bit: {same}")

    about = describe_checkpoint(second.manager.latest_valid())
    print(
        f"\nwithout the model: epoch {about['epoch']}, step {about['step']}, {about['parameters']} parameters"
    )
    print("kept:", ", ".join(path.name for path in second.manager.checkpoints()))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kill_table(Path(folder))
        flip_table(Path(folder) / "flipped.pt")
        resume_demo(Path(folder))


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
