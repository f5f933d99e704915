"""The judge of `python -m testcases.torture bad_inputs` notices what it is there for; matrix_test.py runs a sample."""

import sys
import time

import pytest

from testcases.torture import bad_checkpoints, bad_inputs, bad_trial
from testcases.torture.bad_files import MARKER, Case, Place, archive, pickled
from testcases.torture.bad_inputs import cases
from testcases.torture.bad_trial import attempt, forked, judge, tree

pytestmark = pytest.mark.skipif(bad_inputs.reason_to_skip() is not None, reason="needs fork and /proc")


@pytest.fixture
def place(tmp_path) -> Place:
    """A run that was never made: this process may have run a backward pass, and no child of it may run another."""
    place = Place(tmp_path / "input", tmp_path / "run", tmp_path, tmp_path / "text.txt")
    place.folder.mkdir()
    place.run.mkdir()
    (place.run / "epoch_0_step_2.pt").write_bytes(b"good")
    return place


def run(place: Place, program, make=lambda place: []) -> list[str]:
    """What the judge says of a program that should refuse, and does something else."""
    case = Case("checkpoint file", "planted", make, "no")
    before = tree(place.folder)
    problems = judge(case, forked(make(place), place, 0, program))
    return problems + [path for path in tree(place.folder) if path not in before]


def test_every_kind_has_its_number_of_inputs_and_no_two_have_one_name():
    every = [(case.kind, case.name) for case in cases()]
    assert len(set(every)) == len(every) >= 60
    for kind, bar in bad_inputs.BARS.items():
        assert sum(each == kind for each, _ in every) >= bar, kind


def refuses(argv: list[str]) -> int:
    print("no such thing", file=sys.stderr)
    return 2


def test_a_program_that_refuses_is_accepted(place):
    assert run(place, refuses) == []


def traceback(argv: list[str]) -> int:
    raise KeyError("no")


def talks(argv: list[str]) -> int:
    print("no\nand no", file=sys.stderr)
    return 2


def prints(argv: list[str]) -> int:
    print("training …")
    return refuses(argv)


def accepts(argv: list[str]) -> int:
    refuses(argv)
    return 0


def hoards(argv: list[str]) -> int:
    waste = bytearray(200 * 2**20)
    waste[:: 2**12] = bytes(len(waste[:: 2**12]))
    return refuses(argv)


def toils(argv: list[str]) -> int:
    while time.process_time() < 2.1:
        pass
    return refuses(argv)


def clears_the_screen(argv: list[str]) -> int:
    print("no \x1b[2J", file=sys.stderr)
    return 2


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (traceback, "a traceback: KeyError"),
        (talks, "2 lines on stderr"),
        (prints, "also printed: 'training"),
        (accepts, "exit status 0"),
        (hoards, "MiB for a file of 0.0 MiB"),
        (toils, "2."),
        (clears_the_screen, "not a sentence to read"),
    ],
)
def test_a_program_that_does_something_else_is_noticed(place, program, problem):
    assert any(problem in found for found in run(place, program)), run(place, program)


def test_code_that_runs_and_a_good_file_that_changes_are_noticed(place, monkeypatch):
    """The loader is replaced by a pickle that trusts."""
    import pickle
    import zipfile

    def trusts(argv: list[str]) -> int:
        pickle.loads(zipfile.ZipFile(argv[-1]).read("archive/data.pkl"))
        place.good().write_bytes(b"")
        return refuses(argv)

    def make(place: Place) -> list[str]:
        return [str(archive(place.folder / "x.pt", pickled({"x": bad_checkpoints.CODE})))]

    monkeypatch.setattr(bad_trial, "forked", lambda argv, place, size: forked(argv, place, size, trusts))
    _, problems = attempt(Case("checkpoint file", "planted", make, "no"), place)
    assert len(problems) == 1
    assert problems[0].startswith("code of the file ran; touched: ")
    assert MARKER in problems[0]
    assert place.good().name in problems[0]
