"""Lesson 09: everything that the next update depends on, into a file and back.  Tasks 9.5, 9.6, 9.7.

Holds:    capture, restore (between a running training and a dict), save, load (between the dict and a file)
Run it:   python -m solutions.stage02_pretrain.lesson09_exact_resume.run
Test it:  pytest testcases/basic_test.py

Paper: Pillai et al., "All File Systems Are Not Created Equal: On the Complexity of Crafting Crash-Consistent
Applications", OSDI 2014 (what a file system may leave behind after a crash).
"""

import copy
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .rng import get_rng_state, set_rng_state

KEYS = (
    *("epoch", "global_step", "micro_step", "extra", "model_state_dict", "optimizer_state_dict"),
    *("optimizer_param_names", "scheduler_state_dict", "scaler_state_dict", "sampler_state_dict"),
    *("gradients", "rng_state"),
)


def snapshot(tree: Any) -> Any:
    """A copy that shares no memory with `tree`: tensors on the CPU, without a graph; containers copied, too.

    `tree` holds tensors and plain values in dicts, lists and tuples, nested in any way. Dicts keep their type.
    """
    # TODO 9.5 capture the whole training, as a copy
    # a CPU tensor's .cpu() is the tensor itself
    raise NotImplementedError("task 9.5: capture the whole training, as a copy")


def param_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters that the optimizer holds, group by group, in the optimizer's order.

    An optimizer's state says "parameter 0, 1, 2": these names say which they are. A tensor that is no parameter
    of the model is a ValueError.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    if not all(id(param) in names for group in optimizer.param_groups for param in group["params"]):
        raise ValueError("the optimizer holds a tensor that is not a parameter of the model")
    # TODO 9.5 capture the whole training, as a copy
    raise NotImplementedError("task 9.5: capture the whole training, as a copy")


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,
    scaler: Any = None,
    sampler: Any = None,
    epoch: int = 0,
    global_step: int = 0,
    micro_step: int = 0,
    **extra: Any,
) -> dict:
    """Everything that the rest of the run depends on.

    Args:
        model, optimizer: any with torch's interface, between two micro-steps.
        scheduler, scaler, sampler: anything with state_dict(), or None.
        epoch: the epoch under way, counted from 0.
        global_step: updates made since the beginning.
        micro_step: micro-batches whose gradients wait in `.grad`, 0 right after an update.
        extra: what the program itself wants back: plain values and tensors.

    Returns:
        A dict with the keys in `KEYS`. A part that was None is None. "gradients" has an entry for each named
        parameter: its gradient, or None where it has none. (None is not 0: an optimizer skips the one and steps
        with the other.) Nothing in it changes when the training goes on, and no random number is drawn.
    """
    parts = {"scheduler": scheduler, "scaler": scaler, "sampler": sampler}
    state = {"epoch": epoch, "global_step": global_step, "micro_step": micro_step, "extra": extra}
    # TODO 9.5 capture the whole training, as a copy
    # add the other keys to `state`; `parts` gives you three of them
    raise NotImplementedError("task 9.5: capture the whole training, as a copy")


