"""A small course of one toy lesson in a folder of its own, for tests of commands that write or fail."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from course.registry import ROOT
from testcases.course import warm

TOY = "stage01_toy/lesson01_toy"

SOLUTION = '''"""A toy lesson."""


def double(x):
    """Return 2x."""
    # TODO 1.1 double the number
    # BEGIN SOLUTION
    return x * 2
    # END SOLUTION


def root(x):
    """Return √x; raises ValueError below 0."""
    # TODO 1.2 refuse negative numbers
    # BEGIN SOLUTION
    if x < 0:
        raise ValueError(f"x must be >= 0, got {x}")
    return x**0.5
    # END SOLUTION
'''

LESSON = """title = "Toy"
title_zh = "玩具"

[[task]]
id = "1.1"
points = 40
title = "double the number"
title_zh = "把数翻倍"
hint = "Twice as much."
hint_zh = "两倍。"

[[task]]
id = "1.2"
points = 60
title = "refuse negative numbers"
title_zh = "拒绝负数"
hint = "What is the root of -1?"
hint_zh = "-1 的平方根是什么？"
"""

BASIC = '''import pytest
import torch


@pytest.mark.task("1.1")
def test_double_is_twice(lesson, expect):
    """x = 3, then 4."""
    for step, x in enumerate((3.0, 4.0)):
        expect.equal("2x", lesson.optimizer.double(x), x + x, source="x + x", step=step)


@pytest.mark.task("1.2")
def test_root_refuses_negative_numbers(lesson, expect):
    """x = -1."""
    with expect.raises(ValueError, match="-1", source="the docstring of root"):
        lesson.optimizer.root(-1)
'''

ADVANCED = '''import pytest
import torch


@pytest.mark.task("1.1")
def test_double_on_a_device(lesson, expect, rng, device):
    """Three random numbers."""
    x = torch.randn(3, generator=rng).to(device)
    expect.equal("2x", lesson.optimizer.double(x), x + x, source="x + x")


@pytest.mark.task("1.2")
@pytest.mark.limit(1)
def test_root_squared_is_the_number(lesson, expect, observe):
    """x = 2."""
    observe("root of 2", lesson.optimizer.root(2.0))
    expect.close("root²", lesson.optimizer.root(2.0) ** 2, 2.0, source="√x·√x", atol=1e-12, because="two roundings")
'''

MISTAKES = """[[mistake]]
id = "toy-square"
task = "1.1"
patch = [["return x * 2", "return x * x"]]
caught_by = ["test_double_is_twice"]
says = "You squared."
says_zh = "你算成了平方。"

[[mistake]]
id = "toy-wrong-error"
task = "1.2"
patch = [["raise ValueError(f", "raise TypeError(f"]]
caught_by = ["test_root_refuses_negative_numbers"]
says = "Another error."
says_zh = "异常类型不对。"

[[variant]]
id = "toy-sum"
says = "x + x is 2x"
patch = [["return x * 2", "return x + x"]]
"""

PAGE = """# Toy

## {0[0]}
## {0[1]}
## {0[2]}
## {0[3]}
## {0[4]}
1.1 and 1.2
## {0[5]}
## {0[6]}
## {0[7]}
"""

AGREEMENT = """def test_lesson01_double_agrees():
    from solutions.stage01_toy.lesson01_toy.optimizer import double

    assert double(2) == 4
