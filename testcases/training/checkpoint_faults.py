"""Faults inside a save: every os.write, os.fsync and os.replace can be counted, killed at, or made to fail."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

OPERATIONS = ("write", "fsync", "replace")
Fault = Callable[[], object]


def make_state(value: float, size: int = 4) -> dict:
    """A small state all of whose tensors hold `value`, so that a mixture of two states shows."""
    weights = {"w": torch.full((size, size), value), "b": torch.full((size,), value)}
    moments = {0: {"step": torch.tensor(value), "exp_avg": torch.full((size, size), value)}}
    return {
        "epoch": 1,
        "global_step": 1,
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "train_loss": 2.5,
        "val_loss": 1.5,
    }


def value_of(state: dict) -> float:
    """The one value of all tensors of `make_state`."""
    moments = state["optimizer_state_dict"]["state"][0]
    tensors = [*state["model_state_dict"].values(), *moments.values()]
    values = {value for tensor in tensors for value in tensor.flatten().tolist()}
    assert len(values) == 1, f"a mixture of {values}"
    return values.pop()


@contextmanager
def fault_at(number: int | None, fault: Fault = lambda: None, torn: bool = False) -> Iterator[list[str]]:
    """Inside, operation `number` (from 0) meets the fault; yields the list of the operations so far.

    Args:
        number: None: nothing happens, the operations are counted.
        torn: a write leaves half of its bytes before the fault.
    """
    done: list[str] = []
    real = {name: getattr(os, name) for name in OPERATIONS}

    def guarded(name: str) -> Callable:
        def call(*args, **options):
            done.append(name)
            if len(done) - 1 == number:
                if torn and name == "write":
                    real["write"](args[0], memoryview(args[1])[: len(args[1]) // 2])
                fault()
            return real[name](*args, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, guarded(name))
    try:
        yield done
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def killed_at(number: int, work: Callable[[], object], torn: bool = False) -> bool:
    """Do the work in a forked process that ends at operation `number`, without cleaning up. Was it reached?"""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            with fault_at(number, lambda: os._exit(9), torn):
                work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), f"the work itself failed with {code}"
    return code == 9


def litter(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def flip(path: Path, position: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
