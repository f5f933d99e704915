"""`course watch`, on a terminal of its own: saves of every kind in, verdicts out.

Run: pytest testcases/course/watch_test.py
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testcases.course import warm
from testcases.course.screen import PATIENCE

UNSOLVED = 'raise NotImplementedError("task 1.1: double the number")'
UNSOLVED_ROOT = 'raise NotImplementedError("task 1.2: refuse negative numbers")'
ROOT_BODY = "if x < 0:\n        raise ValueError(x)\n    return x**0.5"


def in_place(path, text):
    path.write_text(text, encoding="utf-8")


def by_rename(path, text):
    """As atomic writers do."""
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def by_backup(path, text):
    """As vim does: for a moment there is no file under that name."""
    path.rename(path.with_name(path.name + "~"))
    time.sleep(0.1)
    path.write_text(text, encoding="utf-8")


def solved(toy, double="return x * 2", root=UNSOLVED_ROOT):
    """The text of the skeleton with the two tasks written so."""
    return toy.skeleton.read_text(encoding="utf-8").replace(UNSOLVED, double).replace(UNSOLVED_ROOT, root)


def is_alive(pid):
    """Does the process exist, and is it more than the remains of one that nobody has waited for?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid):
    """Wait until the process has ended."""
    end = time.monotonic() + PATIENCE
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_alive(pid)


def test_every_kind_of_save_gets_its_verdict(toy, watch):
    """The last two saves have the same size and the same second, as byte code files tell sources apart."""
    screen = watch()
    screen.until("Lesson 01, Toy", "task 1.1", "optimizer.py:6", "and the verdict comes here")
    right, wrong, raising = solved(toy), solved(toy, "return x * 3"), solved(toy, "return 1 / 0")
    in_place(toy.skeleton, right)
    shown = screen.until(
        "optimizer.py · lesson01_toy · Toy", "2 passed", "Done now: 1.1, 40 points more.", " in "
    )
    assert "TODO  1.2  optimizer.py:13" in shown
    by_rename(toy.skeleton, raising)
    assert "ZeroDivisionError" in screen.until("optimizer.py · lesson01_toy", "Next: task 1.1", " in ")
    by_backup(toy.skeleton, right)
    shown = screen.until("optimizer.py · lesson01_toy", "Next: task 1.2", " in ")
    assert "deleted" not in shown
    for text in (wrong, right):
        toy.skeleton.write_text(text, encoding="utf-8")
        os.utime(toy.skeleton, (1_700_000_000, 1_700_000_000 + (text == right) / 10))
        shown = screen.until("optimizer.py · lesson01_toy", "Next: task", " in ")
        assert ("got         9.0" in re.sub(" +", " " * 9, shown)) == (text == wrong)
        assert ("40 of 100 points" in shown) == (text == right)


def test_current_task_is_tested_first_and_told_at_once_where_the_rest_takes_long(toy, watch):
    in_place(toy.skeleton, text := solved(toy, "import time; time.sleep(0.3); return x * 2"))
    screen = watch("1")
    screen.until("40 of 100 points", " in ")
    in_place(toy.skeleton, text.replace(UNSOLVED_ROOT, "return 1 + x"))
    screen.until(
        "lesson01_toy",
        "\nFF\ntask 1.2: 0 passed, 2 failed, 0 todo; the rest of the lesson follows\n..",
        "FAILURES",
    )


def test_syntax_error_is_one_message_and_the_next_save_is_tested(toy, watch):
    screen = watch("01")
    screen.until("the verdict comes here")
    in_place(toy.skeleton, solved(toy, "return x * ("))
    shown = screen.until("No test was run.")
    name = "tutorial/stage01_toy/lesson01_toy/optimizer.py"
    assert f"{name}:7: SyntaxError: '(' was never closed\n" in shown
    assert shown.count("SyntaxError") == 1
    assert re.search(r"^ +return x \* \(\n +\^$", shown, re.MULTILINE)
    toy.skeleton.write_bytes(b"x = 1\0\n")
    assert f"{name}: " in screen.until("null bytes", "No test was run.")
    by_rename(toy.skeleton, shown_again := "def double(x):\n    return x + x\n")
    assert "40 of 100 points" in screen.until("40 of 100 points", " in ")
    assert toy.skeleton.read_text() == shown_again


