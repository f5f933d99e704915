"""Two processes against one, in figures: ``python -m testcases.training.distributed_demo``. Exit code 1 if they differ.

It trains a small GPT in one process and in two gloo ranks, kills two ranks and lets them go on, and changes the number
of processes inside an epoch. distributed_test.py checks the same, and more.
"""

import sys
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path

import torch

from testcases.training.distributed_run import (
    ROWS,
    build,
    ends,
    launch,
    observe,
    outcome,
    pretrain,
    run_group,
    wait_for_rows,
)
from testcases.training.killed_run import difference
from training.distributed import Ranks

LOSS, WEIGHT = 3e-6, 3e-6  # see distributed_test.py: the same float32 terms, added up in another order
LINE = "{:>6}  {:>12}  {:>12}  {:>9}  {:>18}  {:>17}"


def largest(got: list[torch.Tensor], want: list[torch.Tensor]) -> list[float]:
    """The largest difference of an element, for each update."""
    return [(a - b).abs().max().item() for a, b in zip(got, want, strict=True)]


def losses(history: list[dict]) -> list[tuple[int, str, float]]:
    return [
        (row["global_step"], key, row[key])
        for row in history
        for key in ("train_loss", "val_loss")
        if key in row
    ]


def compare(alone: dict, ranks: list[dict]) -> bool:
    """A table of losses, and of weights and gradients after each update."""
    both = ranks[0]["equal"]
    print(
        "One process and two, the same micro-batches: unequal token counts, windows of 3, a last one of one row\n"
    )
    print(
        LINE.format(
            "update", "1 process", "2 processes", "loss diff", "largest weight diff", "largest grad diff"
        )
    )
    at = {step: [] for step in range(1, len(both["weights"]) + 1)}
    for (step, key, want), (_, _, got) in zip(losses(alone["history"]), losses(both["history"]), strict=True):
        at[step].append((key, want, got))
    weight, gradient = (largest(both[name], alone[name]) for name in ("weights", "grads"))
    for step, found in at.items():
        last = (f"{weight[step - 1]:.1e}", f"{gradient[step - 1]:.1e}")
        for _, want, got in found or [("", None, None)]:
            shown = ("", "", "") if want is None else (f"{want:.7f}", f"{got:.7f}", f"{abs(got - want):.1e}")
            print(LINE.format(step, *shown, *last))
    worst = max(abs(got - want) for found in at.values() for _, want, got in found)
    good = worst <= LOSS and max(weight) <= WEIGHT
    print(f"\nlosses within {LOSS}, weights within {WEIGHT}: {answer(good)}")
    same = difference(ranks[1]["equal"]["weights"], both["weights"]) is None
    print(f"weights of the two ranks identical: {answer(same)}")
    return good and same


def kill_and_go_on(folder: Path) -> bool:
    """Both ranks killed in the middle, at a row of the log, and started again with --resume auto."""
    folder.mkdir()
    whole, output_dir = folder / "whole", folder / "run"
    assert [code for code, _ in ends(launch(2, *pretrain(folder, "--output_dir", str(whole))))] == [0, 0]
    command = pretrain(folder, "--output_dir", str(output_dir), "--resume", "auto")
    ranks = launch(2, *command)
    wait_for_rows(output_dir, 14)
    for process in ranks:
        process.kill()
    ends(ranks)
    codes = [code for code, _ in ends(launch(2, *command))]
    found = difference(outcome(output_dir), outcome(whole)) if codes == [0, 0] else f"exit codes {codes}"
    print(
        f"killed and resumed, two ranks, weights, moments, random generators and log bit-identical: {answer(not found)}"
    )
    if found:
        print(f"  {found}")
    return not found


def change_the_number(folder: Path, alone: dict, ranks: list[dict]) -> bool:
    """One process up to update 2, two up to update 5, one to the end: each time inside an epoch."""
    last = build(Ranks(), folder / "last")
    last.load_checkpoint(folder / "middle" / "epoch_1_step_5.pt")
    after = observe(last)
    parts = [rank["go_on"]["middle"] for rank in ranks]
    seen = Counter([*alone["rows"][:24], *chain(*(part["rows"] for part in parts)), *after["rows"]])
    once = seen == Counter([*range(ROWS), *range(ROWS)])
    worst = max(largest([*parts[0]["weights"], *after["weights"]], alone["weights"][2:]))
    print(
        f"1 → 2 → 1 processes: largest weight difference to one process {worst:.1e}, within {WEIGHT}: "
        f"{answer(worst <= WEIGHT)}"
    )
    print(f"1 → 2 → 1 processes: every sample once an epoch: {answer(once)}")
    return once and worst <= WEIGHT


def answer(yes: bool) -> str:
    return "yes" if yes else "NO"


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks, alone = run_group(folder), observe(build(Ranks()))
        results = [
            compare(alone, ranks),
            change_the_number(folder, alone, ranks),
            kill_and_go_on(folder / "killed"),
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
