"""A line on the machine that was measured on. Used by the benchmarks: a figure without it says little."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def facts() -> str:
    """CPU, its cores, system, Python, torch, threads and load, in one line."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} thread{load}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
