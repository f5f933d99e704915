"""A real training that goes on while its disk fails: the same weights as on a good disk, and a later save works.

``train(folder, on_update)`` trains the small model of killed_run.py to the end and returns what it became. Only in
a child process: who has run a backward pass must not be forked.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from testcases.training.checkpoint_faults import litter
from testcases.training.killed_run import build
from training.checkpoint import CheckpointManager
from training.logger import TrainerLogger, comparable, read_metrics
from training.rng import get_rng_state
from training.trainer import Trainer


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    outcome: a digest of weights, moments, counters, random generators and logged rows. warnings: from the log.
    problem: what the folder lacks once the disk is well again, in a sentence.
    """

    outcome: str
    warnings: list[str]
    problem: str | None


def train(
    folder: Path,
    on_update: Callable[[int], None] = lambda number: None,
    at_the_end: Callable[[], None] = lambda: None,
) -> Trained:
    """Train to the end with asynchronous saves.

    Args:
        on_update: called with the number of the update before it is made, from 1.
        at_the_end: called before the folder is looked at: the disk gets well.
    """
    trainer = build("plain", folder)
    count = [0]

    def counted(*_: object) -> None:
        count[0] += 1
        on_update(count[0])

    trainer.optimizer.register_step_pre_hook(counted)
    heard = _Heard()
    logging.getLogger("training").addHandler(heard)
    with TrainerLogger(folder) as logger:
        trainer.run_log.on_log = lambda row: logger.log(row, row["global_step"])
        trainer.run_log.on_sync = logger.sync
        trainer.train()
        at_the_end()
    trainer.run_log.on_sync = None  # the log is closed
    return Trained(_outcome(trainer), heard.sentences, _problem(trainer, folder))


def _outcome(trainer: Trainer) -> str:
    digest = hashlib.sha256()
    for tensor in trainer.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for state in trainer.optimizer.state.values():
        for name in sorted(state):
            digest.update(state[name].numpy().tobytes())
    digest.update(repr((vars(trainer.progress), comparable(trainer.history))).encode())
    digest.update(get_rng_state()["torch"].numpy().tobytes())
    return digest.hexdigest()


def _problem(trainer: Trainer, folder: Path) -> str | None:
    trainer.save_checkpoint()
    assert trainer.checkpoints is not None
    if sentences := trainer.checkpoints.wait():
        return f"next save: {sentences[0]}"
    found = CheckpointManager(folder).latest_valid()
    if found.path is None or found.passed_over:
        return f"lost: {found.path} is the newest, passed over are {found.passed_over}"
    state = torch.load(found.path)
    if state["global_step"] != trainer.global_step:
        return f"lost: {found.path.name} is the newest after {trainer.global_step} updates"
    if names := litter(folder):
        return f"litter: {', '.join(names)}"
    rows = comparable(read_metrics(folder / "metrics.jsonl"))
    return None if rows == comparable(trainer.history) else "lost: metrics.jsonl lacks rows"


class _Heard(logging.Handler):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())