def find_mismatch(state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, parts: dict) -> str | None:
    """The first reason why `state` does not belong to these objects, or None. Changes nothing."""
    if missing := [key for key in KEYS if key not in state]:
        return f"it has no {', '.join(missing)}"

    def kinds(tensors: dict) -> dict:
        return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items() if isinstance(t, Tensor)}

    saved, mine = kinds(state["model_state_dict"]), kinds(model.state_dict())
    for name in sorted(saved.keys() | mine.keys()):
        if saved.get(name) != mine.get(name):
            return f"{name}: the checkpoint has {saved.get(name)}, the model {mine.get(name)}"
    saved_names, names = state["optimizer_param_names"], param_names(model, optimizer)
    if saved_names != names:
        return f"the optimizer's parameters are {names}, in the checkpoint they are {saved_names}"
    for name, part in parts.items():
        if (part is None) != (state[f"{name}_state_dict"] is None):
            return f"there is a {name} in {'the checkpoint' if part is None else 'the program'} only"
    if parts["sampler"] is not None:
        theirs, mine = state["sampler_state_dict"], parts["sampler"].state_dict()
        for name in ("data_source_length", "seed", "shuffle"):
            if name in mine and theirs.get(name) != mine[name]:
                return f"{name} of the sampler is {mine[name]}, in the checkpoint {theirs.get(name)}"
    return None


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load an optimizer's state without a change of a bit.

    Two habits of torch's `load_state_dict` stand in the way. It keeps the tensors that it is given, and trains
    in them from then on. And it casts every floating-point state but "step" to the dtype of its parameter:
    fp32 moments of a bf16 parameter lose 16 bits.

    Args:
        optimizer: its groups are those of the checkpoint.
        saved: what `optimizer.state_dict()` gave, hyperparameters such as the learning rate included:
            {"state": {index: {…}}, "param_groups": [{"params": [index, …], …}, …]}. Not changed, now or later.
    """
    # TODO 9.6 restore everything, in order, or nothing at all
    # after torch's own loading, put each state that has changed its dtype back as it was saved
    raise NotImplementedError("task 9.6: restore everything, in order, or nothing at all")


def restore(
    state: dict,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,
    scaler: Any = None,
    sampler: Any = None,
) -> dict:
    """Put a training that was built anew into the state of `capture`: all of it, or nothing.

    When to call it: after everything is built (a model draws its initial weights, a scheduler writes its
    first learning rate into the optimizer) and before `iter(loader)` (which asks the sampler for indices).

    Order: weights → optimizer → scheduler → scaler → sampler → gradients → random generators. The generators
    come last, because a part may draw numbers while it loads.

    Args:
        state: from `capture`, possibly by way of a file. Not changed, now or later: you may restore from it twice.
        model, optimizer, scheduler, scaler, sampler: built in the same way as those of `capture`.

    Returns:
        The progress: {"epoch", "global_step", "micro_step"} and what was passed as extra, in one dict.

    Raises:
        ValueError: where the state belongs to another model, optimizer or sampler. Nothing was touched then.
    """
    parts = {"scheduler": scheduler, "scaler": scaler, "sampler": sampler}
    # TODO 9.6 restore everything, in order, or nothing at all
    # `find_mismatch` tells you whether it fits; a gradient goes to the device of its parameter
    raise NotImplementedError("task 9.6: restore everything, in order, or nothing at all")


def digest_path(filepath: str | Path) -> Path:
    """Where the digest of a file is: `run.pt` has `run.pt.sha256` beside it."""
    return Path(f"{filepath}.sha256")


def sync_folder(folder: Path) -> None:
    """Ask the disk to keep the names in a folder: until then, a power cut may undo a rename."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`. After a kill or a power cut at any instant, the file is the old one or the new, whole.

    The data go to a temporary file in the same folder (a rename between two disks would be a copy) and are on
    the disk before it takes the name `path`; at the end the name is on the disk, too.

    Where the disk is full or broken, the OSError goes on to the caller, the old file is as it was, and no
    temporary file is left.
    """
    # TODO 9.7 write so that a kill at any instant leaves a whole file, and refuse a broken one
    raise NotImplementedError("task 9.7: write so that a kill at any instant leaves a whole file, and refuse a broken one")


def save(state: dict, filepath: str | Path) -> None:
    """Write a checkpoint and its SHA-256 digest: `filepath` and `filepath.sha256`. An older one is replaced.

    Two files cannot be exchanged in one instant. So in between the digest file names both: digest(new) and
    digest(old) → the data are exchanged → digest(new) alone.

    Args:
        state: from `capture`.
        filepath: in a folder that exists. The digest file is one that `sha256sum -c` reads:
            64 hexadecimal digits, two blanks, the name of the file, a newline.

    Raises:
        ValueError: where the state holds something that a safe load would refuse, such as a numpy number.
        OSError: where writing failed. In both cases the older checkpoint still loads.
    """
    filepath = Path(filepath)
    torch.save(state, buffer := io.BytesIO())
    data = buffer.getvalue()
    try:  # what cannot be read back is no checkpoint: say so now, and not after the crash
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise ValueError(f"a checkpoint holds tensors and plain Python values only: {error}") from None
    line = f"{hashlib.sha256(data).hexdigest()}  {filepath.name}\n"
    # TODO 9.7 write so that a kill at any instant leaves a whole file, and refuse a broken one
    raise NotImplementedError("task 9.7: write so that a kill at any instant leaves a whole file, and refuse a broken one")


def load(filepath: str | Path) -> dict:
    """Read a checkpoint that `save` wrote, if not a bit of it has changed.

    Only tensors and plain values are read (`weights_only=True`): an ordinary pickle may run any code. Tensors
    come to the CPU.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the digest is missing, or is not that of the data.
        pickle.UnpicklingError: where the file holds more than tensors and plain values.
    """
    data = Path(filepath).read_bytes()
    # TODO 9.7 write so that a kill at any instant leaves a whole file, and refuse a broken one
    # check what was read, then load from just that: the file may be exchanged in between
    raise NotImplementedError("task 9.7: write so that a kill at any instant leaves a whole file, and refuse a broken one")
