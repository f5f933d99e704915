"""Tests of resuming: training/state.py, signals.py, resume.py, and Trainer's checkpoints. See also sampler_test.py."""

import inspect
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testcases.training.work import make_batches, weights
from training.checkpoint import CheckpointError, save_checkpoint
from training.resume import find_start, set_aside
from training.signals import StopRequested, StopSignals
from training.state import load_optimizer
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


# ---- killed, and gone on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(("kind", "trials"), [("fp16", 7), ("foreign", 3)])
def test_killed_or_stopped_run_ends_bit_for_bit_as_the_one_that_nobody_disturbed(tmp_path, kind, trials):
    """SIGKILL and SIGTERM inside windows, epochs and evaluations, with dropout, noise, overflow and shuffling."""
    command = [sys.executable, "-m", "testcases.training.killed_run", kind, str(tmp_path), str(trials)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differ" in done.stdout
    if kind == "fp16":
        assert " 0 skipped" not in done.stdout, "the scale was to overflow"


# ---- the file


@pytest.fixture
def saved(make_trainer, tmp_path):
    """(trainer, path): three updates of momentum SGD, saved."""
    options = {"momentum": 0.9, "scheduler": "cosine", "save_dir": tmp_path / "run", "config": {"lr": 0.1}}
    trainer = make_trainer(make_batches(2, 2, 2), make_batches(2), **options)
    trainer.train()
    return trainer, tmp_path / "run" / "epoch_1_step_3.pt"


def test_plain_torch_load_in_a_bare_python_reads_the_keys_that_other_tools_want(saved):
    _, path = saved
    code = (
        "import sys, torch; c = torch.load(sys.argv[1]); print(sorted(c)); "
        "print(c['epoch'], c['global_step'], f\"{c['train_loss']:.4f} {c['val_loss']:.4f}\", c['config'])"
    )
    command = [sys.executable, "-I", "-c", code, str(path)]
    keys, numbers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for key in ("model", "optimizer", "scheduler", "scaler"):
        assert f"{key}_state_dict" in keys
    assert {"rng_state", "data_state_dict", "gradients", "best_metric"} <= set(eval(keys))
    assert numbers.startswith("1 3 ")
    assert "nan" not in numbers
    assert numbers.endswith("{'lr': 0.1}")


def test_best_model_is_the_one_with_the_lowest_validation_loss(make_trainer, tmp_path):
    losses = iter([3.0, 2.0, 4.0, float("nan")])
    trainer = make_trainer(
        make_batches(*[2] * 4), make_batches(2), save_dir=tmp_path, eval_interval=1, async_save=False
    )
    trainer.validate = lambda: {"loss": next(losses), "perplexity": 1.0}
    trainer.train()
    best = torch.load(tmp_path / "best_model.pt")
    assert (best["global_step"], best["val_loss"], best["best_metric"]) == (2, 2.0, 2.0)
    last = torch.load(tmp_path / "epoch_1_step_4.pt")
    assert last["best_metric"] == 2.0, "a resumed run knows what it has to beat"


def test_resumed_trainer_has_everything_and_shares_nothing_with_the_file(saved, make_trainer, tmp_path):
    trainer, path = saved
    options = {"momentum": 0.9, "scheduler": "cosine", "max_epochs": 2}
    resumed = [make_trainer(make_batches(2, 2, 2), make_batches(2), **options) for _ in range(2)]
    for each in resumed:
        torch.rand(3)
        assert each.load_checkpoint(path) == (1, 3)
        assert torch.equal(weights(each.model), weights(trainer.model))
        each.train()
        assert each.global_step == 6
    assert torch.equal(weights(resumed[0].model), weights(resumed[1].model))


def test_reset_optimizer_takes_weights_and_place_and_begins_moments_and_schedule_anew(saved, make_trainer):
    trainer, path = saved
    fresh = make_trainer(
        make_batches(2, 2, 2), make_batches(2), momentum=0.9, scheduler="cosine", lr=0.01, max_epochs=2
    )
    fresh.load_checkpoint(path, reset_optimizer=True)
    assert torch.equal(weights(fresh.model), weights(trainer.model))
    assert (fresh.epoch, fresh.global_step, fresh.progress.schedule_start) == (1, 3, 3)
    assert not fresh.optimizer.state
    assert fresh.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 2), "warmup over 2 updates, anew"


