"""Watch four kinds of SGD walk down the same narrow valley.

    python -m solutions.stage01_optimizers.lesson01_sgd.run
    python -m tutorial.stage01_optimizers.lesson01_sgd.run      (your code: rows appear as tasks get done)

The valley is loss = ½·(x² + 25·y²): gentle along x, steep along y. The start is (−9, 2).
"""

import math

import torch

from .optimizer import SGDFromScratch

WILD_LR = 0.075  # for the picture; above 2/25 = 0.08 the walk would climb out of the valley
LR = 0.05
KINDS = {
    "plain": {},
    "decay 0.1": {"weight_decay": 0.1},
    "momentum 0.8": {"momentum": 0.8},
    "Nesterov 0.8": {"momentum": 0.8, "nesterov": True},
}
SHOWN_STEPS = (0, 10, 20, 40, 80)
BARS = "▁▂▃▄▅▆▇█"


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([-9.0, 2.0], dtype=torch.float64))


def valley(point: torch.Tensor) -> torch.Tensor:
    return 0.5 * (point[0] ** 2 + 25 * point[1] ** 2)


def walk(point: torch.nn.Parameter, optimizer: SGDFromScratch, steps: int) -> tuple[list[tuple], list[float]]:
    """Take `steps` steps; return the points that were visited and the loss at each of them."""
    path, losses = [], []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = valley(point)
        loss.backward()
        path.append(tuple(point.tolist()))
        losses.append(loss.item())
        optimizer.step()
    return path, losses


def draw(path: list[tuple], columns: int = 61, rows: int = 9) -> str:
    """The path from above: x from −10 to 2 to the right, y from −2 to 2 upwards; * is the lowest point."""
    grid = [[" "] * columns for _ in range(rows)]

    def put(x: float, y: float, mark: str) -> None:
        column, row = round((x + 10) / 12 * (columns - 1)), round((2 - y) / 4 * (rows - 1))
        if 0 <= row < rows and 0 <= column < columns:
            grid[row][column] = mark

    for x, y in reversed(path):
        put(x, y, "o")
    put(0.0, 0.0, "*")
    return "\n".join("  |" + "".join(row).rstrip() for row in grid)


def sparkline(losses: list[float]) -> str:
    """Every fourth loss as a bar, on a logarithmic scale from 1e-6 to 100."""
    heights = [(math.log10(min(max(loss, 1e-6), 100.0)) + 6) / 8 * (len(BARS) - 1) for loss in losses[::4]]
    return "".join(BARS[round(height)] for height in heights)


def main() -> None:
    point = start()
    path, _ = walk(point, SGDFromScratch([point], WILD_LR), steps=25)
    print(f"25 steps of plain SGD, lr {WILD_LR}, seen from above (* is the lowest point)\n")
    print(draw(path))
    print(f"\nloss, lr {LR}    " + "".join(f"{step:>9}" for step in SHOWN_STEPS) + " steps")
    for name, options in KINDS.items():
        point = start()
        _, losses = walk(point, SGDFromScratch([point], LR, **options), steps=max(SHOWN_STEPS))
        print(
            f"{name:<16}"
            + "".join(f"{losses[step]:>9.2g}" for step in SHOWN_STEPS)
            + "  "
            + sparkline(losses)
        )
    compare_resumed_run()


def compare_resumed_run() -> None:
    """Stop after 20 steps, restore everything in a new optimizer, go on: same bits as without the stop."""
    options = {"momentum": 0.8, "weight_decay": 0.1}
    point, again = start(), start()
    optimizer, restored = SGDFromScratch([point], LR, **options), SGDFromScratch([again], LR)
    walk(point, optimizer, steps=20)
    restored.load_state_dict(optimizer.state_dict())
    again.data.copy_(point.data)
    same = walk(point, optimizer, steps=20) == walk(again, restored, steps=20)
    print(f"\nstopped after 20 steps and resumed: {'the same bits' if same else 'another path'}")


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
