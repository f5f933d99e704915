"""The program that `resume.py` kills: a complete small training over the pieces of lesson 09.

Run it:  python -m testcases.torture.program FOLDER [--impl solutions] [--workers 2] [--save_every 1] [--kill N]

It goes on from FOLDER/checkpoint.pt if there is one, and at the end writes FOLDER/result.pt: all in which two
equal runs must agree. Everything that may leak is on: dropout, batch norm, shuffling, noise in `__getitem__`, draws
from `random`, `np.random` and torch in the loop, fp16 with a loss scale that overflows, accumulation with a
partial last window, evaluation in between.
"""

import argparse
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from course import lazy_dynamo
from course.implementation import Implementation, LessonCode
from course.registry import find_lesson
from testcases.torture.points import Points
from training.evaluation import eval_mode, preserved_rng

SAMPLES, BATCH_SIZE, WINDOW, EPOCHS = 17, 3, 4, 2  # 6 micro-batches an epoch: a window of 4, a window of 2
HISTORY = ("ids", "losses", "val_losses", "scales")


@dataclass
class Options:
    """How to run; the same for the reference, the killed and the resumed run, but for `kill`."""

    folder: Path
    impl: str = "solutions"
    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    save_every: int = 1  # micro-steps
    kill: int | None = None

    def arguments(self) -> list[str]:
        named = {name: value for name, value in vars(self).items() if name != "folder" and value is not None}
        return [
            str(self.folder),
            *(text for key, value in named.items() for text in (f"--{key}", str(value))),
        ]


