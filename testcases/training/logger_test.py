"""Tests of metrics.jsonl: training/logger.py."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testcases.training.logged_run import train
from training import logger as logger_module
from training.logger import TrainerLogger, comparable, read_metrics
from training.system import SystemMetrics

ROOT = Path(__file__).resolve().parents[2]


class FullDisk:
    """In the place of a file: takes `room` bytes, then refuses, until `room` is None."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room is None:
            return self.file.write(data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self.file.write(data[: self.room])
        self.room -= count
        return count

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def test_each_row_is_one_object_with_the_step_first_and_names_in_order(tmp_path):
    with TrainerLogger(tmp_path / "new" / "run") as logger:
        logger.log({"lr": 0.5, "train_loss": torch.tensor(1.25), "tokens": 7}, step=3)
        logger.log({"global_step": 3, "val_loss": torch.tensor([2.0])}, step=3)
        assert logger.num_rows == 2
    text = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()
    assert text == (
        '{"global_step": 3, "lr": 0.5, "train_loss": 1.25, "tokens": 7}\n{"global_step": 3, "val_loss": 2.0}\n'
    )


def test_values_that_are_not_finite_are_readable_and_the_file_is_json(tmp_path):
    with TrainerLogger(tmp_path) as logger:
        logger.log({"a": math.nan, "b": math.inf, "c": torch.tensor(-math.inf)}, step=0)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    row = json.loads(logger.path.read_text(), parse_constant=refuse)
    assert row == {"global_step": 0, "a": "nan", "b": "inf", "c": "-inf"}
    [row] = read_metrics(logger.path)
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("metrics", "step", "message"),
    [
        ({"loss": None}, 5, "metric 'loss' must be one number, got None"),
        ({"loss": "low"}, 5, "metric 'loss' must be one number, got 'low'"),
        ({"loss": torch.zeros(2)}, 5, "metric 'loss' must be one number, got tensor"),
        ({}, 5, "at least one name"),
        ({"global_step": 5}, 5, "at least one name"),
        ({"loss": 1.0, "global_step": 4}, 5, "global_step must be step=5, got 4"),
        ({"loss": 1.0}, 4, "step must be an integer >= 5, the last one, got 4"),
        ({"loss": 1.0}, 5.0, "step must be an integer >= 5, the last one, got 5.0"),
    ],
)
def test_bad_row_is_refused_and_leaves_nothing(tmp_path, metrics, step, message):
    with TrainerLogger(tmp_path) as logger:
        logger.log({"loss": 1.0}, step=5)
        with pytest.raises(ValueError, match=message):
            logger.log(metrics, step)
        logger.log({"loss": 2.0}, step=5)
    assert [row["loss"] for row in read_metrics(logger.path)] == [1.0, 2.0]


def test_new_log_replaces_an_older_one(tmp_path):
    train(tmp_path, range(1, 31))
    path = train(tmp_path, range(1, 3))
    assert [row["global_step"] for row in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("resume_step", [0, 5, 10, 19, 20, 40])
def test_resumed_log_equals_that_of_an_uninterrupted_run_byte_for_byte(tmp_path, resume_step):
    whole = train(tmp_path / "whole", range(1, 51)).read_bytes()
    train(tmp_path / "cut", range(1, 42))
    path = train(tmp_path / "cut", range(resume_step + 1, 51), resume_step=resume_step)
    assert path.read_bytes() == whole


def test_row_count_decides_between_rows_of_one_step(tmp_path):
    """The checkpoint was made after the first of three rows of step 2; without the count, b comes twice."""
    with TrainerLogger(tmp_path) as logger:
        logger.log({"a": 1}, 1)
        logger.log({"a": 2}, 2)
        saved = logger.num_rows
        logger.log({"b": 2}, 2)
        logger.log({"c": 2}, 2)
    with TrainerLogger(tmp_path, resume_step=2, resume_rows=saved) as logger:
        assert logger.num_rows == 2
        logger.log({"b": 2}, 2)
    assert [list(row)[1] for row in read_metrics(logger.path)] == ["a", "a", "b"]


@pytest.mark.parametrize("piece", [b'{"global_step": 12, "tr', b'{"global_step": 12}', b"\xff", b"{"])
def test_half_line_of_a_killed_run_is_dropped(tmp_path, piece, caplog):
    path = train(tmp_path, range(1, 12))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(piece)
    assert len(read_metrics(path)) == 12
    with TrainerLogger(tmp_path, resume_step=20):
        pass
    assert path.read_bytes() == whole
    assert not caplog.records, "that is what a kill leaves: no reason for a warning"


@pytest.mark.parametrize("line", [b"\0\0\0\n", b"[]\n", b'{"step": 3}\n', b'{"global_step": "3"}\n', b"\n"])
def test_damaged_line_ends_the_log_with_a_warning_and_a_copy(tmp_path, line, caplog):
    path = train(tmp_path, range(1, 4))
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + line + lines[2]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="line 2 is no line of a log"):
        read_metrics(path)
    with TrainerLogger(tmp_path, resume_step=3):
        pass
    assert path.read_bytes() == lines[0]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged
    assert "damaged from line 2" in caplog.text


