"""A run that logs what depends on its steps alone, for the tests of the log."""

from pathlib import Path

from training.logger import TrainerLogger


def train(log_dir: Path, steps: range, **options) -> Path:
    """Log a loss for each step, and a validation for each tenth; the values depend on the step alone."""
    with TrainerLogger(log_dir, **options) as logger:
        for step in steps:
            logger.log({"train_loss": 1 / step, "lr": 0.5}, step)
            if step % 10 == 0:
                logger.log({"val_loss": 2 / step}, step)
    return logger.path
