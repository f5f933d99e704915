"""Tests of CheckpointManager (training/checkpoint.py): keeping, the best, saving beside the training, kills."""

import errno
import math
import os
import threading

import pytest
import torch

from testcases.training.checkpoint_faults import flip, killed_at, litter, make_state, value_of
from training import checkpoint
from training.checkpoint import (
    CheckpointManager,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)


def save(
    manager: CheckpointManager, step: int, metric: float | None = None, value: float | None = None
) -> None:
    manager.save(make_state(step if value is None else value), 1, step, metric)
    assert manager.wait() == []


def steps(manager: CheckpointManager) -> list[int]:
    return sorted(int(path.stem.split("_")[3]) for path in manager.directory.glob("epoch_*.pt"))


def names(manager: CheckpointManager) -> list[str]:
    return sorted(os.listdir(manager.directory))


# ---- keeping


@pytest.mark.parametrize("saved", [(98, 99, 100), (9800, 9900, 10000), (1, 2, 3)])
def test_newest_by_number_stay_whatever_the_clock_and_the_letters_say(tmp_path, saved):
    manager = CheckpointManager(tmp_path, keep_last=2)
    for age, step in enumerate(saved):
        save(manager, step)
        for path in tmp_path.iterdir():  # the newer a file, the older it claims to be
            os.utime(path, (1e9 - 1e6 * age, 1e9 - 1e6 * age))
    assert steps(manager) == list(saved[1:])
    found = CheckpointManager(tmp_path).latest_valid()
    assert (found.path, found.passed_over) == (tmp_path / f"epoch_1_step_{saved[-1]}.pt", [])


def test_larger_epoch_is_newer_at_the_same_step(tmp_path):
    manager = CheckpointManager(tmp_path, asynchronous=False)
    for epoch in (9, 10, 8):
        manager.save(make_state(1.0), epoch, 50)
    assert manager.latest_valid().path == tmp_path / "epoch_10_step_50.pt"


def test_only_good_checkpoint_survives_newer_ones_that_are_damaged_or_not_finite(tmp_path):
    manager = CheckpointManager(tmp_path, keep_last=1, asynchronous=False)
    manager.save(make_state(1.0), 1, 1)
    for step in (2, 3, 4, 5):
        manager.save(make_state(math.nan), 1, step)
    assert steps(manager) == [1, 5]  # one of the bad ones stays to be looked into
    found = manager.latest_valid()
    assert found.path == tmp_path / "epoch_1_step_1.pt"
    assert "inf or NaN" in found.passed_over[0]
    assert any("inf or NaN" in sentence for sentence in manager.poll())

    save_checkpoint(make_state(6.0), tmp_path / "epoch_1_step_6.pt")
    flip(tmp_path / "epoch_1_step_6.pt", 700)
    (tmp_path / "epoch_1_step_7.pt").write_bytes(b"")
    manager.prune()
    assert steps(manager) == [1, 6, 7]  # 5 is beyond the last bad one; 7 has no digest and is not ours
    found = manager.latest_valid()
    assert found.path == tmp_path / "epoch_1_step_1.pt"
    assert [reason.split()[0].rsplit("_", 1)[1] for reason in found.passed_over] == ["7.pt", "6.pt"]
    manager.save(make_state(8.0), 1, 8)
    assert steps(manager) == [7, 8]


def test_damage_after_a_file_was_found_good_is_noticed(tmp_path):
    manager = CheckpointManager(tmp_path, keep_last=2)
    for step in (1, 2):
        save(manager, step)
    assert manager.latest_valid().path.name == "epoch_1_step_2.pt"
    flip(tmp_path / "epoch_1_step_2.pt", 900)
    found = manager.latest_valid()
    assert found.path.name == "epoch_1_step_1.pt"
    assert "damaged" in found.passed_over[0]
    for step in (3, 4):
        save(manager, step)
    assert steps(manager) == [3, 4]


