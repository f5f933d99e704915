"""Kills and errors inside one save: training/durable.py, by way of save_checkpoint."""

import errno
import os
import re
import threading
from itertools import count
from pathlib import Path

import pytest
import torch

from testcases.training.checkpoint_faults import fault_at, killed_at, litter, make_state, value_of
from training import durable
from training.checkpoint import (
    CheckpointManager,
    digest_path,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)

ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EROFS]


def fail(number: int):
    def fault() -> None:
        raise OSError(number, os.strerror(number))

    return fault


def operations(path: Path) -> list[str]:
    """The operations of one save over the file that is there."""
    with fault_at(None) as done:
        save_checkpoint(make_state(2.0), path)
    return done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills by fork")
@pytest.mark.parametrize("before", ["a pair", "nothing", "a plain torch file"])
@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_kill_at_every_operation_leaves_the_old_or_the_new_one_and_the_next_save_cleans_up(
    tmp_path, before, torn
):
    folder, number, reached = tmp_path / "0", 0, True
    while reached:
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "epoch_1_step_1.pt"
        if before == "a pair":
            save_checkpoint(make_state(1.0), path)
        elif before == "a plain torch file":
            torch.save(make_state(1.0), path)
        reached = killed_at(number, lambda path=path: save_checkpoint(make_state(2.0), path), torn)
        if path.exists():
            assert value_of(load_checkpoint(path)) in ((1.0, 2.0) if reached else (2.0,))
            if before == "a pair" or not reached:
                verify_checkpoint(path)
        else:
            assert before == "nothing"
            assert reached
        save_checkpoint(make_state(3.0), path)
        assert value_of(load_checkpoint(path)) == 3.0
        assert sorted(os.listdir(folder)) == [path.name, digest_path(path).name]
        assert len(digest_path(path).read_text().splitlines()) == 1
        number += 1
    assert number - 1 >= (7 if before == "nothing" else 10)  # the protocol has that many operations


@pytest.mark.parametrize("code", ERRORS, ids=[errno.errorcode[code] for code in ERRORS])
def test_error_at_every_operation_raises_or_completes_and_leaves_no_litter(tmp_path, code):
    path = tmp_path / "epoch_1_step_1.pt"
    save_checkpoint(make_state(2.0), path)
    names = operations(path)
    renamed = (
        len(names) - 1 - names[::-1].index("write") - 1
    )  # up to the fsync of the folder after the rename
    for number, name in enumerate(names):
        save_checkpoint(make_state(1.0), path)
        before = digest_path(path).read_bytes()
        with fault_at(number, fail(code), torn=True):
            if name == "fsync":  # answered by writing everything once more
                save_checkpoint(make_state(2.0), path)
            else:
                with pytest.raises(OSError, match=re.escape(os.strerror(code))):
                    save_checkpoint(make_state(2.0), path)
        saved = name == "fsync" or number > renamed
        assert value_of(load_checkpoint(path)) == (2.0 if saved else 1.0)
        assert saved or digest_path(path).read_bytes() == before
        assert litter(tmp_path) == []


def test_failed_fsync_is_answered_with_a_new_file_and_not_with_another_fsync(tmp_path):
    path = tmp_path / "epoch_1_step_1.pt"
    clean = operations(path)
    path.unlink()
    digest_path(path).unlink()
    first = clean.index("fsync")
    with fault_at(first, fail(errno.EIO)) as done:
        save_checkpoint(make_state(2.0), path)
    assert done == clean[: first + 1] + clean


def test_fsync_that_always_fails_raises_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "epoch_1_step_1.pt"
    save_checkpoint(make_state(1.0), path)
    monkeypatch.setattr(os, "fsync", lambda _: fail(errno.EIO)())
    with pytest.raises(OSError, match="Input/output") as caught:
        save_checkpoint(make_state(2.0), path)
    assert caught.value.errno == errno.EIO
    assert value_of(load_checkpoint(path)) == 1.0
    assert litter(tmp_path) == []


def test_full_disk_under_a_large_checkpoint_is_told_as_such_and_not_as_an_error_of_torch(tmp_path):
    with fault_at(0, fail(errno.ENOSPC)), pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(make_state(1.0, size=600), tmp_path / "x.pt")  # more than one buffer
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_best_that_was_replaced_before_the_error_is_the_one_to_beat(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, asynchronous=False)
    manager.save(make_state(1.0), 1, 1, metric=1.0)
    renames = count(1)
    real = os.replace
    with monkeypatch.context() as patch:  # the third rename is that of the digest, behind the file's
        patch.setattr(os, "replace", lambda *names: fail(errno.EIO)() if next(renames) == 3 else real(*names))
        manager.save(make_state(2.0), 1, 2, metric=0.5)
    assert "best_model.pt was not saved" in manager.poll()[0]
    manager.save(make_state(3.0), 1, 3, metric=0.8)
    assert value_of(load_checkpoint(tmp_path / "best_model.pt")) == 2.0


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data)[:100]))
    save_checkpoint(make_state(1.0), tmp_path / "x.pt")
    assert value_of(load_checkpoint(tmp_path / "x.pt")) == 1.0


def test_data_is_synced_before_its_name_and_the_name_before_the_save_ends(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(make_state(1.0), path)
    pair = ["write", "fsync", "replace", "fsync"]
    done = operations(path)
    assert done == ["write", "fsync", *pair, "replace", "fsync", *pair]


def test_two_savers_wait_for_each_other_and_a_temporary_file_in_use_is_not_litter(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    errors = []

    def save_often(value: float) -> None:
        try:
            for _ in range(10):
                save_checkpoint(make_state(value), path)
                assert value_of(load_checkpoint(path)) in (1.0, 2.0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save_often, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    verify_checkpoint(path)
    monkeypatch.setattr(durable, "LOCK_TIMEOUT", 0.05)
    with durable.exclusive(tmp_path), pytest.raises(TimeoutError, match="another process"):
        save_checkpoint(make_state(3.0), path)
