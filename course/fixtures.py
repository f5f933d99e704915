"""What lesson tests ask for: the code under test, random numbers, a device, comparisons, observations."""

from typing import Any

import pytest

from course.errors import CourseError
from course.implementation import LessonCode, Stack
from course.run import LESSON, RECORDER, RUN, seed_of


@pytest.fixture
def lesson(request: pytest.FixtureRequest) -> LessonCode:
    """The implementation under test: `lesson.optimizer` is its optimizer.py."""
    item_lesson = request.node.stash.get(LESSON, None)
    if item_lesson is None:
        raise CourseError("the `lesson` fixture works only below tutorial/<stage>/<lesson>/testcases/")
    return request.config.stash[RUN].implementation.lesson(item_lesson)


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Stack:
    """For the exam: all lessons of the implementation under test, `stack.lesson06.gradients` and so on."""
    return Stack(request.config.stash[RUN].implementation)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Any:
    """A torch.Generator seeded by `--course-seed` and the test's name."""
    import torch

    return torch.Generator().manual_seed(seed_of(request.node))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Any:
    """A torch.device; the cuda case skips where there is none."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture
def expect(request: pytest.FixtureRequest) -> Any:
    """Comparisons that explain themselves; see course/expect.py."""
    from course.expect import Expect

    return Expect(_recorder(request.node))


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Any:
    """observe(name, value, step=None): record a number for the report without comparing it."""
    return _recorder(request.node).note


def _recorder(item: pytest.Item) -> Any:
    from course.recorder import PATIENCE, Recorder

    if RECORDER not in item.stash:
        patience = 1 if item.config.getoption("usepdb", False) else PATIENCE
        item.stash[RECORDER] = Recorder(item.config.stash[RUN].records, [], patience)
    return item.stash[RECORDER]
