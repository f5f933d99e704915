"""What the machine does while it trains: memory and utilisation of CPU and GPU.

Run: ``system = SystemMetrics(device)``, then ``logger.log({**row, **system()}, step)``.

From the standard library and torch alone: psutil would be one more package for two numbers. The names begin with
"system/", and logger.comparable leaves them out.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import torch

MIB = 2**20

log = logging.getLogger(__name__)


class SystemMetrics:
    """Called for the metrics of now; percentages are over the time since the last call.

    Args:
        device: where the model is; only a CUDA device adds to what the CPU has.

    Returns (of a call):
        "system/cpu_memory_mib": resident memory of this process (its peak, where /proc is missing).
        "system/cpu_percent": CPU time of this process by wall time; 100 is one core, 200 two.
        "system/gpu_memory_mib", "system/gpu_peak_memory_mib": held by tensors on the device, now and at most.
        "system/gpu_percent": share of the time in which the device ran a kernel, as its driver says; left out
            where that cannot be asked.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._ask_driver = self.device.type == "cuda"
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        elapsed, used = wall - self._wall, cpu - self._cpu
        self._wall, self._cpu = wall, cpu
        metrics = {"system/cpu_percent": 100 * used / max(elapsed, 1e-9)}
        if (memory := resident_bytes()) is not None:
            metrics["system/cpu_memory_mib"] = memory / MIB
        if self.device.type == "cuda":
            metrics["system/gpu_memory_mib"] = torch.cuda.memory_allocated(self.device) / MIB
            metrics["system/gpu_peak_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / MIB
        if self._ask_driver and (percent := self._gpu_percent()) is not None:
            metrics["system/gpu_percent"] = percent
        return metrics

    def _gpu_percent(self) -> float | None:
        try:
            return float(torch.cuda.utilization(self.device))
        except Exception as error:  # the driver's library has errors of its own; a metric does not end a run
            self._ask_driver = False
            hint = "pip install nvidia-ml-py" if isinstance(error, ImportError) else str(error)
            log.warning("GPU utilisation is left out of the log: %s", hint)
            return None


def resident_bytes() -> int | None:
    """Resident memory of this process; its peak where /proc is missing; None on Windows."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            pages = int(statm.read().split()[1])
    except OSError:
        if sys.platform == "win32":
            return None
        import resource  # POSIX only

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
