"""Lesson 08: the log of a run: JSON lines always, TensorBoard and W&B on request.  Task 8.5.

Holds:    TrainerLogger, as_number, gradient_mean, memory_metrics, read_metrics
Run it:   python -m solutions.stage02_pretrain.lesson08_checkpoint_trainer.run
Test it:  pytest testcases/basic_test.py -k logger

One line of metrics.jsonl is one JSON object:  {"step": 20, "loss": 1.25, "lr": 0.001, "grad_norm": "nan"}
JSON has no NaN and no infinity. They are written as the strings "nan", "inf" and "-inf", which float() reads.

Format: RFC 8259, https://www.rfc-editor.org/rfc/rfc8259 (section 6: numbers).
"""

import importlib
import json
import math
import numbers
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import write_atomically


def gradient_mean(params: Iterable[Tensor]) -> Tensor:
    """Mean of all gradient elements, each with its sign.

    Mathematics: Σ g / n, over all n elements of all gradients together. It is not a mean of the means of
    tensors. A parameter whose gradient is None does not count.

    Args:
        params: parameters; at least one of them has a gradient.

    Returns:
        A tensor without dimensions, on the device: nothing is read back.
    """
    # TODO 8.5 log what happened, and nothing else
    raise NotImplementedError("task 8.5: log what happened, and nothing else")


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Peak memory in MiB: of this process, and of `device` where it is a CUDA device."""
    metrics = {}
    if sys.platform != "win32":
        import resource  # POSIX only

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        metrics["cpu_memory_mib"] = peak / (2**20 if sys.platform == "darwin" else 2**10)
    if device.type == "cuda":
        metrics["gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return metrics


def as_number(name: str, value: Any) -> int | float:
    """A metric as a plain number.

    Args:
        name: the metric's name, for the message.
        value: an int, a float, a numpy scalar, or a tensor with one element. NaN and infinity are numbers.

    Returns:
        An int for integers, a float for the rest.

    Raises:
        ValueError: for everything else (None, text, a tensor with several elements …), with the name.
    """
    # TODO 8.5 log what happened, and nothing else
    raise NotImplementedError("task 8.5: log what happened, and nothing else")


class TrainerLogger:
    """Writes metrics to log_dir/metrics.jsonl; to TensorBoard and Weights & Biases in addition, if asked.

    A line is with the operating system when `log` returns: a process killed a moment later has not lost it.

    An existing file is continued. A half line at its end, from a process killed while it wrote, is dropped.

    Args:
        log_dir: the folder; it is made.
        use_wandb: also log to W&B, below log_dir. Offline, so it needs no account and no network, unless the
            environment variable WANDB_MODE says otherwise.
        use_tensorboard: also write TensorBoard event files into log_dir.

    Attributes:
        path: metrics.jsonl.
        last_step: the step of the last line, −1 if there is none. `log` does not go behind it.

    Raises:
        ImportError: the package that is asked for is not installed. It names the command that installs it.
        ValueError: metrics.jsonl exists and is not such a log.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "runs",
        use_wandb: bool = False,
        use_tensorboard: bool = False,
    ) -> None:
        self.log_dir = Path(log_dir)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.path = self.log_dir / "metrics.jsonl"
        self._tensorboard = self._wandb = self._file = None
        lines = complete_lines(self.path)
        self.last_step = lines[-1][0] if lines else -1
        self._write_lines([line for _, line in lines])
        if use_tensorboard:
            _require("tensorboard", "use_tensorboard")
            self._tensorboard = _summary_writer(self.log_dir, None)
        if use_wandb:
            wandb = _require("wandb", "use_wandb")
            mode = os.environ.get("WANDB_MODE", "offline")
            self._wandb = wandb.init(project="trainer-from-scratch", dir=self.log_dir, mode=mode)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append one line: the step, then the metrics in their order.

        All or nothing: a call that is refused has written nothing, nowhere.

        Args:
            metrics: names to numbers (see `as_number`), at least one. "step" is not a name for a metric.
            step: the updates made so far, an int ≥ 0. It may repeat, but not go back: use `resume` for that.

        Raises:
            ValueError: for metrics or a step other than these, with the name or the number.
        """
        # TODO 8.5 log what happened, and nothing else
        # `values`: the metrics as plain numbers. `row`: what json.dumps writes as one line
        raise NotImplementedError("task 8.5: log what happened, and nothing else")
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def resume(self, step: int) -> None:
        """Go back to where a checkpoint was made: drop the lines behind `step`, and go on from there.

        So the log of a resumed run reads like that of a run that was never killed. (W&B cannot take back what
        it has; it ignores steps until the run is past them again.)

        Args:
            step: the checkpoint's step. Lines *of* this step stay.
        """
        # TODO 8.5 log what happened, and nothing else
        # self._write_lines(lines) replaces the file; complete_lines(self.path) gives (step, line) pairs
        raise NotImplementedError("task 8.5: log what happened, and nothing else")
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = _summary_writer(self.log_dir, step + 1)

    def close(self) -> None:
        """Close all files. Afterwards nothing can be logged."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> "TrainerLogger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_lines(self, lines: list[str]) -> None:
        """Make the file consist of these lines, and open it behind them."""
        if self._file is not None:
            self._file.close()
        text = "".join(line + "\n" for line in lines)
        if (self.path.read_text(encoding="utf-8") if self.path.exists() else "") != text:
            write_atomically(self.path, text.encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (open until close())


def complete_lines(path: Path) -> list[tuple[int, str]]:
    """(step, line) of every line that ends with a newline; empty without a file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            lines.append((json.loads(line)["step"], line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no line of a log: {line[:60]!r}") from error
    return lines


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, its texts "nan", "inf" and "-inf" as floats again."""
    rows = [json.loads(line) for _, line in complete_lines(Path(path))]
    return [{key: float(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows]


def _require(package: str, option: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{option}=True needs a package: pip install {package}") from error


def _summary_writer(log_dir: Path, purge_step: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # costs half a second: only where it is wanted

    return SummaryWriter(str(log_dir), purge_step=purge_step)