class NoisyRows(Dataset):
    """Fixed rows, and noise that is drawn when a row is fetched."""

    def __init__(self, seed: int, sample_generator: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(SAMPLES, 6, generator=generator)
        self.y = torch.randint(3, (SAMPLES,), generator=generator)
        self.seed, self.sample_generator, self.epoch = seed, sample_generator, 0

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict:
        noise = torch.randn(6, generator=self.sample_generator(self.seed, self.epoch, index))
        return {"index": index, "x": self.x[index] + noise, "y": self.y[index]}


class Program:
    """Build everything, resume if there is something to resume from, train to the end."""

    def __init__(self, options: Options, points: Points) -> None:
        self.options, self.points, self.device = options, points, torch.device(options.device)
        self.lesson: LessonCode = Implementation(options.impl).lesson(find_lesson("09"))
        random.seed(options.seed), np.random.seed(options.seed), torch.manual_seed(options.seed)
        layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        self.model = nn.Sequential(*layers).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05, weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda update: 0.8**update)
        self.scaler = torch.amp.GradScaler(options.device, init_scale=2.0**18, growth_interval=1)  # type: ignore
        data = self.lesson.sampler
        self.sampler = data.ResumableSampler(SAMPLES, seed=options.seed)
        self.rows = NoisyRows(options.seed, data.sample_generator)
        self.loader = data.make_loader(self.rows, BATCH_SIZE, self.sampler, options.workers)
        self.val_loader = DataLoader(range(SAMPLES), batch_size=4, shuffle=True)  # type: ignore[arg-type]
        self.epoch = self.global_step = self.micro_step = 0
        self.ids: list[list[int]] = []
        self.losses: list[float] = []
        self.val_losses: list[float] = []
        self.scales: list[float] = []
        self.path = options.folder / "checkpoint.pt"
        if self.path.exists():
            state = self.lesson.checkpoint.load(self.path)
            vars(self).update(self.lesson.checkpoint.restore(state, *self.parts()))
        self.resumed_from = self.points.saved = len(self.ids)

    def parts(self) -> tuple:
        return self.model, self.optimizer, self.scheduler, self.scaler, self.sampler

    def train(self) -> None:
        for epoch in range(self.epoch, EPOCHS):
            self.epoch = self.rows.epoch = epoch
            self.sampler.set_epoch(epoch)
            self.model.train()
            for batch in self.loader:
                self.points.hit("batch fetched")
                self.micro_batch(batch)
                if self.micro_step == WINDOW or self.sampler.position == SAMPLES:
                    self.update()
                    self.evaluate()
                if len(self.ids) % self.options.save_every == 0:
                    self.save()

    def micro_batch(self, batch: dict) -> None:
        x, y = batch["x"].to(self.device), batch["y"].to(self.device)
        x = x * (1 + 0.1 * random.gauss(0, 1) + 0.1 * float(np.random.randn()))
        with torch.autocast(self.device.type, torch.float16):
            logits = self.model(x)  # (B, 3)
        loss = F.cross_entropy(logits.float(), y)
        self.scaler.scale(loss / WINDOW).backward()
        self.ids.append(batch["index"].tolist())
        self.losses.append(float(loss.detach()))
        self.sampler.advance(len(y))
        self.micro_step += 1
        self.points.hit("gradient added")

    def update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # a skipped update does not move the schedule
            self.scheduler.step()
        self.scales.append(self.scaler.get_scale())
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step, self.micro_step = self.global_step + 1, 0
        self.points.hit("updated")

    def evaluate(self) -> None:
        loss = torch.zeros((), device=self.device)
        with torch.no_grad(), eval_mode(self.model), preserved_rng(self.device):
            for rows in self.val_loader:
                x, y = self.rows.x[rows].to(self.device), self.rows.y[rows].to(self.device)
                loss += F.cross_entropy(self.model(x), y)
        self.val_losses.append(float(loss))
        self.points.hit("evaluated")

    def save(self) -> None:
        counters = {name: getattr(self, name) for name in ("epoch", "global_step", "micro_step")}
        history = {name: getattr(self, name) for name in HISTORY}
        state = self.lesson.checkpoint.capture(*self.parts(), **counters, **history)
        with self.points.inside_a_save():
            self.lesson.checkpoint.save(state, self.path)
        self.points.saved = len(self.ids)
        self.points.hit("saved")

    def result(self) -> dict:
        """All in which two equal runs agree, and what `resume.py` wants to know about this one."""
        names = dict(self.model.named_parameters())
        draws = (random.gauss(0, 1), float(np.random.randn()), float(torch.randn(())))
        same = {name: getattr(self, name) for name in HISTORY} | {
            "weights": dict(self.model.state_dict()),
            "gradients": {name: param.grad for name, param in names.items()},
            "moments": {name: dict(self.optimizer.state[param]) for name, param in names.items()},
            "lr": [group["lr"] for group in self.optimizer.param_groups],
            "scheduler": {"last_epoch": self.scheduler.last_epoch, "last_lr": self.scheduler.get_last_lr()},
            "scaler": self.scaler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "counters": [self.epoch, self.global_step, self.micro_step],
            "draws": [*draws, float(torch.rand((), device=self.device))],
        }
        about = {
            "resumed_from": self.resumed_from,
            "kinds": self.points.kinds,
            "acknowledged": self.points.acknowledged,
        }
        return {"same": same, **about}


def run(options: Options) -> None:
    """The whole program; ends with FOLDER/result.pt, or with SIGKILL."""
    torch.set_num_threads(1)
    program = Program(options, Points(options.kill))
    program.train()
    torch.save(program.result(), options.folder / "result.pt")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--impl", default="solutions")
    parser.add_argument("--device", default="cpu")
    for name, default in (("seed", 0), ("workers", 0), ("save_every", 1), ("kill", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = Options(**vars(parser.parse_args(argv)))
    lazy_dynamo.install()
    try:
        run(options)
    except NotImplementedError as todo:
        print(f"Not written yet: {todo}", file=sys.stderr)
        return 3
    sys.stdout.flush()
    return os.EX_OK if hasattr(os, "EX_OK") else 0


if __name__ == "__main__":
    sys.exit(main())
