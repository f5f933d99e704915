"""`python -m training pretrain`: text in; a language model out, and a sample of what it writes.

Run: ``python -m training pretrain --output_dir runs/demo``; ``--help`` lists the flags. run.py has the rest.
"""

from __future__ import annotations

import math

import torch

from training.data import TokenDataset, bigram_loss, load_text, train_val_split
from training.meeting import Meeting
from training.run import Run, Stage, begin, build_model, open_run
from training.schema import PretrainConfig

PROMPT = "The "


def prepare(config: PretrainConfig, meeting: Meeting | None = None) -> Run:
    """Check the checkpoint and the text, build everything, and only then write to output_dir.

    Raises:
        ValueError, ImportError: something is unusable; nothing has been written.
    """
    beginning, block_size = begin(config, meeting), config.model.block_size
    train_tokens, val_tokens = train_val_split(
        load_text(config.data.data), config.data.val_fraction, block_size
    )
    baseline = bigram_loss(train_tokens, val_tokens)
    stage = Stage(
        model=build_model(config, beginning.device),
        train_data=TokenDataset(train_tokens, block_size),
        val_data=TokenDataset(val_tokens, block_size),
        summary=[
            f"data    {len(train_tokens):,} bytes to train on, {len(val_tokens):,} to validate on",
            f"target  {baseline:.3f} nats a byte: the bigram model on the validation text",
        ],
        report=report,
        baseline=(baseline, "bigram model"),
    )
    return open_run(config, beginning, stage)


def report(run: Run) -> list[str]:
    """The validation loss, and what the model has to say."""
    progress = run.trainer.progress
    lines = [
        f"result  {progress.val_loss:.3f} nats a byte: validation loss after {progress.validated_step} updates"
    ]
    if math.isfinite(progress.val_loss):
        prompt = torch.tensor([list(PROMPT.encode())], device=run.trainer.device)
        sample = run.stage.model.generate(prompt, 160, temperature=0.7)[0]
        lines.append(f"sample  {bytes(sample.tolist()).decode('utf-8', 'replace')!r}")
    return lines
