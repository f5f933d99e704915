"""Tests of `python -m training pretrain --resume …`: killed, stopped, damaged, changed."""

import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from testcases.training.killed_run import difference
from testcases.training.work import TINY, rows, start
from training.__main__ import main
from training.checkpoint import CheckpointManager
from training.logger import comparable
from training.model import GPT

FLAGS = ["--max_steps", "120", "--log_interval", "2", "--eval_interval", "30", "--save_interval", "4"]
FLAGS += ["--grad_accum_steps", "3", "--dropout", "0.1", "--use_amp", "--amp_dtype", "fp16"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of a run of FLAGS that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    text = folder / "small.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. 0123456789\n" * 55)  # as small_file
    assert main(["pretrain", *TINY, *FLAGS, "--data", str(text), "--output_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.limit(60)
@pytest.mark.skipif(sys.platform == "win32", reason="no signals to a child there")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_process_goes_on_with_resume_auto_as_if_nothing_had_happened(
    small_file, tmp_path, capsys, uninterrupted, signum, code
):
    flags, output_dir = [*FLAGS, "--data", str(small_file)], tmp_path / "run"
    process = start(*flags, "--output_dir", str(output_dir))
    metrics = output_dir / "metrics.jsonl"
    deadline = time.monotonic() + 50
    while not (metrics.exists() and metrics.read_text().count("\n") >= 9) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if code > 0:
        assert f"Stopped by {signum.name} after " in err
        assert "--resume auto goes on from here" in err
        assert "metrics.jsonl, loss.png and checkpoints" in out
    assert 0 < torch.load(CheckpointManager(output_dir).latest_valid().path)["global_step"] < 120
    assert main(["pretrain", *TINY, *flags, "--output_dir", str(output_dir), "--resume", "auto"]) == 0
    assert "resume  " in capsys.readouterr().out
    assert repr(comparable(rows(output_dir))) == repr(comparable(rows(uninterrupted)))
    last = next(uninterrupted.glob("epoch_*_step_120.pt")).name
    got, want = torch.load(output_dir / last), torch.load(uninterrupted / last)
    for part in ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict"):
        assert difference(got[part], want[part], part) is None


def test_ctrl_c_saves_says_so_and_exits_with_130(small_file, tmp_path, capsys, monkeypatch):
    calls = iter(range(100))
    forward = GPT.forward

    def interrupted(self: GPT, input_ids: torch.Tensor) -> torch.Tensor:
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return forward(self, input_ids)

    monkeypatch.setattr(GPT, "forward", interrupted)
    flags = ["--data", str(small_file), "--output_dir", str(tmp_path), "--grad_accum_steps", "3"]
    assert main(["pretrain", *TINY, *flags]) == 130
    message = "Stopped by SIGINT after 1 of 1000 updates, 2 micro-batches into the next. Everything is in "
    assert message in capsys.readouterr().err
    assert (tmp_path / "epoch_0_step_1.pt").exists()


def test_stop_that_could_not_be_saved_does_not_say_that_it_was(small_file, tmp_path, capsys, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    def interrupted(self: GPT, input_ids: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGTERM)
        return forward(self, input_ids)

    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", interrupted)
    monkeypatch.setattr("training.checkpoint.write_snapshot", full_disk)
    assert main(["pretrain", *TINY, "--data", str(small_file), "--output_dir", str(tmp_path)]) == 143
    err = capsys.readouterr().err
    assert "THIS COULD NOT BE SAVED: --resume auto goes on from the beginning" in err


def test_longer_run_with_other_settings_says_what_has_changed(small_file, tmp_path, capsys, caplog):
    command = [
        "pretrain",
        *TINY,
        "--data",
        str(small_file),
        "--output_dir",
        str(tmp_path),
        "--resume",
        "auto",
    ]
    assert main([*command, "--max_steps", "3"]) == 0
    assert "a new run" in caplog.text
    assert main([*command, "--max_steps", "5", "--lr", "0.1"]) == 0
    assert "lr: 0.005 → 0.1" in caplog.text
    assert "max_steps: 3 → 5" in caplog.text
    assert [row["global_step"] for row in rows(tmp_path)] == [3, 3, 5, 5]


def test_reset_optimizer_keeps_the_weights_and_spreads_the_new_schedule_over_what_is_left(
    small_file, tmp_path
):
    command = ["pretrain", *TINY, "--data", str(small_file), "--log_interval", "1", "--scheduler", "linear"]
    command += ["--min_lr_ratio", "0", "--warmup_steps", "0", "--save_interval", "2"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*command, "--max_steps", "4", "--output_dir", str(first)]) == 0
    middle = str(first / "epoch_0_step_2.pt")
    reset = [*command, "--max_steps", "6", "--lr", "0.5", "--output_dir", str(second)]
    assert main([*reset, "--resume", middle, "--reset_optimizer"]) == 0
    rates = [row["lr"] for row in rows(second) if "lr" in row]
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125]), "updates 3 to 6"
    shutil.copytree(second, tmp_path / "third", ignore=shutil.ignore_patterns("*_6.pt*", "best*"))
    reset[-1] = str(tmp_path / "third")
    assert main([*reset, "--resume", "auto"]) == 0, "a reset run is resumed on its own schedule"
    assert comparable(rows(tmp_path / "third")) == comparable(rows(second))


def test_earlier_checkpoint_by_its_path_sets_the_later_ones_aside_and_cuts_the_log(small_file, tmp_path):
    """Saved after update 44, the last of the epoch, and before the epoch's last row, which has the same step."""
    command = ["pretrain", *TINY, "--data", str(small_file), "--output_dir", str(tmp_path)]
    command += ["--save_interval", "22", "--max_steps", "50"]
    assert main(command) == 0
    before = comparable(rows(tmp_path))
    assert main([*command, "--resume", str(tmp_path / "epoch_0_step_44.pt")]) == 0
    aside = {path.name for path in (tmp_path / "superseded-1").glob("*.pt")}
    assert aside == {"epoch_1_step_50.pt", "best_model.pt"}
    assert comparable(rows(tmp_path)) == before


def test_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(small_file, tmp_path, capsys, caplog):
    command = ["pretrain", *TINY, "--data", str(small_file), "--output_dir", str(tmp_path)]
    command += ["--save_interval", "2", "--max_steps", "6"]
    assert main(command) == 0
    want = torch.load(tmp_path / "epoch_0_step_6.pt")["model_state_dict"]
    with (tmp_path / "epoch_0_step_6.pt").open("r+b") as file:
        file.write(b"garbage")
    capsys.readouterr()
    assert main([*command, "--resume", "auto"]) == 0
    assert "epoch_0_step_6.pt is damaged" in caplog.text
    assert "epoch_0_step_4.pt: 4 updates" in capsys.readouterr().out
    assert difference(torch.load(tmp_path / "epoch_0_step_6.pt")["model_state_dict"], want) is None
