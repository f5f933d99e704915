"""Tests of training in several processes: two gloo ranks against one process; stops, refusals, lost ranks.

distributed_ranks.py is what the ranks do; all of it shares one launch, since importing torch is slow.
"""

import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch

from testcases.training.distributed_run import (
    ROWS,
    UPDATES_PER_EPOCH,
    build,
    observe,
    run_group,
)
from testcases.training.killed_run import difference
from training.distributed import ManyRanks, Ranks
from training.sampler import ResumableSampler, ShareSampler, resumable_loader

pytestmark = [
    pytest.mark.limit(120),
    pytest.mark.skipif(sys.platform == "win32", reason="no signals to a child there"),
]
# Two ranks add the same float32 terms in another order: some ulp of each gradient (4e-8 of 0.5 here). AdamW divides
# by the root of the second moment, so that where a gradient is near 0 these become a share of a step (3e-7 of lr =
# 1e-2). Ten times that is allowed; a mean instead of a sum, or a row twice, is wrong by 1e-2 and more.
GRADS = {"rtol": 0.0, "atol": 5e-7}
WEIGHTS = {"rtol": 0.0, "atol": 3e-6}
LOSS = 3e-6


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> tuple[Path, list[dict]]:
    """(folder, what each rank saw): one launch of distributed_run.py; its files of one process are made here."""
    folder = tmp_path_factory.mktemp("group")
    return folder, run_group(folder)


@pytest.fixture(scope="module")
def alone() -> dict:
    """What one process sees of the same training."""
    return observe(build(Ranks()))


def assert_close_rows(got: list[dict], want: list[dict]) -> None:
    """Rows of the log: counters equal, measured numbers close."""
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            exact = type(value) is int or name == "lr"
            assert ours[name] == (
                value if exact else pytest.approx(value, rel=0, abs=LOSS * max(1, abs(value)))
            ), name


# ---- two ranks compute what one process computes


def test_two_ranks_make_the_updates_of_one_process(group, alone):
    """Unequal token counts, three micro-batches a window, a shorter last one, a micro-batch with one row."""
    for rank in group[1]:
        equal = rank["equal"]
        assert len(equal["weights"]) == 2 * UPDATES_PER_EPOCH == len(alone["weights"])
        for step, (ours, theirs) in enumerate(zip(equal["grads"], alone["grads"], strict=True)):
            assert torch.allclose(ours, theirs, **GRADS), f"gradients of update {step + 1}"
        for step, (ours, theirs) in enumerate(zip(equal["weights"], alone["weights"], strict=True)):
            assert torch.allclose(ours, theirs, **WEIGHTS), f"weights after update {step + 1}"
        assert_close_rows(equal["history"], alone["history"])


def test_ranks_have_the_same_weights_and_rows_bit_for_bit(group):
    first, second = (rank["equal"] for rank in group[1])
    for name in ("grads", "weights", "history"):
        assert difference(second[name], first[name], name) is None


def test_ranks_share_the_rows_out_and_none_is_seen_twice(group, alone):
    shares = [rank["equal"]["rows"] for rank in group[1]]
    assert Counter(chain(*shares)) == Counter(alone["rows"]) == Counter([*range(ROWS), *range(ROWS)])
    assert [len(share) for share in shares] == [26, 24], "the last micro-batch of an epoch has one row"


def test_gradients_travel_once_an_update_from_buckets_that_stay_as_they_are(group):
    """The first pass only arranges the buckets; K = 3 micro-batches, and only the last of a window is summed."""
    for rank in group[1]:
        layouts = rank["equal"]["layouts"]
        assert len(layouts) == 1 + 2 * UPDATES_PER_EPOCH, "one bucket, one sum an update"
        assert all(layout == layouts[1] for layout in layouts[2:]), "else a resumed run adds in another order"
        assert layouts[0] != layouts[1], "DDP has arranged them anew"


def test_inf_on_one_rank_makes_all_ranks_skip_and_halve_the_scale(group):
    for rank in group[1]:
        found = rank["one_inf"]
        assert found["skipped"] == 1
        assert found["scales"] == [65536.0, 32768.0, 32768.0, 32768.0, 32768.0]
        assert found["global_step"] == 4
        assert len(found["weights"]) == 4
    first, second = (rank["one_inf"] for rank in group[1])
    assert difference(second["weights"], first["weights"]) is None


# ---- stopping and going on


def test_signal_to_one_rank_stops_all_before_the_next_window_and_they_go_on_to_the_same_bits(group):
    """With dropout, so each rank has random numbers of its own to go on with."""
    ranks = group[1]
    for rank in ranks:
        found = rank["stopped"]
        assert (found["stopped_by"], found["stopped_at"], found["micro_step"]) == ("SIGTERM", 2, 0)
        for name in ("grads", "weights", "history", "rows"):
            assert difference(found["parts"][name], found["whole"][name], name) is None


def test_ranks_drop_out_other_elements_and_rank_0_those_of_one_process(group):
    first, second = (rank["equal"]["generator"] for rank in group[1])
    assert not torch.equal(first, second)
    build(Ranks())
    assert torch.equal(first, torch.get_rng_state())


