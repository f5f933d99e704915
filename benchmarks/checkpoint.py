"""What saving and loading a large checkpoint costs: stall, memory, load, beside plain torch on the same disk.

Run:  python -m benchmarks.checkpoint [--params 100e6] [--rounds 5] [--folder .] [--check]

The state is that of a GPT with AdamW moments, 12 bytes a parameter: 1.2 GB for 100 M.

stall   how long training stands still: the time until CheckpointManager.save returns, the copy made and a thread
        writing; beside torch.save(state, path), without and with fsync. The manager is idle before each. Its first
        save touches new memory and is slower: it is shown, and is not among the rounds.
memory  the peak of a fresh process during its first two saves, over what it held before: one copy of the state is
        what an asynchronous save needs. The kernel keeps that peak (VmHWM), and sets it back on request, so that
        nothing is missed between two samples, and the building of the state is not counted.
load    load_checkpoint, which verifies every byte, beside torch.load plus one SHA-256 of the file.

Rounds are interleaved, and the medians count. The file is in the page cache when it is loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts
from training.checkpoint import CheckpointManager, load_checkpoint
from training.model import GPT, GPTConfig
from training.optimizer import configure_optimizer

TITLE = "Saving and loading a checkpoint: stall, memory, load."
STALL_BAR, MEMORY_BAR, LOAD_BAR = 0.25, 1.05, 1.1
LAYERS, HEADS = 8, 8
FILES = (
    4  # on the disk at once: the manager's newest and the one under way, torch.save's, and room to breathe
)


def make_state(params: float) -> dict[str, Any]:
    """What a Trainer's checkpoint is made of: weights, and the moments after one update."""
    step = 2 * HEADS  # a head's width is even
    width = max(
        step, round((params / (12 * LAYERS)) ** 0.5 / step) * step
    )  # a block has about 12·width² weights
    model = GPT(GPTConfig(block_size=64, n_layer=LAYERS, n_head=HEADS, n_embd=width))
    optimizer = configure_optimizer(model, "adamw", 1e-4, 0.1)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def size_of(state: Any) -> int:
    """Bytes of all tensors."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(size_of(value) for value in values)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def medians(actions: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each action returns; the actions take turns."""
    samples: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            samples[name].append(action())
    return {name: statistics.median(found) for name, found in samples.items()}


# ---- stall


def measure_stall(state: dict[str, Any], folder: Path, rounds: int) -> tuple[float, dict[str, float]]:
    """Seconds of the first asynchronous save; and the medians of the later ones beside torch.save's."""
    manager = CheckpointManager(folder / "run", keep_last=1)
    steps = iter(range(10**6))

    def asynchronous() -> float:
        stall = seconds(lambda: manager.save(state, 0, next(steps)))
        if problems := manager.wait():
            raise OSError(problems[0])
        return stall

    def plain() -> float:
        path = folder / "plain.pt"
        path.unlink(missing_ok=True)
        os.sync()  # what others have left unwritten is not this save's
        return seconds(lambda: torch.save(state, path))

    def flush() -> float:
        with open(folder / "plain.pt", "rb") as file:
            return seconds(lambda: os.fsync(file.fileno()))

    first = asynchronous()
    found = medians({"asynchronous save": asynchronous, "torch.save": plain, "fsync after it": flush}, rounds)
    return first, found


# ---- memory


def measure_memory(params: float, folder: Path) -> tuple[int, int]:
    """(bytes of the state, peak bytes above it while saving), from a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--params", str(params)]
    command += ["--folder", str(folder), "--memory_of_two_saves"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, extra = map(int, done.stdout.split())
    return size, extra


def print_memory(params: float, folder: Path) -> None:
    """The body of that process."""
    state = make_state(params)
    manager = CheckpointManager(folder, keep_last=1)
    before = peak_bytes(reset=True)
    for step in range(2):
        manager.save(state, 0, step)
        manager.wait()
    print(size_of(state), peak_bytes() - before)


def peak_bytes(reset: bool = False) -> int:
    """The largest resident size that this process had, since the last reset. Linux."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM to the size of now
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


