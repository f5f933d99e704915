"""Tests of TensorBoard and W&B behind the log: training/trackers.py, with logger.py."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testcases.training.logged_run import train
from training.logger import TrainerLogger, read_metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("package", "option"), [("tensorboard", "use_tensorboard"), ("wandb", "use_wandb")])
def test_missing_package_is_one_sentence(tmp_path, monkeypatch, package, option):
    before = train(tmp_path, range(1, 4)).read_bytes()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{option} needs a package: pip install {package}$"):
        TrainerLogger(tmp_path, **{option: True})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before, "the older log is untouched"


def test_tracker_that_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.raises(ValueError, match=r"^WandbRun cannot start: [^\n]*sideways[^\n]*$"):
        TrainerLogger(tmp_path, use_wandb=True)


def test_neither_is_imported_without_being_asked_for(tmp_path):
    code = (
        "import sys; from training.logger import TrainerLogger; TrainerLogger(sys.argv[1]).close()\n"
        "sys.exit('wandb' in sys.modules or 'tensorboard' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False).returncode == 0


def test_tracker_that_fails_is_said_once_and_switched_off(tmp_path, caplog):
    class Broken:
        calls = 0

        def log(self, values, step):
            self.calls += 1
            raise RuntimeError("no connection")

        def close(self):
            raise AssertionError("it is off")

    tracker = Broken()
    with TrainerLogger(tmp_path) as logger:
        logger._trackers.append(tracker)
        for step in (1, 2, 3):
            logger.log({"a": step}, step)
    assert tracker.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed and is off from here on: no connection"
    ]
    assert len(read_metrics(logger.path)) == 3


def scalars(log_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("resume_step", [0, 12, 20])
def test_tensorboard_shows_a_resumed_run_like_an_uninterrupted_one(tmp_path, resume_step):
    pytest.importorskip("tensorboard")
    train(tmp_path / "whole", range(1, 31), use_tensorboard=True)
    train(tmp_path / "cut", range(1, 26), use_tensorboard=True)
    assert len(scalars(tmp_path / "cut")["train_loss"]) == 25
    time.sleep(1.1)  # event files sort by the second they were begun in; no process resumes within one
    train(tmp_path / "cut", range(resume_step + 1, 31), use_tensorboard=True, resume_step=resume_step)
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")


def test_tensorboard_of_a_new_log_forgets_the_older_one(tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path, range(1, 6), use_tensorboard=True)
    time.sleep(1.1)
    train(tmp_path, range(3, 5), use_tensorboard=True)
    assert [step for step, _ in scalars(tmp_path)["train_loss"]] == [3, 4]


def wandb_history(folder: Path) -> list[dict]:
    """The rows in an offline run's file, its own columns left out.

    The file is in LevelDB's log format: a header of 7 bytes, then records of crc (4), length (2), kind (1: whole)
    and a protobuf. A run this small fits into the first block of 32 KiB.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("*.wandb")
    data, at, rows = path.read_bytes(), 7, []
    assert len(data) < 32768
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1
        record = Record()
        record.ParseFromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({name: row[name] for name in ("_step", "train_loss", "val_loss") if name in row})
    return rows


def test_offline_wandb_run_is_resumed_as_one_run_without_the_later_rows(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for variable in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{variable}_DIR", str(tmp_path / "home"))
    try:
        train(tmp_path / "whole", range(1, 31), use_wandb=True)
        train(tmp_path / "cut", range(1, 26), use_wandb=True)
        train(tmp_path / "cut", range(13, 31), use_wandb=True, resume_step=12)
    finally:
        sys.modules["wandb"].teardown()
    [whole] = (tmp_path / "whole" / "wandb").glob("offline-run-*")
    [resumed] = (tmp_path / "cut" / "wandb").glob("offline-run-*")
    [superseded] = (tmp_path / "cut" / "wandb" / "superseded").iterdir()
    assert resumed.name.rpartition("-")[2] == superseded.name.rpartition("-")[2], "one run, one id"
    assert wandb_history(resumed) == wandb_history(whole)
    assert [row["_step"] for row in wandb_history(resumed)] == list(range(1, 31))
