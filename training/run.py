"""What pretrain, sft and dpo share: a Stage in, a Run that is ready to be executed out.

Used by pretrain.py, sft.py and dpo.py: ``run = open_run(config, begin(config, meeting), stage)``. execute.py has the
rest.

Everything that can be wrong with the configuration, the data or the checkpoint is found before anything is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from training.checkpoint import CheckpointError, check_fits, save_checkpoint
from training.config import differences, to_dict, write_config
from training.data import make_loader
from training.distributed import Ranks
from training.logger import TrainerLogger
from training.meeting import Meeting, fingerprint, pick_device
from training.model import GPT, GPTConfig
from training.objective import NextToken, Objective
from training.optimizer import configure_optimizer
from training.resume import Start, find_start, identity, set_aside
from training.rng import seed_everything
from training.sampler import Batch, resumable_loader
from training.scheduler import create_scheduler
from training.schema import RUN, ModelConfig, PretrainConfig
from training.state import restore
from training.trainer import Trainer
from training.untrusted import is_finite

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """Where a run is computed and written, and where it begins: at nothing, or at a checkpoint."""

    device: torch.device
    output_dir: Path
    start: Start
    meeting: Meeting


@dataclass(frozen=True)
class Stage:
    """What a command has of its own.

    model: with the weights of the beginning, on the device; a checkpoint is put into it later.
    train_data, val_data: rows {"input_ids", "labels"}, all of one shape.
    summary: lines about the data, "title   text".
    report: called at the end; more lines, about what the model has learned.
    baseline: the loss to get under, and its name; None: there is none.
    facts: plain values about the beginning, kept in the "config" of every checkpoint.
    files: name → state, written into output_dir beside the checkpoints.
    """

    model: GPT
    train_data: Dataset[Batch]
    val_data: Dataset[Batch]
    summary: list[str]
    report: Callable[[Run], list[str]]
    objective: Objective = field(default_factory=NextToken)
    baseline: tuple[float, str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a run needs once everything has been checked. Of several processes rank 0 alone has a logger."""

    stage: Stage
    trainer: Trainer
    logger: TrainerLogger | None
    output_dir: Path
    summary: str


def begin(config: PretrainConfig, meeting: Meeting | None = None) -> Beginning:
    """Find the device and the checkpoint to go on from. Writes nothing. meeting: None: this process alone.

    Raises:
        ValueError: one of them is unusable.
    """
    torch.set_num_threads(config.trainer.threads)
    meeting = Meeting(Ranks()) if meeting is None else meeting
    if not meeting.ranks.is_main:
        logging.getLogger("training").setLevel(logging.ERROR)  # rank 0 warns for all
    output_dir = Path(config.trainer.output_dir)
    start = find_start(config.trainer.resume, config.trainer.reset_optimizer, output_dir)
    return Beginning(pick_device(config.trainer.device, meeting), output_dir, start, meeting)


def build_model(config: PretrainConfig, device: torch.device) -> GPT:
    """The model with the random weights of the seed. ValueError if it does not fit into the memory."""
    seed_everything(config.trainer.seed)
    try:
        return GPT(GPTConfig(**vars(config.model))).to(device)
    except RuntimeError as error:
        if "memory" not in str(error):  # the allocators of host and device have no other type for it
            raise
        raise ValueError(
            f"the model does not fit into the memory of {device}; choose a smaller n_embd or n_layer"
        ) from error


def load_weights(model: GPT, state: dict[str, Any], path: str | Path) -> None:
    """Put the weights of a checkpoint into the model, and nothing else of it.

    Args:
        state: what the checkpoint at this path holds.

    Raises:
        ValueError: they are inf or NaN, or do not fit, with the settings that differ where the checkpoint has its
            own. The model is as it was.
    """
    try:
        check_fits(state, model)
    except CheckpointError as error:
        theirs, ours = settings_of(state), vars(model.config)
        shape = [name for name in vars(ModelConfig()) if name not in ("block_size", "dropout")]
        other = [f"{name} {theirs[name]}" for name in shape if name in theirs and theirs[name] != ours[name]]
        reason = f"it has {', '.join(other)}" if other else str(error)
        raise ValueError(f"the weights of {path} do not fit this model: {reason}") from error
    if not is_finite(state):
        raise ValueError(f"{path} holds weights that are inf or NaN")
    model.load_state_dict(state["model_state_dict"])


