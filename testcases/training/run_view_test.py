"""Tests of what people look at: training/system.py, progress.py and plot.py."""

import io
import math
import os
import re
import time
from pathlib import Path

import pytest
import torch

from training.logger import TrainerLogger
from training.plot import draw_run
from training.progress import ProgressBar
from training.system import SystemMetrics

ROOT = Path(__file__).resolve().parents[2]


def test_system_metrics_are_those_of_this_process():
    system = SystemMetrics("cpu")
    block = bytearray(os.urandom(1)) * (64 * 2**20)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    busy = system()
    assert set(busy) == {"system/cpu_percent", "system/cpu_memory_mib"}
    assert 20 < busy["system/cpu_percent"] < 100 * (os.cpu_count() or 1) + 20
    assert busy["system/cpu_memory_mib"] > 64
    del block
    time.sleep(0.2)
    assert system()["system/cpu_percent"] < busy["system/cpu_percent"] / 2, "since the last call"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a file of Linux")
def test_memory_falls_when_it_is_given_back():
    system = SystemMetrics()
    block = b"x" * (256 * 2**20)
    high = system()["system/cpu_memory_mib"]
    [resident] = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert high == pytest.approx(int(resident) / 1024, abs=32), "resident, not virtual"
    del block
    assert system()["system/cpu_memory_mib"] < high - 200, "not the peak"


def test_cuda_metrics_are_asked_of_the_device_and_a_driver_without_an_answer_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 42)
    metrics = SystemMetrics("cuda:1")()
    assert metrics["system/gpu_memory_mib"] == 3
    assert metrics["system/gpu_peak_memory_mib"] == 5
    assert metrics["system/gpu_percent"] == 42.0

    def fail(device):
        raise ModuleNotFoundError("No module named 'pynvml'")

    monkeypatch.setattr(torch.cuda, "utilization", fail)
    system = SystemMetrics("cuda:1")
    assert "system/gpu_percent" not in system()
    assert "system/gpu_percent" not in system()
    assert [r.getMessage() for r in caplog.records] == [
        "GPU utilisation is left out of the log: pip install nvidia-ml-py"
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_system_metrics_of_a_real_gpu():
    system = SystemMetrics("cuda")
    block = torch.zeros(64 * 2**20, device="cuda")
    metrics = system()
    assert metrics["system/gpu_memory_mib"] >= 256
    del block
    assert system()["system/gpu_memory_mib"] <= metrics["system/gpu_memory_mib"] - 256


def test_bar_writes_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with ProgressBar(30, start=10, stream=stream) as bar:
        bar.update(
            {
                "global_step": 20,
                "train_loss": 2.5,
                "lr": 5e-3,
                "skipped_steps": 2,
                "tokens_per_second": 1234.5,
            }
        )
        bar.update({"global_step": 20, "val_loss": math.nan})
    assert stream.getvalue() == (
        "step 20/30  loss 2.500  lr 5.00e-03  tokens/s 1,234  skipped 2\nstep 20/30  val_loss nan\n"
    )


def test_bar_redraws_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with ProgressBar(30, start=10, stream=stream) as bar:
        bar.update({"global_step": 20, "train_loss": 2.5})
        bar.update({"global_step": 30, "val_loss": 1.25})
    assert "30/30" in stream.getvalue()
    assert "val_loss 1.250" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_picture_shows_both_losses_the_rate_and_the_norm_of_a_run_with_gaps(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    with TrainerLogger(tmp_path) as logger:
        for step, loss in enumerate((3.0, math.nan, 2.0), start=1):
            logger.log({"train_loss": loss, "lr": 0.1 * step, "grad_norm": loss}, step)
        logger.log({"val_loss": 2.5}, 3)
    drawn = {}
    close = plt.close

    def look(figure) -> None:
        for axis in figure.axes:
            drawn[axis.get_ylabel()] = {
                line.get_label(): list(line.get_xydata()[:, 1]) for line in axis.lines
            }
        close(figure)

    monkeypatch.setattr(plt, "close", look)
    draw_run(logger.path, tmp_path / "loss.png", baseline=(2.4, "bigram model"))
    losses = drawn["loss (nats)"]
    assert losses["training"] == pytest.approx([3.0, math.nan, 2.0], nan_ok=True)
    assert losses["validation"] == [2.5]
    assert losses["bigram model"] == [2.4, 2.4]
    assert next(iter(drawn["learning rate"].values())) == pytest.approx([0.1, 0.2, 0.3])
    assert next(iter(drawn["gradient norm"].values())) == pytest.approx([3.0, math.nan, 2.0], nan_ok=True)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_picture_of_an_empty_log_is_an_error(tmp_path):
    with TrainerLogger(tmp_path) as logger:
        pass
    with pytest.raises(ValueError, match="has no row to draw"):
        draw_run(logger.path, tmp_path / "loss.png")


def test_picture_of_a_run_whose_every_value_is_nan_can_be_drawn(tmp_path):
    with TrainerLogger(tmp_path) as logger:
        logger.log({"train_loss": math.nan, "grad_norm": math.nan}, 0)
    draw_run(logger.path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").exists()
