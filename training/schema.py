"""The configuration of a run as frozen dataclasses: every field with its default, its help and its range.

Used by config.py, which fills them from YAML files and flags. Nothing here imports torch.

A command's configuration is made of sections (`config.optimizer.lr`). Field names are unique across sections:
a field is ``--lr`` on the command line, ``lr:`` in a YAML file and "lr" in the dict that a checkpoint holds.
"""

from __future__ import annotations

import difflib
import math
import reprlib
import types
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

RUN = "run"  # changes what is computed: part of the digest
PLACE = "place"  # where the run is written and how it is shown: two ranks, or a resumed run, may differ
CALL = "call"  # about this call, not about the run: not part of the configuration that is written down

OPTIMIZER_NAMES = ("adamw", "adam", "sgd")
HUGE = 2**64  # no field has larger integers, and those of some thousand digits cannot even be printed
LONGEST_TEXT = 4096  # characters, the longest path
MOST_WEIGHTS, MOST_LAYERS, MOST_THREADS = 10**11, 1000, 1024  # more is a typing error
SCHEDULER_NAMES = ("constant", "linear", "cosine", "onecycle")


class ConfigError(ValueError):
    """A field cannot have this value; `name` says which field."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def checked(name: str, value: Any, hint: Any, limits: dict[str, Any]) -> Any:
    """The value in the field's own type (an int as a float where one is meant), or ConfigError."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if type(value) is int and abs(value) > HUGE:
        raise ConfigError(name, f"{name} must be {describe(hint)}, got {shown(value)}")
    if kind is float and type(value) is int:
        value = float(value)  # so that 1 and 1.0 are one configuration
    if type(value) is not kind:  # not isinstance: True is no number here
        raise ConfigError(name, f"{name} must be {describe(hint)}, got {shown(value)}")
    if kind is str and (not value or len(value) > LONGEST_TEXT or not is_one_line(value)):
        raise ConfigError(name, f"{name} must be a line of printable text, got {shown(value)}")
    if "choices" in limits:
        value = value.lower()
        if value not in limits["choices"]:
            raise ConfigError(name, f"unknown {name} {value!r}{suggest(value, limits['choices'])}")
    elif kind in (int, float) and not within(value, limits):
        raise ConfigError(name, f"{name} must be {describe_range(kind, limits)}, got {shown(value)}")
    return value


def is_one_line(text: str) -> bool:
    """Whether a text has no line ends, NULs or other control characters, and no halves of characters."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def shown(value: Any) -> str:
    """A value in a message: its repr, cut short. Lists of lists may be longer written out than any memory."""
    if type(value) is int and abs(value) > HUGE:
        return f"an integer of {value.bit_length()} bits"
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = 60
    writer.maxlevel = 2
    return writer.repr(value)


def within(value: float, limits: dict[str, Any]) -> bool:
    return (
        math.isfinite(value)
        and ("least" not in limits or value >= limits["least"])
        and ("above" not in limits or value > limits["above"])
        and ("below" not in limits or value < limits["below"])
        and ("most" not in limits or value <= limits["most"])
    )


def describe(hint: Any) -> str:
    """A type in words: "an integer", "a number or null"."""
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(words[kind] for kind in kinds)


def describe_range(kind: type, limits: dict[str, Any]) -> str:
    """A range in symbols: ">= 1", "finite and >= 0", "in [0, 1)"."""
    lower = f">= {limits['least']}" if "least" in limits else f"> {limits['above']}"
    if "below" in limits or "most" in limits:
        opening = f"[{limits['least']}" if "least" in limits else f"({limits['above']}"
        closing = f"{limits['below']})" if "below" in limits else f"{limits['most']}]"
        return f"in {opening}, {closing}"
    return lower if kind is int else f"finite and {lower}"


def suggest(name: str, known: Iterable[str]) -> str:
    """What to append to "unknown …": the nearest known name; all of them where few are known; else nothing."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name.lower(), known, n=1)
    if nearest:
        return f": did you mean {nearest[0]!r}?"
    return f": known are {known}" if len(known) <= 5 else ""


