"""`python -m training pretrain`: text in; metrics, checkpoints, a picture of the run and a sample out.

Run: ``python -m training pretrain --output_dir runs/demo``; ``--help`` lists the flags.

Everything that can be wrong with the configuration, the text or the checkpoint is found before anything is written.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.config import differences, to_dict, write_config
from training.data import TokenDataset, bigram_loss, load_text, make_loader, train_val_split
from training.logger import TrainerLogger
from training.model import GPT, GPTConfig
from training.optimizer import configure_optimizer
from training.plot import draw_run
from training.progress import ProgressBar
from training.resume import Start, find_start, set_aside
from training.run_log import Row
from training.sampler import resumable_loader
from training.scheduler import create_scheduler
from training.schema import PretrainConfig
from training.state import restore
from training.system import SystemMetrics
from training.trainer import Trainer

PICTURE = "loss.png"
PROMPT = "The "

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a run needs once everything has been checked."""

    model: GPT
    trainer: Trainer
    logger: TrainerLogger
    baseline: float  # the bigram model's loss on the validation text
    output_dir: Path
    summary: str


def prepare(config: PretrainConfig) -> Run:
    """Check the text and the checkpoint, build everything, and only then write to output_dir.

    Raises:
        ValueError, ImportError: something is unusable; nothing has been written.
    """
    torch.set_num_threads(config.trainer.threads)
    device = pick_device(config.trainer.device)
    output_dir = Path(config.trainer.output_dir)
    start = find_start(config.trainer.resume, config.trainer.reset_optimizer, output_dir)
    block_size, val_fraction = config.model.block_size, config.data.val_fraction
    train_tokens, val_tokens = train_val_split(load_text(config.data.data), val_fraction, block_size)
    baseline = bigram_loss(train_tokens, val_tokens)
    torch.manual_seed(config.trainer.seed)
    model = GPT(GPTConfig(**vars(config.model))).to(device)
    trainer = build_trainer(config, model, device, train_tokens, val_tokens, start)
    notes = list(start.notes)
    if start.path is not None:
        lacks = restore(trainer, start.state, config.trainer.reset_optimizer)
        notes += [f"{start.path} has {note}" for note in lacks]
        changed = differences(start.state.get("config") or {}, config)
        notes += [f"other settings than the checkpoint's: {', '.join(changed)}"] if changed else []
    logger = open_output(config, trainer, start, output_dir)
    for note in notes:
        log.warning(note)
    summary = (
        f"model   {model.num_parameters():,} parameters on {device}\n"
        f"data    {len(train_tokens):,} bytes to train on, {len(val_tokens):,} to validate on\n"
        f"target  {baseline:.3f} nats a byte: the bigram model on the validation text"
    )
    if start.path is not None:
        summary += f"\nresume  {start.path}: {trainer.global_step} updates, {trainer.epoch} epochs"
    return Run(model, trainer, logger, baseline, output_dir, summary)


def build_trainer(
    config: PretrainConfig,
    model: GPT,
    device: torch.device,
    train_tokens: Tensor,
    val_tokens: Tensor,
    start: Start,
) -> Trainer:
    """Loaders → optimizer → scheduler → trainer, from the configuration."""
    run, block_size, batch_size = config.trainer, config.model.block_size, config.data.batch_size
    train_data, val_data = TokenDataset(train_tokens, block_size), TokenDataset(val_tokens, block_size)
    pin_memory = device.type == "cuda"
    train_loader = resumable_loader(train_data, batch_size, seed=run.seed, pin_memory=pin_memory)
    val_loader = make_loader(val_data, 4 * batch_size, pin_memory=pin_memory)
    name, lr, weight_decay = config.optimizer.optimizer, config.optimizer.lr, config.optimizer.weight_decay
    # Language models take a shorter memory of the second moment than torch's default: one spike passes sooner.
    options = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.95)}
    optimizer = configure_optimizer(model, name, lr, weight_decay, **options)
    # A schedule that was reset in the middle of a run covers what is left of it.
    began = start.state.get("progress", {}).get("schedule_start", 0)
    total_steps = max(1, run.max_steps - (start.global_step if run.reset_optimizer else began))
    warmup_steps = min(config.scheduler.warmup_steps or 0, total_steps)
    scheduler = create_scheduler(
        config.scheduler.scheduler, optimizer, warmup_steps, total_steps, config.scheduler.min_lr_ratio
    )
    return Trainer(
        model,
        optimizer,
        train_loader,
        val_loader,
        scheduler,
        device,
        max_epochs=run.max_steps,  # an epoch has at least one update, so max_steps decides
        grad_accum_steps=run.grad_accum_steps,
        max_grad_norm=run.max_grad_norm,
        use_amp=run.use_amp,
        amp_dtype=run.amp_dtype,
        log_interval=run.log_interval,
        save_dir=run.output_dir,
        save_interval=run.save_interval,
        eval_interval=run.eval_interval,
        max_steps=run.max_steps,
        patience=run.patience,
        max_skips=run.max_skips,
        keep_last=run.keep_last,
        async_save=run.async_save,
        config=to_dict(config),
    )