def settings_of(state: dict[str, Any]) -> dict[str, Any]:
    """The "config" of a checkpoint; {} where it has none, or one of another program's."""
    config = state.get("config")
    return config if isinstance(config, dict) else {}


def open_run(config: PretrainConfig, beginning: Beginning, stage: Stage) -> Run:
    """Build the trainer, put the checkpoint into it, and once all processes mean the same, write to output_dir.

    Raises:
        ValueError, ImportError: something is unusable; nothing has been written.
        PeerLost: another process did not come.
    """
    start, meeting, output_dir = beginning.start, beginning.meeting, beginning.output_dir
    trainer = build_trainer(config, stage, beginning)
    notes = list(start.notes)
    if start.path is not None:
        lacks = restore(trainer, start.state, config.trainer.reset_optimizer)
        notes += [f"{start.path} has {note}" for note in lacks]
        changed = differences(settings_of(start.state), config)
        notes += [f"other settings than the checkpoint's: {', '.join(changed)}"] if changed else []
    if meeting.ranks.world_size > 1:
        data = {
            "training data": fingerprint(stage.train_data),
            "validation data": fingerprint(stage.val_data),
        }
        facts = {"configuration": to_dict(config, RUN), "beginning": stage.facts, **data}
        meeting.compare({"command": type(config).__name__, "checkpoint": identity(start), **facts})
    logger = open_output(config, trainer, start, output_dir, stage.files) if meeting.ranks.is_main else None
    meeting.begin(beginning.device)
    for note in notes:
        log.warning(note)
    lines = [f"model   {stage.model.num_parameters():,} parameters on {beginning.device}", *stage.summary]
    if meeting.ranks.world_size > 1:
        lines.append(f"ranks   {meeting.ranks.world_size} processes share each micro-batch out")
    if start.path is not None:
        lines.append(f"resume  {start.path}: {trainer.global_step} updates, {trainer.epoch} epochs")
    return Run(stage, trainer, logger, output_dir, "\n".join(lines))


def build_trainer(config: PretrainConfig, stage: Stage, beginning: Beginning) -> Trainer:
    """Loaders → optimizer → scheduler → trainer, from the configuration."""
    device, start, ranks = beginning.device, beginning.start, beginning.meeting.ranks
    run, batch_size, pin_memory = config.trainer, config.data.batch_size, device.type == "cuda"
    train_loader = resumable_loader(
        stage.train_data, batch_size, True, run.seed, pin_memory, ranks.rank, ranks.world_size
    )
    val_loader = make_loader(stage.val_data, 4 * batch_size, pin_memory=pin_memory)
    name, lr, weight_decay = config.optimizer.optimizer, config.optimizer.lr, config.optimizer.weight_decay
    # Language models take a shorter memory of the second moment than torch's default: one spike passes sooner.
    options = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.95)}
    optimizer = configure_optimizer(stage.model, name, lr, weight_decay, **options)
    # A schedule that was reset in the middle of a run covers what is left of it.
    began = start.state.get("progress", {}).get("schedule_start", 0)
    total_steps = max(1, run.max_steps - (start.global_step if run.reset_optimizer else began))
    warmup_steps = min(config.scheduler.warmup_steps or 0, total_steps)
    scheduler = create_scheduler(
        config.scheduler.scheduler, optimizer, warmup_steps, total_steps, config.scheduler.min_lr_ratio
    )
    return Trainer(
        stage.model,
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
        config={**to_dict(config), **stage.facts},
        objective=stage.objective,
        ranks=ranks,
    )


def open_output(
    config: PretrainConfig, trainer: Trainer, start: Start, output_dir: Path, files: dict[str, dict[str, Any]]
) -> TrainerLogger:
    """Make output_dir, its log, cut back to where the checkpoint was made, and the files beside it."""
    write_config(config, output_dir)
    for name, state in files.items():
        try:
            save_checkpoint(state, output_dir / name)
        except OSError as error:
            raise ValueError(f"Cannot write {output_dir / name}: {error.strerror}.") from error
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