def test_file_of_a_plain_torch_script_loads_with_a_warning_of_what_it_lacks(
    saved, make_trainer, tmp_path, caplog
):
    trainer, _ = saved
    plain = {
        "epoch": 1,
        "global_step": 3,
        "model_state_dict": trainer.model.state_dict(),
        "optimizer_state_dict": trainer.optimizer.state_dict(),
        "scheduler_state_dict": trainer.scheduler.state_dict(),
        "train_loss": 1.0,
        "val_loss": 2.0,
    }
    torch.save(plain, tmp_path / "plain.pt")
    resumed = make_trainer(make_batches(2, 2, 2), momentum=0.9, scheduler="cosine", max_epochs=2)
    with caplog.at_level(logging.WARNING):
        assert resumed.load_checkpoint(tmp_path / "plain.pt") == (1, 3)
    assert "rng_state" in caplog.text
    assert resumed.scheduler.last_epoch == 3
    resumed.train()
    assert (resumed.epoch, resumed.global_step) == (2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["model_state_dict"].popitem(), "is missing"),
        (lambda state: state.update(epoch=-1), "epoch is -1"),
        (lambda state: state["progress"].pop("rows"), "other counters"),
        (lambda state: state["progress"].update(micro_step=2), "micro_step is 2 in a window of 0"),
        (lambda state: state["rng_state"].pop("numpy"), "rng_state has no numpy"),
        (
            lambda state: state["gradients"].update({"lm_head.weight": torch.zeros(1)}),
            "the gradient of lm_head",
        ),
        (lambda state: state["data_state_dict"].update(sampler={}), "ResumableSampler in only one"),
    ],
)
def test_checkpoint_that_does_not_fit_changes_nothing(saved, make_trainer, tmp_path, change, message):
    _, path = saved
    state = torch.load(path)
    change(state)
    save_checkpoint(state, tmp_path / "other.pt")
    trainer = make_trainer(make_batches(2, 2, 2), momentum=0.9, scheduler="cosine")
    before, rng = weights(trainer.model), torch.get_rng_state()
    with pytest.raises(CheckpointError, match=message):
        trainer.load_checkpoint(tmp_path / "other.pt")
    assert torch.equal(weights(trainer.model), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert (trainer.epoch, trainer.global_step) == (0, 0)
    assert not trainer.optimizer.state


def test_float32_moments_of_a_bf16_parameter_keep_their_bits():
    def build() -> torch.optim.AdamW:
        return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])

    one, two = build(), build()
    param = one.param_groups[0]["params"][0]
    moment = torch.tensor([1.0, 1.0 + 2**-20, 3.3])
    one.state[param] = {"step": torch.tensor(1.0), "exp_avg": moment, "exp_avg_sq": moment.clone()}
    load_optimizer(two, one.state_dict())
    state = two.state[two.param_groups[0]["params"][0]]
    assert state["exp_avg"].dtype == torch.float32
    assert torch.equal(state["exp_avg"], moment)


def test_rows_are_synced_before_the_checkpoint_that_counts_them(make_trainer, tmp_path):
    trainer = make_trainer(make_batches(*[2] * 3), save_dir=tmp_path, save_interval=1, async_save=False)
    found = []
    trainer.run_log.on_sync = lambda: found.append(len(list(tmp_path.glob("epoch_*.pt"))))
    trainer.train()
    assert found[:3] == [0, 1, 2]


def test_save_without_a_folder_is_refused(make_trainer):
    with pytest.raises(ValueError, match="needs a save_dir"):
        make_trainer(make_batches(1)).save_checkpoint()