def test_deleted_file_is_named_and_several_files_are_one_run(toy, watch):
    in_place(toy.skeleton, text := solved(toy))
    screen = watch("01")
    screen.until("40 of 100 points", " in ")
    toy.skeleton.unlink()
    shown = screen.until("optimizer.py (deleted) · lesson01_toy", "is missing", "0 of 100 points", " in ")
    assert "Traceback" not in shown
    for name in ("optimizer.py", "helper.py", ".#optimizer.py", "notes.txt"):
        in_place(toy.skeleton.with_name(name), text)
    assert " · helper.py, optimizer.py · lesson01_toy" in screen.until("40 of 100 points", " in ")


def test_endless_loops_are_stopped_killed_or_replaced(toy, watch):
    """A loop that the time limit ends, one that swallows it, and one during which a file is saved."""
    loop = "while x == 2:\n        {}\n    " + ROOT_BODY
    deaf = loop.format(
        "try:\n            while True:\n                x = x + 0\n        except BaseException:\n            pass"
    )
    plain, stubborn = (solved(toy, root=text) for text in (loop.format("pass"), deaf))
    in_place(toy.skeleton, plain)
    screen = watch("01")
    shown = screen.until("more than 1 s: a loop without an end?", "did not end in time", " in ")
    assert "not all tests were run" in shown
    in_place(toy.skeleton, stubborn)
    screen.until("test_root_squared_is_the_number did not stop after 1 s and was killed.")
    in_place(toy.skeleton, stubborn + "# once more\n")
    screen.until("lesson01_toy", "\n.", end_of_line="")  # a test has passed, the next ones hang
    in_place(toy.skeleton, stubborn.replace("x == 2", "x == 3"))
    screen.until("Saved again: starting over.", "100 of 100 points")


def test_code_that_ends_or_breaks_its_process_harms_nothing(toy, watch):
    screen = watch("01")
    screen.until("the verdict comes here")
    in_place(toy.skeleton, text := solved(toy, "import os; os._exit(0)"))
    shown = screen.until("Your code ended the whole process, with status 0, in test_double_is_twice.")
    assert "points" not in shown
    in_place(toy.skeleton, text.replace("os._exit(0)", "os.kill(os.getpid(), 11)"))
    screen.until("The process died of SIGSEGV in test_double_is_twice.")
    in_place(toy.skeleton, text.replace("import os; os._exit(0)", "return 2 * x"))
    screen.until("40 of 100 points", "Done now: 1.1", " in ")


def test_changed_tests_are_collected_again(toy, watch):
    in_place(toy.skeleton, solved(toy))
    screen = watch("01")
    screen.until("40 of 100 points", " in ")
    tests = toy.tests / "advanced_test.py"
    text = tests.read_text(encoding="utf-8")
    more = '\n\n@pytest.mark.task("1.1")\ndef test_new(lesson, expect):\n    """x = 5."""\n'
    in_place(tests, text + more + '    expect.equal("2x", lesson.optimizer.double(5), 11, source="a wish")\n')
    screen.until("advanced_test.py · lesson01_toy", "test_new", "0 of 100 points", " in ")
    in_place(tests, text + "(\n")
    screen.until("SyntaxError", "The tests cannot be collected; see above.")
    in_place(tests, text)
    assert "test_new" not in screen.until("40 of 100 points", " in ")


def second_lesson(toy):
    """A copy of the first lesson, with its tasks renumbered."""
    for tree in ("tutorial", "solutions"):
        source = toy.root / tree / "stage01_toy" / "lesson01_toy"
        target = source.with_name("lesson02_twin")
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        for path in target.rglob("*.*"):
            if path.suffix in (".py", ".toml"):
                text = re.sub(r"\b1\.([12])\b", r"2.\1", path.read_text(encoding="utf-8"))
                path.write_text(text.replace('"Toy"', '"Twin"'), encoding="utf-8")
    mistakes = toy.mistakes.read_text(encoding="utf-8").replace('task = "1.', 'task = "2.')
    toy.mistakes.with_name("lesson02_twin.toml").write_text(mistakes, encoding="utf-8")
    return toy.root / "tutorial/stage01_toy/lesson02_twin/optimizer.py"