# ---- load


def measure_load(path: Path, rounds: int) -> dict[str, float]:
    """Medians, in seconds, of load_checkpoint and of the two things that it has to do."""

    def digest() -> None:
        with open(path, "rb") as file:
            hashlib.file_digest(file, "sha256")

    loads: dict[str, Callable[[], float]] = {
        "load_checkpoint": lambda: seconds(lambda: load_checkpoint(path)),
        "torch.load": lambda: seconds(lambda: torch.load(path, map_location="cpu", weights_only=True)),
        "sha256": lambda: seconds(digest),
    }
    medians(loads, 1)  # into the page cache, and the allocator warm
    return medians(loads, rounds)


# ---- the command


def require_space(folder: Path, params: float) -> None:
    """ValueError with a sentence where the disk has no room for the files of this benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = FILES * 12 * params, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 1e9:.1f} GB free, and this needs {needed / 1e9:.1f}: "
            f"take fewer --params, or another --folder"
        )


def benchmark(params: float, rounds: int, folder: Path) -> bool:
    """Measure and print everything. Returns whether all bars are met."""
    memory_folder = folder / "memory"
    memory_folder.mkdir()
    size, extra = measure_memory(params, memory_folder)
    shutil.rmtree(memory_folder)
    state = make_state(params)
    first, stall = measure_stall(state, folder, rounds)
    del state
    load = measure_load(next((folder / "run").glob("epoch_*.pt")), rounds)

    print(f"state of {size / 12e6:.1f} M parameters with moments, {size / 1e9:.2f} GB; medians of {rounds}\n")
    print(f"{'save':<42} seconds")
    rows = {"asynchronous, the first (new memory)": first, "asynchronous, later": stall["asynchronous save"]}
    rows |= {"torch.save": stall["torch.save"]}
    rows |= {"torch.save + fsync": stall["torch.save"] + stall["fsync after it"]}
    print_rows(rows)
    print(f"\n{'load':<42} seconds")
    both = load["torch.load"] + load["sha256"]
    print_rows(load | {"torch.load + sha256": both})
    print()
    ratios = [
        (
            "stall: asynchronous, later / torch.save",
            stall["asynchronous save"] / stall["torch.save"],
            STALL_BAR,
        ),
        ("memory: peak above the state / the state", extra / size, MEMORY_BAR),
        ("load: load_checkpoint / (torch.load + sha256)", load["load_checkpoint"] / both, LOAD_BAR),
    ]
    for name, ratio, bar in ratios:
        print(f"{name:<46} {ratio:6.3f}  bar {bar:<5} {'met' if ratio <= bar else 'MISSED'}")
    return all(ratio <= bar for _, ratio, bar in ratios)


def print_rows(rows: dict[str, float]) -> None:
    for name, value in rows.items():
        print(f"  {name:<40} {value:7.3f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=TITLE)
    parser.add_argument("--params", type=float, default=100e6, help="of the model (default: 100e6)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken (default: 5)")
    parser.add_argument("--folder", type=Path, default=Path("."), help="a folder of the disk to measure")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a bar is missed")
    parser.add_argument("--memory_of_two_saves", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.memory_of_two_saves:
        print_memory(args.params, args.folder)
        return 0
    if args.rounds < 1 or args.params < 1e6:
        parser.error(f"--rounds must be >= 1 and --params >= 1e6, got {args.rounds} and {args.params:g}")
    if not sys.platform.startswith("linux"):
        parser.error("the peak of the memory is read from /proc: this needs Linux")
    try:
        require_space(args.folder, args.params)
    except ValueError as error:
        parser.error(str(error))
    print(f"{TITLE}\n{facts()}")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=args.folder) as folder:
        met = benchmark(args.params, args.rounds, Path(folder))
    return 1 if args.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