# ---- signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_request_and_the_second_one_is_the_systems(signum):
    before = signal.getsignal(signum)
    with StopSignals() as stop:
        stop.leave_if_asked()
        signal.raise_signal(signum)
        assert signal.getsignal(signum) == signal.SIG_DFL
        with pytest.raises(StopRequested, match=signum.name):
            stop.leave_if_asked()
    assert signal.getsignal(signum) == before


def test_stopped_run_says_so_and_goes_on_in_the_middle_of_a_window(make_trainer, tmp_path):
    options = {"grad_accum_steps": 3, "momentum": 0.9, "dropout": 0.3, "log_interval": 1}
    whole = make_trainer(make_batches(*[2] * 6), **options)
    whole.train()
    trainer = make_trainer(make_batches(*[2] * 6), save_dir=tmp_path, **options)
    calls = iter(range(100))
    trainer.model.register_forward_pre_hook(
        lambda *_: signal.raise_signal(signal.SIGTERM) if next(calls) == 4 else None
    )
    trainer.train()
    assert trainer.stopped_by == "SIGTERM"
    assert (trainer.global_step, trainer.progress.micro_step) == (1, 2), "the micro-step was finished"
    trainer.train()
    assert (trainer.stopped_by, trainer.global_step) == (None, 2)
    assert torch.equal(weights(trainer.model), weights(whole.model))
    resumed = make_trainer(make_batches(*[2] * 6), **options)
    assert resumed.load_checkpoint(tmp_path / "epoch_0_step_1.pt") == (0, 1)
    resumed.train()
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_step_fits_on_a_screen():
    assert len(inspect.getsource(Trainer.train_step).splitlines()) <= 50


# ---- where a command begins


def run_folder(folder: Path, *names: str) -> Path:
    for name in names:
        step = int(name.split("_")[-1]) if name.startswith("epoch") else 9
        save_checkpoint({"model_state_dict": {}, "global_step": step}, folder / f"{name}.pt")
    return folder


def test_auto_takes_the_newest_good_one_and_names_the_bad_one(tmp_path):
    folder = run_folder(tmp_path, "epoch_0_step_99", "epoch_1_step_100", "epoch_1_step_101")
    damaged = folder / "epoch_1_step_101.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    start = find_start("auto", False, folder)
    assert start.path == folder / "epoch_1_step_100.pt"
    assert start.global_step == 100
    assert len(start.notes) == 1
    assert "epoch_1_step_101.pt is damaged" in start.notes[0]
    for name in ("epoch_0_step_99", "epoch_1_step_100"):
        (folder / f"{name}.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="There is no good checkpoint"):
        find_start("auto", False, folder)


def test_auto_in_an_empty_folder_is_a_new_run_and_a_new_run_never_mixes_with_an_old_one(tmp_path):
    start = find_start("auto", False, tmp_path / "missing")
    assert (start.path, start.state) == (None, {})
    assert "a new run" in start.notes[0]
    run_folder(tmp_path, "epoch_0_step_1")
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run: go on with --resume auto"):
        find_start(None, False, tmp_path)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_reset_optimizer_needs_a_checkpoint(tmp_path, resume):
    with pytest.raises(ValueError, match="--reset_optimizer needs"):
        find_start(resume, True, tmp_path)


def test_later_checkpoints_are_set_aside_whole_and_earlier_ones_stay(tmp_path):
    folder = run_folder(tmp_path, "epoch_0_step_2", "epoch_0_step_4", "epoch_1_step_6", "best_model")
    start = find_start(str(folder / "epoch_0_step_4.pt"), False, folder)
    moved = set_aside(start.superseded, folder)
    assert {path.name for path in moved.iterdir() if path.suffix == ".pt"} == {
        "epoch_1_step_6.pt",
        "best_model.pt",
    }
    assert {path.name for path in folder.glob("*.pt")} == {"epoch_0_step_2.pt", "epoch_0_step_4.pt"}
    assert len(list(moved.iterdir())) == 4, "with their digests"
    assert set_aside((), folder) is None
