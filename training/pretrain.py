"""`python -m training pretrain`: text in; metrics, a picture of the loss and a sample out.

Run: ``python -m training pretrain --output_dir runs/demo``; ``--help`` lists the flags.

Everything that can be wrong with the flags or the text is found before anything is written.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.data import TokenDataset, bigram_loss, load_text, make_loader, train_val_split
from training.model import GPT, GPTConfig
from training.optimizer import configure_optimizer
from training.scheduler import create_scheduler
from training.trainer import Row, Trainer

METRICS = "metrics.jsonl"
PICTURE = "loss.png"
PROMPT = "The "


@dataclass(frozen=True)
class Run:
    """What a run needs once everything has been checked."""

    model: GPT
    trainer: Trainer
    baseline: float  # the bigram model's loss on the validation text
    output_dir: Path
    summary: str


def prepare(args: argparse.Namespace) -> Run:
    """Check the flags and the text, build everything, and make output_dir, in this order.

    Raises:
        ValueError: something is unusable; nothing has been written.
    """
    if args.threads < 1:
        raise ValueError(f"threads must be >= 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    train_tokens, val_tokens = train_val_split(load_text(args.data), args.val_fraction, args.block_size)
    baseline = bigram_loss(train_tokens, val_tokens)
    torch.manual_seed(args.seed)
    shape = {name: getattr(args, name) for name in ("block_size", "n_layer", "n_head", "n_embd", "dropout")}
    model = GPT(GPTConfig(**shape)).to(device)
    trainer = build_trainer(args, model, device, train_tokens, val_tokens)
    output_dir = Path(args.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / METRICS).open("a").close()
    except OSError as error:
        raise ValueError(
            f"Cannot write to {output_dir}: {error.strerror}; choose another --output_dir."
        ) from error
    summary = (
        f"model   {model.num_parameters():,} parameters on {device}\n"
        f"data    {len(train_tokens):,} bytes to train on, {len(val_tokens):,} to validate on\n"
        f"target  {baseline:.3f} nats a byte: the bigram model on the validation text"
    )
    return Run(model, trainer, baseline, output_dir, summary)


def execute(run: Run) -> int:
    """Train, and write what there is to see. Returns the exit code: 0, 1 if it broke down, 130 after Ctrl-C."""
    print(run.summary, flush=True)
    exit_code = train(run.trainer, run.output_dir / METRICS)
    if run.trainer.history:
        plot_losses(run.trainer.history, run.baseline, run.output_dir / PICTURE)
    report(run)
    print(f"wrote   {run.output_dir / METRICS}" + (f" and {PICTURE}" if run.trainer.history else ""))
    return exit_code


def build_trainer(
    args: argparse.Namespace, model: GPT, device: torch.device, train_tokens: Tensor, val_tokens: Tensor
) -> Trainer:
    """Loaders → optimizer → scheduler → trainer, from the flags."""
    train_data, val_data = (
        TokenDataset(train_tokens, args.block_size),
        TokenDataset(val_tokens, args.block_size),
    )
    pin_memory = device.type == "cuda"
    train_loader = make_loader(
        train_data, args.batch_size, shuffle=True, seed=args.seed, pin_memory=pin_memory
    )
    val_loader = make_loader(val_data, 4 * args.batch_size, pin_memory=pin_memory)
    # Language models take a shorter memory of the second moment than torch's default: one spike passes sooner.
    options = {"momentum": 0.9} if args.optimizer.lower() == "sgd" else {"betas": (0.9, 0.95)}
    optimizer = configure_optimizer(model, args.optimizer, args.lr, args.weight_decay, **options)
    warmup_steps = min(args.warmup_steps, args.max_steps)
    scheduler = create_scheduler(args.scheduler, optimizer, warmup_steps, args.max_steps, args.min_lr_ratio)
    return Trainer(
        model,
        optimizer,
        train_loader,
        val_loader,
        scheduler,
        device,
        max_epochs=args.max_steps,  # an epoch has at least one update, so max_steps decides
        grad_accum_steps=args.grad_accum_steps,
        max_grad_norm=args.max_grad_norm,
        log_interval=args.log_interval,
        eval_interval=args.eval_interval,
        max_steps=args.max_steps,
    )


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


def train(trainer: Trainer, metrics_path: Path) -> int:
    """Train with a progress bar, each row a line of JSON as soon as it is there. Returns the exit code."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    with metrics_path.open("w", encoding="utf-8", buffering=1) as file, progress:  # line-buffered
        task = progress.add_task("train", total=trainer.max_steps)

        def on_log(row: Row) -> None:
            print(json.dumps(row), file=file)
            loss = " ".join(f"{key} {row[key]:.3f}" for key in ("train_loss", "val_loss") if key in row)
            progress.update(task, completed=row["global_step"], description=loss)

        trainer.on_log = on_log
        try:
            trainer.train()
        except KeyboardInterrupt:
            stopped, exit_code = (
                f"Stopped by Ctrl-C after {trainer.global_step} of {trainer.max_steps} updates.",
                130,
            )
        except FloatingPointError as error:
            stopped, exit_code = f"Stopped: {error}", 1
        else:
            return 0
    print(stopped, file=sys.stderr)  # below the progress bar
    return exit_code


def plot_losses(history: list[Row], baseline: float, path: Path) -> None:
    """Training and validation loss over updates, and the bigram model as a line to get under."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label, style in (("train_loss", "training", "-"), ("val_loss", "validation", "o-")):
        rows = [row for row in history if key in row]
        axes.plot([row["global_step"] for row in rows], [row[key] for row in rows], style, label=label, ms=4)
    axes.axhline(baseline, color="grey", ls="--", label="bigram model")
    axes.set(xlabel="updates", ylabel="loss (nats a byte)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(run: Run) -> None:
    """The end of the run in a few lines, and what the model has to say."""
    trainer = run.trainer
    if trainer.skipped_steps:
        print(f"skipped {trainer.skipped_steps} updates: their gradient was not finite")
    validations = [row for row in trainer.history if "val_loss" in row]
    if validations:
        loss, step = validations[-1]["val_loss"], validations[-1]["global_step"]
        print(f"result  {loss:.3f} nats a byte: validation loss after {step} updates")
        if math.isfinite(loss):
            prompt = torch.tensor([list(PROMPT.encode())], device=trainer.device)
            sample = run.model.generate(prompt, 160, temperature=0.7)[0]
            print(f"sample  {bytes(sample.tolist()).decode('utf-8', 'replace')!r}")
