"""One pytest run over lessons: whose code is tested, what came of it, and where the plugin keeps both."""

import zlib
from pathlib import Path
from typing import Any

import pytest

from course.implementation import Implementation
from course.outcomes import TestOutcome
from course.registry import Lesson

LESSON = pytest.StashKey[Lesson]()
RECORDER = pytest.StashKey[Any]()
RUN = pytest.StashKey["Run"]()


class Run:
    """One pytest run: whose code, which outcomes."""

    def __init__(
        self, implementation: Implementation, seed: int, records: bool, explains: bool = False
    ) -> None:
        self.implementation = implementation
        self.seed = seed
        self.records = records
        self.explains = explains  # the diagnosis shows the corrected lines too
        self.lessons: dict[str, Lesson] = {}
        self.files: dict[Path, Lesson | None] = {}  # which lesson a test file belongs to
        self.outcomes: list[TestOutcome] = []
        self.partial = False  # some tests were deselected, so tasks cannot be judged for good


def run_of(config: pytest.Config) -> Run:
    """The run that a pytest session records into."""
    return config.stash[RUN]


def seed_of(item: pytest.Item) -> int:
    """The seed of a test: from `--course-seed` and its name, so that it depends on no other test."""
    return zlib.crc32(f"{item.config.stash[RUN].seed}:{item.name}".encode())
