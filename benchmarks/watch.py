"""How long `course watch` takes from a save to the verdict, lesson by lesson.

    python benchmarks/watch.py                   lessons 01-07
    python benchmarks/watch.py 05 08 --saves 15
    python benchmarks/watch.py --check           exit status 1 where a median is above 0.5 s

In a copy of the course whose student files are the solutions, a file is saved again and again; the clock runs from
the end of the write to the last line of the complete report. `mistake`: the same with the first mistake of the
lesson's catalogue in the file, so that the report holds failures and a diagnosis. The first verdict, for which modules
are still being imported, is shown apart. `cold` is a plain `pytest` on the same lesson. Needs a system with fork.
"""

import argparse
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from course.mistakes import read_catalogue, write_patched  # noqa: E402
from course.registry import Lesson, find_lesson  # noqa: E402
from course.skeleton import without_markers  # noqa: E402

LIMIT = 0.5  # seconds
PATIENCE = 120.0
_LAST_LINE = re.compile(r"\d+ (passed|failed).* in [\d.]+s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Save to verdict in `course watch`.")
    parser.add_argument("lessons", nargs="*", default=[f"{n:02}" for n in range(1, 8)])
    parser.add_argument("--saves", type=int, default=7, help="saves that count, after the first")
    parser.add_argument("--check", action="store_true", help=f"fail where a median is above {LIMIT} s")
    options = parser.parse_args()
    print(
        f"{'lesson':<32}{'cold':>7}{'first':>8}{'median':>8}{'best':>7}{'worst':>7}{'mistake':>9}   seconds"
    )
    slow = []
    with tempfile.TemporaryDirectory(prefix="watch-benchmark-") as folder:
        repo = copy_course(Path(folder) / "repo")
        for name in options.lessons:
            lesson = find_lesson(name)
            right = solve(repo, lesson)
            cold = cold_run(repo, lesson)
            first, *times, wrong = verdicts(repo, lesson, right, options.saves)
            median = statistics.median(times)
            row = zip((cold, first, median, min(times), max(times), wrong), (7, 8, 8, 7, 7, 9), strict=True)
            print(
                f"{lesson.name:<32}" + "".join(f"{seconds:{width}.2f}" for seconds, width in row), flush=True
            )
            slow += [lesson.name] if max(median, wrong) > LIMIT else []
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; median of {options.saves} saves")
    if slow:
        print(f"above {LIMIT} s: {', '.join(slow)}")
    return 1 if slow and options.check else 0


def copy_course(target: Path) -> Path:
    """A copy in which files may be written."""
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("course", "tutorial", "solutions", "training", "testcases"):
        shutil.copytree(ROOT / name, target / name, ignore=unwanted)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, target / name)
    return target


def solve(repo: Path, lesson: Lesson) -> dict[Path, str]:
    """The solution as the student's own code; returns the files and their texts."""
    folder = repo / "tutorial" / lesson.path
    texts = {folder / p.name: without_markers(p.read_text(encoding="utf-8")) for p in lesson.solution_files()}
    save(texts)
    return texts


def save(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def with_a_mistake(repo: Path, lesson: Lesson) -> dict[Path, str]:
    """The files that the lesson's first known mistake changes."""
    entry = read_catalogue(lesson).mistakes[0]
    with tempfile.TemporaryDirectory() as folder:
        write_patched(lesson, entry, Path(folder))
        names = {patch.file for patch in entry.patches}
        found = {path.name: path for path in Path(folder).rglob("*.py") if path.name in names}
        target = repo / "tutorial" / lesson.path
        return {target / n: without_markers(p.read_text(encoding="utf-8")) for n, p in found.items()}


def _environment(repo: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repo), "COURSE_LANG": "en", "OMP_NUM_THREADS": "1"}


def cold_run(repo: Path, lesson: Lesson) -> float:
    """Seconds of a plain pytest run of the lesson (the second one: byte code is there)."""
    command = [sys.executable, "-m", "pytest", "-q", f"tutorial/{lesson.path}/testcases"]
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run(command, cwd=repo, env=_environment(repo), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def verdicts(repo: Path, lesson: Lesson, right: dict[Path, str], saves: int) -> list[float]:
    """Seconds from save to verdict: the first one, `saves` right ones, and the median of as many wrong ones."""
    command = [sys.executable, "-m", "course", "watch", lesson.number]
    watcher = subprocess.Popen(
        command, cwd=repo, env=_environment(repo), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines: queue.Queue[tuple[float, str]] = queue.Queue()
    threading.Thread(target=_read, args=(watcher, lines), daemon=True).start()

    def after(texts: dict[Path, str], passes: bool) -> float:
        time.sleep(1.5)  # as a person does; what the watcher does after a verdict is over
        save(texts)
        began = time.perf_counter()
        return _verdict(lines, passes) - began

    wrong = with_a_mistake(repo, lesson)
    path = next(iter(wrong))
    try:
        _verdict(lines, passes=True)  # of the files as they are: it waits for torch, and for the collection
        times = [after({path: right[path]}, passes=True) for _ in range(saves + 1)]
        after(wrong, passes=False)  # reads the fingerprints, and is not counted
        mistakes = [after(wrong, passes=False) for _ in range(saves)]
        return [*times, statistics.median(mistakes)]
    finally:
        save(right)
        watcher.terminate()
        watcher.wait()


def _read(watcher: "subprocess.Popen[str]", lines: "queue.Queue[tuple[float, str]]") -> None:
    assert watcher.stdout is not None
    for line in watcher.stdout:
        lines.put((time.perf_counter(), line))


def _verdict(lines: "queue.Queue[tuple[float, str]]", passes: bool) -> float:
    """When the last line of the next report came."""
    while True:
        when, line = lines.get(timeout=PATIENCE)
        if _LAST_LINE.match(line):
            if ("failed" not in line) != passes:
                raise RuntimeError(f"another verdict was expected: {line}")
            return when


if __name__ == "__main__":
    sys.exit(main())