def option(default: Any, help: str, scope: str = RUN, **limits: Any) -> Any:
    """A field with its default and its help; limits: least (>=), above (>), below (<), most (<=), choices."""
    return field(default=default, metadata={"help": help, "scope": scope, **limits})


class Section:
    """Base of the sections: a value of the wrong type, or out of range, is refused when the section is made."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for spec in fields(self):  # type: ignore[arg-type]
            value = checked(spec.name, getattr(self, spec.name), hints[spec.name], dict(spec.metadata))
            object.__setattr__(self, spec.name, value)  # frozen: this is the only place that sets a field


@dataclass(frozen=True)
class ModelConfig(Section):
    """The shape of the GPT, as training.model.GPTConfig; the vocabulary is the 256 bytes."""

    block_size: int = option(64, "longest sequence in bytes", least=1)
    n_layer: int = option(3, "blocks", least=1)
    n_head: int = option(4, "attention heads, each n_embd / n_head wide: an even number", least=1)
    n_embd: int = option(96, "width", least=2)
    dropout: float = option(0.0, "probability", least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head != 0:
            raise ConfigError(
                "n_head", f"n_embd must be divisible by n_head, got {self.n_embd} and {self.n_head}"
            )
        if (self.n_embd // self.n_head) % 2 != 0:
            raise ConfigError(
                "n_head", f"n_embd / n_head must be even, for rotary pairs, got {self.n_embd // self.n_head}"
            )
        if self.n_layer > MOST_LAYERS or 12 * self.n_layer * self.n_embd**2 > MOST_WEIGHTS:
            sizes = f"n_layer={self.n_layer} and n_embd={self.n_embd}"
            raise ConfigError("", f"{sizes} make a model that no machine holds: choose smaller ones")


@dataclass(frozen=True)
class DataConfig(Section):
    """What is learned from, and in what pieces."""

    data: str | None = option(None, "a text file or a folder of them; null: the documentation inside Python")
    val_fraction: float = option(0.1, "share of the data to validate on", above=0, below=1)
    batch_size: int = option(16, "rows in a micro-batch", least=1)


@dataclass(frozen=True)
class AnswerDataConfig(DataConfig):
    """Prompts with their answers."""

    data: str | None = option(None, "a JSON-lines file of prompt and answer; null: a small built-in task")
    val_fraction: float = option(0.05, "share of the prompts to validate on", above=0, below=1)
    batch_size: int = option(64, "rows in a micro-batch", least=1)


@dataclass(frozen=True)
class PreferenceDataConfig(DataConfig):
    """Prompts with a chosen and a rejected answer."""

    data: str | None = option(
        None, "a JSON-lines file of prompt, chosen and rejected; null: a small built-in task"
    )
    val_fraction: float = option(0.05, "share of the prompts to validate on", above=0, below=1)
    batch_size: int = option(64, "pairs in a micro-batch", least=1)


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """The optimizer; matrices decay, biases and gains do not."""

    optimizer: str = option("adamw", "adamw, adam or sgd", choices=OPTIMIZER_NAMES)
    lr: float = option(5e-3, "the peak learning rate", least=0)
    weight_decay: float = option(0.1, "of matrices", least=0)


@dataclass(frozen=True)
class SchedulerConfig(Section):
    """The learning rate over the updates; it ends at max_steps."""

    scheduler: str = option("cosine", "constant, linear, cosine or onecycle", choices=SCHEDULER_NAMES)
    warmup_steps: int | None = option(
        None, "updates, at most max_steps; null: a twentieth of max_steps", least=0
    )
    min_lr_ratio: float = option(0.1, "the last rate as a share of the peak", least=0, most=1)


@dataclass(frozen=True)
class TrainerConfig(Section):
    """The run: where, how long, and what is saved."""

    output_dir: str = option("runs/pretrain", "where to write", PLACE)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, …", PLACE)
    threads: int = option(1, "CPU threads; small models on a busy machine are fastest with 1", PLACE, least=1)
    seed: int = option(0, "of the init, the dropout and the shuffling", least=0, below=2**63)
    max_steps: int = option(1000, "updates", least=1)
    grad_accum_steps: int = option(1, "micro-batches in an update", least=1)
    max_grad_norm: float | None = option(1.0, "clip the global norm to this; null: never", above=0)
    use_amp: bool = option(False, "compute in half precision")
    amp_dtype: str = option("bf16", "bf16, or fp16 with loss scaling", choices=("bf16", "fp16"))
    max_skips: int = option(
        50, "stop after so many updates in a row without a finite gradient", PLACE, least=1
    )
    patience: int | None = option(None, "stop after so many validations without a better one", least=1)
    log_interval: int = option(10, "updates between two lines of metrics", least=1)
    eval_interval: int = option(250, "updates between two validations", least=1)
    save_interval: int | None = option(
        250, "updates between two checkpoints; null: after each epoch", PLACE, least=1
    )
    keep_last: int = option(3, "checkpoints to keep, besides the best one", PLACE, least=1)
    async_save: bool = option(True, "write checkpoints while training goes on", PLACE)
    timeout: int = option(600, "seconds that the processes of a run wait for each other", PLACE, least=1)
    resume: str | None = option(None, "a checkpoint, or auto: the newest good one in output_dir", CALL)
    reset_optimizer: bool = option(False, "on resume: the weights alone, with a new optimizer", CALL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads > MOST_THREADS:
            raise ConfigError("threads", f"threads must be <= {MOST_THREADS}, got {self.threads}")


@dataclass(frozen=True)
class LoggerConfig(Section):
    """What is written besides metrics.jsonl."""

    use_tensorboard: bool = option(False, "also write TensorBoard event files", PLACE)
    use_wandb: bool = option(False, "also log to Weights & Biases, offline unless WANDB_MODE is set", PLACE)


@dataclass(frozen=True)
class StartConfig(Section):
    """What a later stage begins with."""

    init_from: str | None = option(None, "a checkpoint whose weights to start from; null: random ones")


@dataclass(frozen=True)
class PolicyStartConfig(StartConfig):
    """What the policy begins with."""

    init_from: str = option(
        "runs/sft/best_model.pt", "a checkpoint whose weights to start from; they are the reference, too"
    )


@dataclass(frozen=True)
class PreferenceConfig(Section):
    """The objective of DPO."""

    beta: float = option(0.5, "how closely the policy is held to the reference", above=0)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that `python -m training pretrain` can be told."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    trainer: TrainerConfig = TrainerConfig()
    logger: LoggerConfig = LoggerConfig()

    def __post_init__(self) -> None:
        warmup_steps, max_steps = self.scheduler.warmup_steps, self.trainer.max_steps
        if warmup_steps is None:
            resolved = replace(self.scheduler, warmup_steps=max_steps // 20)
            object.__setattr__(self, "scheduler", resolved)
        elif warmup_steps > max_steps:
            raise ConfigError(
                "warmup_steps", f"warmup_steps must be in [0, max_steps={max_steps}], got {warmup_steps}"
            )


@dataclass(frozen=True)
class SFTConfig(PretrainConfig):
    """Everything that `python -m training sft` can be told."""

    data: DataConfig = AnswerDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-3)
    trainer: TrainerConfig = TrainerConfig(
        output_dir="runs/sft", max_steps=700, eval_interval=100, save_interval=100
    )
    start: StartConfig = StartConfig()


@dataclass(frozen=True)
class DPOConfig(PretrainConfig):
    """Everything that `python -m training dpo` can be told."""

    data: DataConfig = PreferenceDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-5, weight_decay=0.0)
    trainer: TrainerConfig = TrainerConfig(
        output_dir="runs/dpo", max_steps=100, eval_interval=25, save_interval=25
    )
    start: PolicyStartConfig = PolicyStartConfig()
    preference: PreferenceConfig = PreferenceConfig()