def test_one_process_two_ranks_one_process_take_every_sample_once_an_epoch(group, alone):
    folder, ranks = group
    last = build(Ranks(), folder / "last")
    last.load_checkpoint(folder / "middle" / "epoch_1_step_5.pt")
    after = observe(last)
    parts = [rank["go_on"]["middle"] for rank in ranks]
    middle = sorted(chain(*(part["rows"] for part in parts)))
    first = alone["rows"][:24]  # two windows of three micro-batches of four rows
    assert Counter([*first, *middle, *after["rows"]]) == Counter([*range(ROWS), *range(ROWS)])
    assert sorted(alone["rows"][24:49]) == middle, (
        "the last row of the first epoch, two windows of the second"
    )
    assert alone["rows"][49:] == after["rows"]
    for ours, theirs in zip([*parts[0]["weights"], *after["weights"]], alone["weights"][2:], strict=True):
        assert torch.allclose(ours, theirs, **WEIGHTS)
    assert [part["stopped_by"] for part in parts] == ["SIGTERM", "SIGTERM"], "inside an interval of the log"
    assert_close_rows(after["history"], alone["history"][-2:])


def test_window_that_one_process_left_open_is_continued_by_two(group, alone):
    """Two of three micro-steps made: their gradients count once, and the third micro-batch is shared out."""
    for rank in group[1]:
        inside = rank["go_on"]["inside"]
        for ours, theirs in zip(inside["grads"], alone["grads"][1:], strict=True):
            assert torch.allclose(ours, theirs, **GRADS)
        for ours, theirs in zip(inside["weights"], alone["weights"][1:], strict=True):
            assert torch.allclose(ours, theirs, **WEIGHTS)
        assert_close_rows(inside["history"], alone["history"])


def test_file_of_two_ranks_is_read_by_a_bare_python_and_names_no_wrapper(group):
    path = group[0] / "middle" / "epoch_1_step_5.pt"
    code = (
        "import sys, torch; c = torch.load(sys.argv[1]); print(len(c['ranks']), c['global_step'], "
        "any('module.' in name for name in c['model_state_dict']), 'rng_state' in c)"
    )
    command = [sys.executable, "-I", "-c", code, str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2 5 False True\n"
    check = subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent, capture_output=True)
    assert check.returncode == 0


def test_rank_that_does_not_answer_ends_the_wait_of_the_others_with_a_sentence(group):
    waiting, failed = (rank["lost"]["said"] for rank in group[1])
    assert failed == ["ArithmeticError: this rank fails"]
    assert len(waiting) == 2
    assert waiting[0].startswith("PeerLost: lost contact with another process while adding up gradients (")
    assert waiting[1].startswith("PeerLost: lost contact with another process while adding up numbers (")


# ---- refusals


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("setting", "rank 1 has another configuration than rank 0: lr 0.02 instead of 0.01"),
        ("data", "rank 1: No such file or folder: "),
        ("flag", "rank 1: unknown flag --lrr: did you mean --lr?"),
        ("content", "rank 1 has another training data than rank 0: "),
        ("checkpoint", "rank 1 has another checkpoint than rank 0: epoch_0_step_2.pt (step 2, SHA-256 "),
        ("batch", "batch_size must be >= 2, a row for each process, got 1"),
    ],
)
def test_ranks_that_mean_something_else_end_with_one_sentence_and_write_nothing(group, name, sentence):
    (code, said, wrote), (other_code, other_said, other_wrote) = (rank["refusals"][name] for rank in group[1])
    assert (code, other_code) == (2, 2)
    assert said.startswith(sentence)
    assert said.count("\n") == 1
    assert other_said == "", "rank 0 speaks for all"
    assert not wrote
    assert not other_wrote


def test_loader_that_does_not_share_out_is_refused():
    loader = resumable_loader([{"labels": torch.zeros(1)}] * 4, 2)  # type: ignore[arg-type]
    for train_loader in (loader, [{"input_ids": torch.zeros(1, 1), "labels": torch.zeros(1, 1)}]):
        with pytest.raises(
            ValueError, match="process 0 of 1, and this is process 1 of 2: all would train on the"
        ):
            build_with(train_loader, ManyRanks(1, 2))
    share = resumable_loader([{"labels": torch.zeros(1)}] * 4, 2, rank=1, world_size=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="process 1 of 2, and this is process 0 of 1"):
        build_with(share, Ranks())


def build_with(train_loader, ranks: Ranks):
    trainer = build(Ranks())
    return type(trainer)(trainer.model, trainer.optimizer, train_loader, ranks=ranks)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_shares_of_all_ranks_are_the_micro_batches_of_one_process(world_size):
    """11 rows in micro-batches of 5; from position 5 on, as after a resume."""
    samplers = [ResumableSampler(11, seed=1) for _ in range(world_size)]
    for sampler in samplers:
        sampler.advance(5)
    order = samplers[0].order()
    shares = [list(ShareSampler(each, 5, rank, world_size)) for rank, each in enumerate(samplers)]
    for batch, want in enumerate([order[5:10], order[10:]]):
        assert sorted(i for share in shares for i in share[batch] if i >= 0) == sorted(want)
        assert all(len(share[batch]) >= 1 for share in shares), "each takes part"