def test_it_goes_on_with_the_next_lesson_and_back_where_a_file_is_saved(toy, watch):
    twin = second_lesson(toy)
    second = twin.read_text(encoding="utf-8").replace(UNSOLVED.replace("1.1", "2.1"), "return x * 2")
    screen = watch()
    screen.until("Lesson 01, Toy", "the verdict comes here")
    in_place(toy.skeleton, done := solved(toy, root=ROOT_BODY))
    screen.until("Lesson 01 is done.", "Lesson 02, Twin", "write  task 2.1", "lesson02_twin/optimizer.py:6")
    in_place(twin, second)
    screen.until("optimizer.py · lesson02_twin · Twin", "40 of 100 points", "Done now: 2.1", " in ")
    in_place(toy.skeleton, done + "# tidied\n")
    screen.until(
        "lesson01_toy", "100 of 100 points", "Lesson 01 is done.", "write  task 2.2", "verdict comes"
    )
    in_place(twin, second.replace(UNSOLVED_ROOT.replace("1.2", "2.2"), ROOT_BODY))
    screen.until("lesson02_twin", "Lesson 02 is done.", "Every lesson is done.")


def test_ctrl_c_ends_everything_with_status_0(toy, watch, tmp_path):
    """While a run is in a loop that hears no signal; the run and the collector end too."""
    pids = tmp_path / "pids"
    tell = f"import os; open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}\\n')\n"
    loop = "    while True:\n        try:\n            while True:\n                x = x + 0\n"
    loop += "        except BaseException:\n            pass"
    in_place(toy.skeleton, solved(toy, tell + loop))
    screen = watch("01", "--lang", "zh")
    screen.until("正在监视你的文件")
    run, collector = wait_for_pids(pids)
    screen.type(b"\x03")
    shown = screen.until("已停止监视。")
    assert "Traceback" not in shown
    assert "KeyboardInterrupt" not in shown
    screen.process.join(PATIENCE)
    assert screen.process.exitcode == 0
    assert gone(run)
    assert gone(collector)


def test_nothing_stays_behind_when_the_command_is_killed(toy, tmp_path):
    """Without a terminal, whose end would be a signal to all."""
    pids = tmp_path / "pids"
    text = f"import os; open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}\\n'); os._exit(0)"
    in_place(toy.skeleton, solved(toy, text))
    log = str(tmp_path / "log")
    where = ("course", ["watch", "01"], str(toy.root), str(toy.root), toy._environment(), log, log)
    process = toy.server.Process(target=warm.run_module, args=where)
    process.start()
    _, collector = wait_for_pids(pids)
    assert is_alive(collector)
    os.kill(process.pid, signal.SIGKILL)
    assert gone(collector)
    process.join()


def wait_for_pids(path):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if path.exists() and path.read_text().endswith("\n"):
            return [int(word) for word in path.read_text().split()]
        time.sleep(0.01)
    pytest.fail("the run did not start")


def test_without_fork_each_run_is_a_fresh_process(toy):
    in_place(toy.skeleton, solved(toy, "import os; open('pid', 'w').write(str(os.getpid())); return x + x"))
    program = (
        "import os; del os.fork; from course.__main__ import main; raise SystemExit(main(['watch', '1']))"
    )
    watcher = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=toy.root,
        env={**toy._environment(), "COURSE_LANG": "zh"},
        stdout=subprocess.PIPE,
        text=True,
    )
    shown = ""
    for line in watcher.stdout:
        shown += line
        if "新完成：1.1" in line:
            break
    watcher.send_signal(signal.SIGINT)
    shown += watcher.communicate(timeout=PATIENCE)[0]
    assert watcher.returncode == 0, shown
    assert "得分 40 / 100" in shown
    assert "已停止监视。" in shown
    assert (toy.root / "pid").read_text() != str(watcher.pid)
