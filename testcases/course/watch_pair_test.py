"""Two processes share a run's tests: what one sees of it, and what becomes of it when one of them ends badly.

Run: pytest testcases/course/watch_pair_test.py
"""

import re

import pytest

from course.watch.pair import Tickets, worth_it
from testcases.course.watch_test import gone, in_place, solved

pytestmark = pytest.mark.skipif(not worth_it(16), reason="one core: a run has nobody to share its tests with")

# Each test waits, so that neither process can take all of them before the other has begun.
MANY = '''

import time
import warnings


@pytest.mark.task("1.2")
@pytest.mark.limit(1)
@pytest.mark.parametrize("n", range(24))
def test_many(lesson, expect, n):
    """√n²."""
    time.sleep({2: 0.3, 3: 0.5}.get(n, 0.02))  # whoever takes which of them, reports come in another order
    expect.close("root", lesson.optimizer.root(n * n), float(n), source="√n²", atol=1e-9, because="rounding")
'''
IN_HELPER = "os.getpid() != os.getpgid(0)"  # the run leads a process group, and its helper is in it


@pytest.fixture
def crowd(toy):
    """The toy lesson with 24 more tests, of task 1.2."""
    tests = toy.tests / "advanced_test.py"
    tests.write_text(tests.read_text(encoding="utf-8") + MANY, encoding="utf-8")
    return toy


def root(*lines):
    """A body of the function: these lines, then what is right."""
    return "\n    ".join(
        ["import os, warnings", *lines, "if x < 0:\n        raise ValueError(x)", "return x**0.5"]
    )


def test_report_is_that_of_one_process(crowd, watch, tmp_path):
    """Failures in the order of the tests, warnings of both processes, all outcomes kept."""
    pids = tmp_path / "pids"
    tell = f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')"
    strange = "type('Strange', (UserWarning,), {})"  # a class that cannot be pickled
    lines = [
        tell,
        "if x > 0:",
        "    warnings.warn(f'root of {x}', " + strange + ")",
        "if x in (4, 9, 25, 121):",
        "    return -x",
    ]
    in_place(crowd.skeleton, solved(crowd, root=root(*lines)))
    alone = crowd.pytest("-q", "tutorial/stage01_toy/lesson01_toy")
    pids.unlink()
    screen = watch("01")
    for _ in range(2):  # the second time, the lengths of the tests are known
        shown = screen.until("lesson01_toy · Toy", "40 of 100 points", " in ")
        assert len(set(pids.read_text().split())) == 2
        named = re.compile(r"^_+ (test_\S+) _+$|^  (1\.\d .*|\w.* points)$", re.MULTILINE)
        assert named.findall(shown) == named.findall(alone.out)
        assert len(named.findall(shown)) >= 4 + 3
        counts = re.search(r"\d+ failed, \d+ passed(, \d+ skipped)?, \d+ warnings", alone.out)[0]
        assert counts in shown
        assert "root of 16" in shown
        pids.unlink()
        in_place(crowd.skeleton, crowd.skeleton.read_text() + "# again\n")


def test_first_word_comes_when_both_have_ended_their_part(crowd, watch):
    """Eight more tests of task 1.1, which fails; the rest takes longer than one waits without a word."""
    tests = crowd.tests / "basic_test.py"
    more = MANY.replace("1.2", "1.1").replace("range(24)", "range(8)").replace("test_many", "test_few")
    tests.write_text(tests.read_text() + more.replace("optimizer.root(n * n)", "optimizer.double(n)"))
    in_place(crowd.skeleton, text := solved(crowd, "return x / 3 + 1", root("import time; time.sleep(0.02)")))
    screen = watch("01")
    screen.until("60 of 100 points", " in ")
    in_place(crowd.skeleton, text + "# again\n")
    shown = screen.until("lesson01_toy · Toy", "the rest of the lesson follows", "60 of 100 points", " in ")
    assert shown.count("the rest of the lesson follows") == 1
    said = "task 1.1: 0 passed, 10 failed, 0 todo; the rest of the lesson follows"
    assert len(re.findall(rf"^[F.]+\n{said}\n", shown, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("os._exit(3)", "Your code ended the whole process, with status 3, in test_"),
        ("os.kill(os.getpid(), 11)", "The process died of SIGSEGV in test_"),
        ("os.kill(os.getpid(), 9)", "The process died of SIGKILL in test_"),  # as where memory has run out
    ],
    ids=["exit", "crash", "kill"],
)
def test_death_of_the_helper_is_that_of_the_run(crowd, watch, ending, said):
    in_place(crowd.skeleton, text := solved(crowd, root=root(f"if x > 0 and {IN_HELPER}:", "    " + ending)))
    screen = watch("01")
    assert "points" not in screen.until(said)
    in_place(crowd.skeleton, text.replace(ending, "pass"))
    screen.until("lesson01_toy · Toy", "100 of 100 points", " in ")


def test_endless_loops_of_the_helper_are_stopped_or_killed(crowd, watch, tmp_path):
    """One that the time limit ends, and one that swallows it; then nothing of them is left."""
    pid = tmp_path / "pid"
    loop = [
        f"if x > 0 and {IN_HELPER}:",
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))",
        "    while True:",
        "        try:",
        "            while True:",
        "                x = x + 0",
        "        except BaseException:",
        "            raise",
    ]
    in_place(crowd.skeleton, text := solved(crowd, root=root(*loop)))
    screen = watch("01")
    shown = screen.until(
        "more than 1 s: a loop without an end?", "not all tests were run", "did not end in time", " in "
    )
    assert gone(int(pid.read_text()))
    assert "1 failed" in shown
    in_place(crowd.skeleton, text.replace("            raise\n", "            pass\n"))
    screen.until("lesson01_toy · Toy", "did not stop after 1 s and was killed. Is there a loop")
    assert gone(int(pid.read_text()))


def test_tickets_are_given_out_once_and_in_order():
    """To two readers by turns, which are then told that there are no more."""
    tickets = Tickets(300)
    one, other = iter(tickets), iter(tickets)
    got = [next(one), next(other), next(other), *one]
    assert got == list(range(300))
    assert list(other) == []
