"""Lesson 08: checkpoints that survive a kill, a full disk and a flipped bit.  Tasks 8.1 to 8.3.

Holds:    snapshot, write_atomically, save_checkpoint, verify_checkpoint, load_checkpoint, describe_checkpoint
Run it:   python -m solutions.stage02_pretrain.lesson08_checkpoint_trainer.run
Test it:  pytest testcases/basic_test.py -k "snapshot or save or verify or load"

On disk:  epoch_2_step_500.pt          what torch.save wrote; a plain torch.load(path) reads it
          epoch_2_step_500.pt.sha256   its digest, so that `sha256sum -c` can check it without Python

Paper: Pillai, Chidambaram, Alagappan, Al-Kiswany, Arpaci-Dusseau, Arpaci-Dusseau, "All File Systems Are Not
Created Equal: On the Complexity of Crafting Crash-Consistent Applications", OSDI 2014.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, str)


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, foreign, or made for another model. One sentence says which."""


def digest_path(filepath: str | os.PathLike[str]) -> Path:
    """Where the digest of a checkpoint lies: beside it, with ".sha256" added to the name."""
    return Path(f"{os.fspath(filepath)}.sha256")


def snapshot(value: Any, name: str = "state") -> Any:
    """A copy that later training cannot change, made of nothing but what safe loading accepts.

    `model.state_dict()` does not copy: its tensors *are* the weights. A "best state" kept that way is, a step
    later, no longer the best.

    Args:
        value: None, bool, int, float, str, tensors, and dicts (any Mapping, its keys int or str), lists and
            tuples of them.
        name: what messages call `value`. Inside a dict or list it is extended: "state.config.lr",
            "state.betas.0".

    Returns:
        The same structure. Tensors are copies in host memory, without a graph, with the same dtype; Mappings
        have become dicts; lists stay lists and tuples tuples.

    Raises:
        ValueError: for everything else, with the extended name. This includes numpy's scalars, though
            `np.float64` is a subclass of float: `torch.load(weights_only=True)` would refuse the whole file,
            months later.
    """
    # TODO 8.1 take a snapshot: copies, and plain values only
    raise NotImplementedError("task 8.1: take a snapshot: copies, and plain values only")


def snapshot_key(key: Any, name: str) -> None:
    """Keys are plain, too: int in the optimizer's state, str everywhere else."""
    if type(key) not in (int, str):
        raise ValueError(f"{name} has a key of type {type(key).__name__}, which safe loading may refuse")


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory durable. A file's own fsync does not do that."""
    if os.name == "nt":  # Windows cannot open a directory, and keeps its names durable by itself
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(filepath: Path, data: bytes) -> None:
    """Put `data` under a name, so that whoever looks, and whenever, finds all of the old or all of the new.

    Durable at the end: neither the bytes nor the name are lost when the power fails after the return.

    Args:
        filepath: the name. Its directory exists. There may be an older file.
        data: the whole content.

    Raises:
        OSError: as the operating system gave it (disk full, no permission …). Then the older file is as it
            was, unless only the very last step failed, and no temporary file is left.
    """
    temporary = filepath.with_name(f".{filepath.name}.tmp")  # the same directory: a rename works only there
    # TODO 8.2 write so that no moment is the wrong one to be killed
    # four steps: the bytes into the temporary file; the bytes to the disk; the name; the name to the disk
    raise NotImplementedError("task 8.2: write so that no moment is the wrong one to be killed")


def save_checkpoint(state: dict, filepath: str | os.PathLike[str]) -> None:
    """Save a state under a name, over an older checkpoint if there is one.

    Two files cannot be replaced at the same instant. So the digest goes first, and names both contents
    as long as either may be there:

        1. digest file ← line of the new bytes, then the lines that it had
        2. checkpoint  ← the new bytes
        3. digest file ← line of the new bytes alone

    A line is what `sha256sum` writes: 64 hex digits, two spaces, the checkpoint's name without folders, and a
    newline. Missing folders are made.

    Args:
        state: see `snapshot`; it is copied before anything is written.
        filepath: the name, such as "runs/demo/epoch_2_step_500.pt".

    Raises:
        ValueError: a value that safe loading would refuse. Nothing is written then.
        OSError: the operating system could not write. What `filepath` held before is still valid.

    Differs from production savers: the bytes are in memory once more, instead of being hashed as they are
    written.
    """
    filepath = Path(filepath)
    buffer = io.BytesIO()
    torch.save(snapshot(state), buffer)
    data = buffer.getvalue()
    digest_file = digest_path(filepath)
    filepath.parent.mkdir(parents=True, exist_ok=True)
    try:
        # TODO 8.2 write so that no moment is the wrong one to be killed
        raise NotImplementedError("task 8.2: write so that no moment is the wrong one to be killed")
    except BaseException:
        if not filepath.exists():  # a digest of nothing is litter
            digest_file.unlink(missing_ok=True)
        raise


def read_verified(filepath: str | os.PathLike[str]) -> bytes:
    """The bytes of a checkpoint, once they are known to be the bytes that were saved.

    Valid is: the SHA-256 of the bytes is the first word of one of the lines of the digest file. No digest,
    no trust.

    Raises:
        CheckpointError: the file or its digest is missing or cannot be read, or no line matches.
    """
    # TODO 8.3 verify, then load safely
    raise NotImplementedError("task 8.3: verify, then load safely")


def verify_checkpoint(filepath: str | os.PathLike[str]) -> str:
    """Check that every bit is as it was saved. Unpickles nothing.

    Returns:
        The SHA-256 in hex.

    Raises:
        CheckpointError: see `read_verified`.
    """
    return hashlib.sha256(read_verified(filepath)).hexdigest()


def load_checkpoint(
    filepath: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Verify a checkpoint and load it, without running any code that may be inside.

    The bytes that were verified are the bytes that are loaded; the file is read once.

    Args:
        filepath: the checkpoint.
        map_location: the device for all tensors. The default holds also for a file saved by others on a GPU.

    Returns:
        What was saved.

    Raises:
        CheckpointError: the file is not valid; or it is, and is not a dict that safe loading accepts.
    """
    # TODO 8.3 verify, then load safely
    raise NotImplementedError("task 8.3: verify, then load safely")


def describe_checkpoint(filepath: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a checkpoint, told without the model.

    Returns:
        {"epoch", "step", "best_metric", "parameters": numbers in model_state_dict, "bytes", "sha256",
        "keys"}; None for what the file does not have.
    """
    state = load_checkpoint(filepath)
    weights = state.get("model_state_dict") or {}
    return {
        **{key: state.get(key) for key in ("epoch", "step", "best_metric")},
        "parameters": sum(value.numel() for value in weights.values() if isinstance(value, Tensor)),
        "bytes": Path(filepath).stat().st_size,
        "sha256": verify_checkpoint(filepath),
        "keys": list(state),
    }