def test_files_of_other_names_and_what_others_saved_are_left_alone(tmp_path):
    others = [
        "epoch_x_step_1.pt",
        "epoch_1_step_2.pt.bak",
        "model.pt",
        "notes.sha256",
        ".cache.tmp",
        ".x.saving",
    ]
    for name in others:
        (tmp_path / name).write_text("mine")
    torch.save(make_state(1.0), tmp_path / "epoch_1_step_1.pt")
    manager = CheckpointManager(tmp_path, keep_last=1)
    for step in (2, 3, 4):
        save(manager, step)
    assert set(others) | {"epoch_1_step_1.pt"} == set(names(manager)) - {
        "epoch_1_step_4.pt",
        "epoch_1_step_4.pt.sha256",
    }


def test_just_saved_one_stays_where_an_older_run_has_gone_further(tmp_path):
    for step in (100, 200):
        save_checkpoint(make_state(step), tmp_path / f"epoch_1_step_{step}.pt")
    manager = CheckpointManager(tmp_path, keep_last=1)
    save(manager, 50)
    assert steps(manager) == [50, 200]


def test_empty_and_missing_folders_have_nothing(tmp_path):
    manager = CheckpointManager(tmp_path / "none")
    assert manager.latest_valid().path is None
    assert manager.prune() == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("change", "name"), [({"keep_last": 0}, "keep_last"), ({}, "global_step")])
def test_impossible_numbers_are_refused(tmp_path, change, name):
    with pytest.raises(ValueError, match=name):
        CheckpointManager(tmp_path, **change).save({}, 0, -1)


# ---- the best


def test_best_is_the_smallest_finite_metric_also_for_the_run_that_goes_on(tmp_path):
    for step, metric in enumerate([math.inf, 2.0, math.nan, 1.0, 1.0, None, -math.inf, 3.0], start=1):
        save(CheckpointManager(tmp_path, keep_last=1), step, metric)  # a new run each time
    best = load_checkpoint(tmp_path / "best_model.pt")
    assert (best["global_step"], best["best_metric"]) == (4, 1.0)
    assert load_checkpoint(tmp_path / "epoch_1_step_8.pt")["best_metric"] == 1.0
    assert steps(CheckpointManager(tmp_path)) == [8]


def test_best_model_of_a_plain_script_counts_and_a_damaged_one_does_not(tmp_path):
    path = tmp_path / "best_model.pt"
    torch.save(make_state(1.0), path)  # val_loss 1.5
    manager = CheckpointManager(tmp_path)
    assert manager.best_metric == 1.5
    save(manager, 2, metric=1.6)
    assert value_of(load_checkpoint(path)) == 1.0
    save(manager, 3, metric=1.4)
    assert value_of(load_checkpoint(path)) == 3.0
    flip(path, 800)
    manager = CheckpointManager(tmp_path)
    assert manager.best_metric == math.inf
    assert "damaged" in manager.poll()[0]


def test_best_model_is_what_to_go_on_from_when_nothing_else_is_good(tmp_path):
    manager = CheckpointManager(tmp_path)
    save(manager, 1, metric=1.0)
    flip(tmp_path / "epoch_1_step_1.pt", 800)
    found = manager.latest_valid()
    assert (found.path, len(found.passed_over)) == (tmp_path / "best_model.pt", 1)


# ---- beside the training