def open_output(config: PretrainConfig, trainer: Trainer, start: Start, output_dir: Path) -> TrainerLogger:
    """Make output_dir and its log, cut back to where the checkpoint was made."""
    write_config(config, output_dir)
    if folder := set_aside(start.superseded, output_dir):
        log.warning("%d later checkpoints are now in %s", len(start.superseded), folder)
    resumed = start.path is not None
    return TrainerLogger(
        output_dir,
        config.logger.use_wandb,
        config.logger.use_tensorboard,
        resume_step=trainer.global_step if resumed else None,
        resume_rows=trainer.progress.rows if "progress" in start.state else None,
    )


def execute(run: Run) -> int:
    """Train, and write what there is to see.

    Returns:
        The exit code: 0; 1 if the training broke down; 128 + number of the signal that ended it.
    """
    print(run.summary, flush=True)
    with run.logger:
        exit_code = train(run)
    written = [run.logger.path.name]
    if run.logger.num_rows:
        draw_run(run.logger.path, run.output_dir / PICTURE, run.baseline)
        written.append(PICTURE)
    report(run)
    print(f"wrote   {run.output_dir}: {', '.join(written)} and checkpoints")
    return exit_code


def train(run: Run) -> int:
    """Train with a progress bar, each row in the log as soon as it is there. Returns the exit code."""
    trainer, system = run.trainer, SystemMetrics(run.trainer.device)
    assert trainer.max_steps is not None
    with ProgressBar(trainer.max_steps, trainer.global_step, sys.stderr) as bar:

        def on_log(row: Row) -> None:
            measured = system() if "train_loss" in row else {}
            run.logger.log({**row, **measured}, row["global_step"])
            bar.update(row)

        trainer.run_log.on_log, trainer.run_log.on_sync = on_log, run.logger.sync
        try:
            trainer.train()
        except FloatingPointError as error:
            stopped, exit_code = f"Stopped: {error}", 1
        else:
            if trainer.stopped_by is None:
                return 0
            stopped = stop_message(trainer)
            exit_code = 128 + signal.Signals[trainer.stopped_by]
    print(stopped, file=sys.stderr)  # below the progress bar
    return exit_code


def stop_message(trainer: Trainer) -> str:
    """What a signal ended, and how to go on: after a failed save (a full disk) not from here."""
    assert trainer.checkpoints is not None
    progress, newest = trainer.progress, trainer.checkpoints.latest_valid().path
    inside = f", {progress.micro_step} micro-batches into the next" if progress.micro_step else ""
    place = (
        f"Stopped by {trainer.stopped_by} after {trainer.global_step} of {trainer.max_steps} updates{inside}."
    )
    if newest is not None and newest.name == f"epoch_{trainer.epoch}_step_{trainer.global_step}.pt":
        return f"{place} Everything is in {newest}: --resume auto goes on from here."
    return f"{place} THIS COULD NOT BE SAVED: --resume auto goes on from {newest or 'the beginning'}."


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta tensors, too, end here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here; try --device cpu") from error
    return device


def report(run: Run) -> None:
    """The end of the run in a few lines, and what the model has to say."""
    progress = run.trainer.progress
    if progress.skipped_steps:
        print(f"skipped {progress.skipped_steps} updates: their gradient was not finite")
    if progress.validated_step >= 0:
        print(
            f"result  {progress.val_loss:.3f} nats a byte: validation loss after {progress.validated_step} updates"
        )
        if math.isfinite(progress.val_loss):
            prompt = torch.tensor([list(PROMPT.encode())], device=run.trainer.device)
            sample = run.model.generate(prompt, 160, temperature=0.7)[0]
            print(f"sample  {bytes(sample.tolist()).decode('utf-8', 'replace')!r}")
