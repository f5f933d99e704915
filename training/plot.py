"""The picture of a run: losses, learning rate and gradient norm over the updates.

Run: ``draw_run("runs/demo/metrics.jsonl", "runs/demo/loss.png")``.
"""

from __future__ import annotations

import os
from typing import Any

from training.logger import Row, read_metrics


def draw_run(
    metrics_path: str | os.PathLike[str],
    png_path: str | os.PathLike[str],
    baseline: tuple[float, str] | None = None,
) -> None:
    """Draw what a metrics.jsonl holds, whatever number of processes wrote it.

    Args:
        metrics_path: as TrainerLogger writes it. Values that are not finite are gaps.
        png_path: the picture, replaced if it is there.
        baseline: a loss to get under, in nats, and its name: a dashed line.

    Raises:
        ValueError: there is no row, or a line is none.
        OSError: a file cannot be read or written.
    """
    rows = read_metrics(metrics_path)
    if not rows:
        raise ValueError(f"{metrics_path} has no row to draw")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        3, 1, figsize=(7, 8), sharex=True, layout="constrained", height_ratios=[3, 1, 1]
    )
    try:
        for key, label, style in (("train_loss", "training", "-"), ("val_loss", "validation", "o-")):
            axes[0].plot(*curve(rows, key), style, label=label, ms=4)
        if baseline is not None:
            axes[0].axhline(baseline[0], color="grey", ls="--", label=baseline[1])
        axes[0].set(ylabel="loss (nats)")
        axes[0].legend()
        axes[1].plot(*curve(rows, "lr"))
        axes[1].set(ylabel="learning rate")
        axes[2].plot(*curve(rows, "grad_norm"))
        axes[2].set(ylabel="gradient norm", xlabel="updates")
        if any(norm > 0 for norm in curve(rows, "grad_norm")[1]):
            axes[2].set_yscale("log")  # a spike must not flatten the rest
        for axis in axes:
            axis.grid(alpha=0.3)
        figure.savefig(png_path, dpi=120, format="png")
    finally:
        plt.close(figure)


def curve(rows: list[Row], key: str) -> tuple[list[int], list[Any]]:
    """(updates, values) of the rows that have this column."""
    own = [row for row in rows if key in row]
    return [row["global_step"] for row in own], [row[key] for row in own]