def test_training_that_goes_on_at_once_does_not_reach_the_file(tmp_path, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    real = checkpoint.write_snapshot

    def slow(state, path) -> None:
        started.set()
        assert go_on.wait(10)
        real(state, path)

    monkeypatch.setattr(checkpoint, "write_snapshot", slow)
    manager = CheckpointManager(tmp_path)
    state = make_state(1.0)
    path = manager.save(state, 1, 1)
    assert started.wait(10)
    assert not path.exists(), "save must not wait for the file"
    for tensor in (*state["model_state_dict"].values(), *state["optimizer_state_dict"]["state"][0].values()):
        tensor.fill_(7.0)
    state["optimizer_state_dict"]["param_groups"][0]["lr"] = 9.0
    go_on.set()
    assert manager.wait() == []
    loaded = load_checkpoint(path)
    assert value_of(loaded) == 1.0
    assert loaded["optimizer_state_dict"]["param_groups"][0]["lr"] == 0.1


def test_next_save_waits_for_the_one_before_and_never_mixes_the_two(tmp_path):
    manager = CheckpointManager(tmp_path, keep_last=30)
    state = make_state(0.0, size=200)
    for step in range(10):
        for tensor in (
            *state["model_state_dict"].values(),
            *state["optimizer_state_dict"]["state"][0].values(),
        ):
            tensor.fill_(step)
        manager.save(state, 1, step)
    assert manager.wait() == []
    for step in range(10):
        assert value_of(load_checkpoint(tmp_path / f"epoch_1_step_{step}.pt")) == step


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_failed_save_is_told_and_nothing_else_changes(tmp_path, caplog, asynchronous, code):
    manager = CheckpointManager(tmp_path, asynchronous=asynchronous)
    manager.save(make_state(1.0), 1, 1, metric=2.0)
    assert manager.wait() == []
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fault() -> None:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda *_: fault())
        manager.save(make_state(2.0), 1, 2, metric=1.0)
        sentences = manager.wait()
    assert [os.strerror(code) in sentence for sentence in sentences] == [True, True]
    assert "epoch_1_step_2.pt was not saved" in sentences[1]
    assert sentences[1] in caplog.text
    assert manager.poll() == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert manager.best_metric == 2.0
    save(manager, 3, metric=1.5)
    assert load_checkpoint(tmp_path / "best_model.pt")["global_step"] == 3


def test_folder_that_cannot_be_made_is_a_warning_and_not_the_end(tmp_path):
    (tmp_path / "file").write_text("")
    manager = CheckpointManager(tmp_path / "file" / "checkpoints")
    manager.save(make_state(1.0), 1, 1)
    assert "was not saved" in manager.wait()[0]


def test_state_that_safe_loading_would_refuse_raises_in_the_caller(tmp_path):
    with pytest.raises(ValueError, match=r"state\.x is a object"):
        CheckpointManager(tmp_path).save({"x": object()}, 1, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills by fork")
def test_kill_anywhere_in_save_best_and_rotation_leaves_a_good_one_and_never_goes_back(tmp_path):
    number, reached = 0, True
    while reached:
        folder = tmp_path / str(number)
        manager = CheckpointManager(folder, keep_last=1, asynchronous=False)
        manager.save(make_state(1.0), 1, 1, metric=2.0)

        def work(folder=folder) -> None:
            CheckpointManager(folder, keep_last=1, asynchronous=False).save(make_state(2.0), 1, 2, metric=1.0)

        reached = killed_at(number, work)
        after = CheckpointManager(folder, keep_last=1)
        found = after.latest_valid()
        assert value_of(load_checkpoint(found.path)) in ((1.0, 2.0) if reached else (2.0,))
        assert found.passed_over == []
        best = load_checkpoint(folder / "best_model.pt")
        assert (value_of(best), best["best_metric"]) in ((1.0, 2.0), (2.0, 1.0))
        verify_checkpoint(folder / "best_model.pt")
        save(after, 3)
        assert litter(folder) == []
        assert steps(after) == [3]
        assert len(names(after)) == 4, "no digest without its file"
        number += 1
    assert number > 16


def test_kill_between_the_two_files_of_a_deletion_leaves_no_file_without_digest(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, keep_last=1)
    save(manager, 1)
    monkeypatch.setattr(checkpoint, "digest_path", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.delete_checkpoint(tmp_path / "epoch_1_step_1.pt")
    monkeypatch.undo()
    assert names(manager) == ["epoch_1_step_1.pt.sha256"]
    save(manager, 2)
    assert names(manager) == ["epoch_1_step_2.pt", "epoch_1_step_2.pt.sha256"]


def test_two_managers_in_one_folder_lose_nothing(tmp_path):
    managers = [CheckpointManager(tmp_path, keep_last=3) for _ in range(2)]
    for step in range(1, 9):
        for manager, epoch in zip(managers, (1, 2), strict=True):
            manager.save(make_state(step), epoch, step, metric=1 / step)
    assert [manager.wait() for manager in managers] == [[], []]
    for path in tmp_path.glob("*.pt"):
        verify_checkpoint(path)
    assert {"epoch_1_step_8.pt", "epoch_2_step_8.pt"} <= set(names(managers[0]))
    assert litter(tmp_path) == []
