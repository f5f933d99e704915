"""A prepared run, to its end: progress bar, log, picture, report, and the exit code.

Used by __main__.py: ``exit_code = execute(run)``; run.py prepares it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from training.distributed import PeerLost
from training.logger import TrainerLogger
from training.plot import draw_run
from training.progress import ProgressBar
from training.run import Run
from training.run_log import Row
from training.system import SystemMetrics
from training.trainer import Trainer

PICTURE = "loss.png"


def execute(run: Run) -> int:
    """Train, and write what there is to see.

    Returns:
        The exit code: 0; 1 if the training broke down, or its end could not be saved; 128 + number of the signal that
        ended it.
    """
    try:
        exit_code = lead(run, run.logger) if run.logger is not None else train(run.trainer)[0]
        run.trainer.ranks.close()
    except PeerLost as error:
        print(f"Stopped: {error}. Start all processes again with --resume auto.", file=sys.stderr)
        return 1
    return exit_code


def lead(run: Run, logger: TrainerLogger) -> int:
    """Train, as the process that writes and prints. Returns the exit code."""
    print(run.summary, flush=True)
    with logger:
        exit_code = train_visibly(run.trainer, logger)
    written = [logger.path.name]
    if logger.num_rows:
        draw_run(logger.path, run.output_dir / PICTURE, run.stage.baseline)
        written.append(PICTURE)
    skipped = run.trainer.progress.skipped_steps
    if skipped:
        print(f"skipped {skipped} updates: their gradient was not finite")
    if run.trainer.progress.validated_step >= 0:
        for line in run.stage.report(run):
            print(line)
    print(f"wrote   {run.output_dir}: {', '.join(written)} and checkpoints")
    return exit_code


def train_visibly(trainer: Trainer, logger: TrainerLogger) -> int:
    """Train with a progress bar, each row in the log as soon as it is there. Returns the exit code."""
    system = SystemMetrics(trainer.device)
    assert trainer.max_steps is not None
    with ProgressBar(trainer.max_steps, trainer.global_step, sys.stderr) as bar:

        def on_log(row: Row) -> None:
            measured = system() if "train_loss" in row else {}
            logger.log({**row, **measured}, row["global_step"])
            bar.update(row)

        trainer.run_log.on_log, trainer.run_log.on_sync = on_log, logger.sync
        exit_code, stopped = train(trainer)
    if stopped:
        print(stopped, file=sys.stderr)  # below the progress bar
    return exit_code


def train(trainer: Trainer) -> tuple[int, str]:
    """Train. Returns the exit code, and what to say if that is not 0."""
    try:
        trainer.train()
    except FloatingPointError as error:
        return 1, f"Stopped: {error}"
    if trainer.stopped_by is None:
        if trainer.checkpoints is None or not trainer.history or saved_here(trainer)[0]:
            return 0, ""
        goes_on = saved_here(trainer)[1] or "the beginning"
        return 1, f"Trained to the end, but THE END COULD NOT BE SAVED: --resume auto goes on from {goes_on}."
    return 128 + signal.Signals[trainer.stopped_by], stop_message(trainer)


def stop_message(trainer: Trainer) -> str:
    """What a signal ended, and how to go on: after a failed save (a full disk) not from here."""
    if trainer.checkpoints is None:
        return ""  # rank 0 has saved, and says so
    micro_step = trainer.progress.micro_step
    inside = f", {micro_step} micro-batches into the next" if micro_step else ""
    place = (
        f"Stopped by {trainer.stopped_by} after {trainer.global_step} of {trainer.max_steps} updates{inside}."
    )
    saved, newest = saved_here(trainer)
    if saved:
        return f"{place} Everything is in {newest}: --resume auto goes on from here."
    return f"{place} THIS COULD NOT BE SAVED: --resume auto goes on from {newest or 'the beginning'}."


def saved_here(trainer: Trainer) -> tuple[bool, Path | None]:
    """Whether there is a good checkpoint of where the trainer is; and the newest good one."""
    assert trainer.checkpoints is not None
    newest = trainer.checkpoints.latest_valid().path
    name = f"epoch_{trainer.epoch}_step_{trainer.global_step}.pt"
    return newest is not None and newest.name == name, newest