def test_rows_of_a_killed_process_are_in_the_file(tmp_path):
    code = (
        "import os, signal, sys; from training.logger import TrainerLogger\n"
        "logger = TrainerLogger(sys.argv[1]); logger.log({'a': 1}, 1); logger.log({'a': 2}, 2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("room", [0, 1, 20, 45])
def test_full_disk_is_said_once_and_no_row_is_missing_afterwards(tmp_path, caplog, room):
    whole = train(tmp_path / "whole", range(1, 9)).read_bytes()
    with TrainerLogger(tmp_path / "full") as logger:
        disk = logger._file._file = FullDisk(logger._file._file, room)
        for step in range(1, 9):
            if step == 6:
                assert [record.levelname for record in caplog.records] == ["WARNING"]
                assert "No space left on device" in caplog.text
                assert "TRAINING GOES ON" in caplog.text
                disk.room = None
            logger.log({"train_loss": 1 / step, "lr": 0.5}, step)
    assert logger.path.read_bytes() == whole
    assert "no row is missing" in caplog.text


def test_disk_that_stays_full_costs_the_last_rows_and_no_error(tmp_path, caplog):
    with TrainerLogger(tmp_path) as logger:
        logger.log({"a": 1}, 1)
        logger._file._file = FullDisk(logger._file._file, 3)
        logger.log({"a": 2}, 2)
        logger.log({"a": 3}, 3)
    assert [row["a"] for row in read_metrics(logger.path)] == [1]
    assert "lacks its last 2 rows" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_real_enospc_does_not_end_the_training(tmp_path, caplog):
    with TrainerLogger(tmp_path) as logger, open("/dev/full", "wb", buffering=0) as full:
        own, logger._file._file = logger._file._file, full
        logger.log({"a": 1}, 1)
        logger._file._file = own
        logger.log({"a": 2}, 2)
    assert [row["a"] for row in read_metrics(logger.path)] == [1, 2]
    assert "No space left on device" in caplog.text


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^Cannot write to .*file: File exists\.$"):
        TrainerLogger(tmp_path / "file")


def test_sync_reaches_the_disk_and_its_error_is_a_warning(tmp_path, monkeypatch, caplog):
    synced = []
    monkeypatch.setattr(logger_module.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with TrainerLogger(tmp_path) as logger:
        logger.log({"a": 1}, 1)
        logger.sync()
        assert synced == [logger.path.stat().st_size]

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(logger_module.os, "fsync", fail)
        logger.sync()
    assert "Cannot sync" in caplog.text


def test_comparable_rows_have_no_measured_columns(tmp_path):
    row = {
        "global_step": 1,
        "train_loss": 2.0,
        "tokens_per_second": 9.0,
        "system/cpu_percent": 99.0,
        "tokens": 4,
    }
    assert comparable([row]) == [{"global_step": 1, "train_loss": 2.0, "tokens": 4}]
    system = SystemMetrics()()
    assert comparable([{"global_step": 1, **system}]) == [{"global_step": 1}]


def test_log_that_has_lost_rows_says_so(tmp_path, caplog):
    train(tmp_path, range(1, 4))
    TrainerLogger(tmp_path, resume_step=5, resume_rows=5).close()
    assert "has 3 of the 5 rows that the run had" in caplog.text