"""


@dataclass
class Result:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class ToyRepo:
    """A course with one lesson, built and complete."""

    root: Path
    server: Any  # the warm processes' context, see warm.py

    @property
    def skeleton(self) -> Path:
        return self.root / "tutorial" / TOY / "optimizer.py"

    @property
    def solution(self) -> Path:
        return self.root / "solutions" / TOY / "optimizer.py"

    @property
    def tests(self) -> Path:
        return self.root / "tutorial" / TOY / "testcases"

    @property
    def mistakes(self) -> Path:
        return self.root / "testcases" / "mistakes" / "lesson01_toy.toml"

    @property
    def fingerprints(self) -> Path:
        return self.root / "testcases" / "mistakes" / "fingerprints" / "lesson01_toy.json"

    def course(self, *arguments: str, cwd: Path | None = None) -> Result:
        """Run `python -m course …` there, in a warm process."""
        return self._run_warm("course", list(arguments), cwd)

    def pytest(self, *arguments: str, cwd: Path | None = None) -> Result:
        """Run `python -m pytest …` there, in a warm process."""
        return self._run_warm("pytest", list(arguments), cwd)

    def cold(
        self, module: str, *arguments: str, cwd: Path | None = None, python: tuple[str, ...] = ()
    ) -> Result:
        """Run `python -m module …` there, in a process of its own from the start."""
        done = subprocess.run(
            [sys.executable, *python, "-m", module, *arguments],
            cwd=cwd or self.root,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def _run_warm(self, module: str, arguments: list[str], cwd: Path | None) -> Result:
        out, err = self.root.parent / "out.txt", self.root.parent / "err.txt"
        where = (str(self.root), str(cwd or self.root), self._environment(), str(out), str(err))
        child = self.server.Process(target=warm.run_module, args=(module, arguments, *where))
        child.start()
        child.join(60)
        if child.exitcode is None:
            child.kill()
            pytest.fail(f"{module} {arguments} did not end within a minute")
        return Result(child.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("COURSE_", "PYTEST_", "LC_"))}
        return {**kept, "PYTHONPATH": str(self.root), "LANG": "C.UTF-8", "COLUMNS": "120", "PYTHONUTF8": "1"}


@pytest.fixture(scope="session")
def server() -> Any:
    """One warm process for the whole session, from which the others are forked."""
    return warm.start_server()


@pytest.fixture(scope="session")
def built_toy(tmp_path_factory: pytest.TempPathFactory, server: Any) -> ToyRepo:
    """The toy course, built once: skeletons and fingerprints. Tests get a copy."""
    repo = ToyRepo(tmp_path_factory.mktemp("toy") / "repo", server)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "course", repo.root / "course", ignore=ignore)
    for name in ("conftest.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, repo.root / name)
    from course.pages import HEADINGS

    folder = f"tutorial/{TOY}"
    for name, text in {
        f"solutions/{TOY}/optimizer.py": SOLUTION,
        f"{folder}/lesson.toml": LESSON,
        f"{folder}/README.md": PAGE.format([pair[0] for pair in HEADINGS]),
        f"{folder}/README_zh.md": PAGE.format([pair[1] for pair in HEADINGS]),
        f"{folder}/testcases/basic_test.py": BASIC,
        f"{folder}/testcases/advanced_test.py": ADVANCED,
        "testcases/mistakes/lesson01_toy.toml": MISTAKES,
        "testcases/agreement/toy_test.py": AGREEMENT,
    }.items():
        path = repo.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    built = repo.course("build")
    assert built.status == 0, built.text
    return repo


@pytest.fixture
def toy(tmp_path: Path, built_toy: ToyRepo) -> ToyRepo:
    """A fresh copy of the toy course."""
    shutil.copytree(built_toy.root, tmp_path / "repo", ignore=shutil.ignore_patterns("__pycache__"))
    return ToyRepo(tmp_path / "repo", built_toy.server)


@pytest.fixture
def watch(toy: ToyRepo) -> Iterator[Callable[..., Any]]:
    """watch(*arguments) → Screen on which `course watch` runs; ended after the test."""
    from testcases.course.screen import Screen  # needs a system with terminals

    screens = []

    def start(*arguments: str) -> Any:
        screens.append(Screen(toy, *arguments))
        return screens[-1]

    yield start
    for screen in screens:
        screen.close()


@pytest.fixture
def edit() -> Callable[[Path, str, str], None]:
    """edit(path, old, new): replace a text that stands in the file exactly once."""

    def replace(path: Path, old: str, new: str) -> None:
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, (path, old)
        path.write_text(text.replace(old, new), encoding="utf-8")

    return replace
