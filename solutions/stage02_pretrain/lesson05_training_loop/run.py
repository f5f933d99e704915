"""Train a small GPT on real text with the trainer of this lesson, and draw its loss.

Run it:  python -m solutions.stage02_pretrain.lesson05_training_loop.run     (or tutorial.…, with your code)
Options: --max_steps, --max_seconds, --data PATH, --device, --output_dir

The text is the documentation that ships inside Python, a token is a byte, and the model to beat is the
bigram model: for each byte, how often every other byte followed it.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.data import DataLoader

from training.data import DataError, TokenDataset, bigram_loss, load_text, make_loader, train_val_split
from training.model import GPT, GPTConfig

from .trainer import Batch, TrainerFromScratch

CONFIG = GPTConfig(block_size=64, n_layer=2, n_head=4, n_embd=96)
BATCH_SIZE = 32
PEAK_LR = 4e-3
WARMUP_STEPS = 50
STEPS_PER_EPOCH = 100  # what this demonstration calls an epoch: so often it validates


class Stretch:
    """A loader that gives the next `STEPS_PER_EPOCH` batches of an endless one, and stops when time is up."""

    def __init__(self, loader: DataLoader, max_steps: int, deadline: float) -> None:
        self.batches = self._endless(loader)
        self.left = max_steps
        self.deadline = deadline

    @staticmethod
    def _endless(loader: DataLoader) -> Iterator[Batch]:
        while True:
            yield from loader

    @property
    def finished(self) -> bool:
        return self.left == 0 or time.monotonic() > self.deadline

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(min(STEPS_PER_EPOCH, self.left)):
            self.left -= 1
            yield next(self.batches)
            if time.monotonic() > self.deadline:
                return


def warmup_cosine(max_steps: int):
    """The factor on the learning rate at update 0, 1, …: up to 1 in WARMUP_STEPS updates, then down to 0."""

    def factor(step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        progress = (step - WARMUP_STEPS) / max(1, max_steps - WARMUP_STEPS)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def draw(history: list[dict], bigram: float, path: Path) -> None:
    """Loss over updates: training, validation, and the line of the bigram model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train = [(row["global_step"], row["train_loss"]) for row in history if "train_loss" in row]
    val = [(row["global_step"], row["val_loss"]) for row in history if "val_loss" in row]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*train, strict=True), linewidth=1, label="training")
    axes.plot(*zip(*val, strict=True), "o-", markersize=4, label="validation")
    axes.axhline(bigram, linestyle="--", color="gray", label=f"bigram model, {bigram:.2f}")
    axes.set(xlabel="update (global_step)", ylabel="loss, nats a byte", ylim=(1.0, 4.0))
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description="Train a small GPT with the trainer of lesson 05.")
    parser.add_argument("--max_steps", type=int, default=900, help="updates (default: %(default)s)")
    parser.add_argument("--max_seconds", type=float, default=math.inf, help="stop after so many seconds")
    parser.add_argument("--data", default=None, metavar="PATH", help="a text file or a folder of them")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/lesson05"), help="(default: %(default)s)"
    )
    args = parser.parse_args()
    if args.max_steps < 1:
        parser.error(f"--max_steps must be >= 1, got {args.max_steps}")
    if not args.max_seconds > 0:
        parser.error(f"--max_seconds must be > 0, got {args.max_seconds}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: there is no CUDA device here")
    return parser, args


def train(trainer: TrainerFromScratch, stretch: Stretch, bar: Progress) -> None:
    """Stretch after stretch: `train()` goes on where it stopped, so a loop around it is all it takes."""
    task = bar.add_task("training", total=stretch.left, loss="–")

    def show(row: dict) -> None:
        if "train_loss" in row:
            bar.update(task, completed=row["global_step"], loss=f"{row['train_loss']:.2f}")
        else:
            bar.print(
                f"update {row['global_step']:>5}   training {row['epoch_loss']:.2f}   "
                f"validation {row['val_loss']:.2f}   perplexity {row['val_perplexity']:.1f}"
            )

    trainer.on_log = show
    while not stretch.finished:
        trainer.max_epochs = trainer.epoch + 1
        trainer.train()


def main() -> None:
    parser, args = parse_args()
    try:
        train_tokens, val_tokens = train_val_split(load_text(args.data), 0.05, CONFIG.block_size)
    except DataError as error:
        parser.error(str(error))
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    torch.manual_seed(0)
    bigram = bigram_loss(train_tokens, val_tokens)
    train_loader = make_loader(TokenDataset(train_tokens, CONFIG.block_size), BATCH_SIZE, shuffle=True)
    val_loader = make_loader(TokenDataset(val_tokens, CONFIG.block_size), 4 * BATCH_SIZE)

    model = GPT(CONFIG).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(args.max_steps))
    stretch = Stretch(train_loader, args.max_steps, deadline=time.monotonic() + args.max_seconds)
    trainer = TrainerFromScratch(model, optimizer, stretch, val_loader, args.device, scheduler=scheduler)

    console = Console(highlight=False)
    console.print(
        f"text {len(train_tokens) + len(val_tokens):,} bytes   "
        f"model {model.num_parameters() / 1e6:.2f} M parameters   bigram model {bigram:.2f} nats a byte"
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]}"), console=console, transient=True) as bar:
        train(trainer, stretch, bar)

    last = trainer.history[-1]
    prompt = torch.tensor([list(b"The ")], device=args.device)
    text = bytes(model.generate(prompt, 120, temperature=0.7)[0].tolist()).decode(errors="replace")
    picture = args.output_dir / "loss.png"
    draw(trainer.history, bigram, picture)
    console.print(f"\nIt writes: {' '.join(text.split())}\n", markup=False)
    print(
        f"training loss    {last['epoch_loss']:.2f} nats a byte (mean of the last {STEPS_PER_EPOCH} updates)"
    )
    print(f"validation loss  {last['val_loss']:.2f} nats a byte, perplexity {last['val_perplexity']:.1f}")
    print(f"bigram model     {bigram:.2f} nats a byte, perplexity {math.exp(bigram):.1f} (same text)")
    print(f"picture          {picture}")


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
