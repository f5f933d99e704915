"""The lessons' notebooks, and what they import: whose code runs, what a student reads when it stops, what is committed.

`COURSE_NOTEBOOK_SEED=3 pytest testcases/course/notebooks_test.py` runs the same two notebooks again.
"""

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from course import notebook
from course.build import skeletons
from course.errors import CourseError
from course.notebooks import student
from course.notebooks.build import small
from course.notebooks.check import check_files, check_fresh, check_leaks
from course.notebooks.execute import code_cells, execute, kind
from course.notebooks.source import FILES, SOURCES, read_cells, source_of
from course.registry import ROOT, Lesson, find_lesson, lessons
from course.skeleton import without_markers

SEED = int(os.environ.get("COURSE_NOTEBOOK_SEED") or random.SystemRandom().randrange(1000))
REBUILT, RELEASED = random.Random(SEED).sample(lessons(), 2)
SGD_TASKS = "1.1 1.2 1.3 1.4 1.6"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Lesson 01 in a folder of its own, as a student who has solved it; returns its optimizer.py."""
    lesson = find_lesson("01")
    folder = tmp_path / lesson.path
    folder.mkdir(parents=True)
    for path in lesson.solution_files():
        (folder / path.name).write_text(without_markers(path.read_text(encoding="utf-8")), encoding="utf-8")
    monkeypatch.setenv("COURSE_IMPL", str(tmp_path))
    monkeypatch.setenv("JPY_SESSION_NAME", "lesson.ipynb")
    monkeypatch.setattr(student, "_own_folders", {})
    return folder / "optimizer.py"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def my_sgd(needs=SGD_TASKS, reference=torch.optim.SGD):
    return notebook.mine("01", "optimizer.SGDFromScratch", needs=needs, reference=reference)


def one_step(optimizer_class) -> float:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = optimizer_class([weight], lr=0.5)
    weight.grad = torch.ones(1)
    optimizer.step()
    return weight.item()


# ---------------------------------------------------------------------------------------------- whose code runs


def test_written_code_is_the_students(own, capsys):
    assert my_sgd().__module__.endswith("lesson01_sgd.optimizer")
    assert capsys.readouterr().out == "SGDFromScratch: yours\n"


def test_unwritten_task_gives_the_reference_and_is_named(own, capsys):
    lesson = find_lesson("01")
    own.write_text(next(s.text for s in skeletons(lesson) if s.path.name == own.name), encoding="utf-8")
    assert my_sgd(needs="1.6 1.3") is torch.optim.SGD
    assert capsys.readouterr().out == (
        "SGDFromScratch: the reference (torch's SGD), because task 1.3 is not written yet\n"
    )


def test_only_the_tasks_that_are_needed_count(own):
    edit(own, 'if group["nesterov"]:', 'raise NotImplementedError("task 1.6: momentum")\n        if 1:')
    assert my_sgd(needs="1.1 1.3") is not torch.optim.SGD
    assert my_sgd(needs="1.1 1.6") is torch.optim.SGD


def test_raise_that_was_left_below_the_new_code_is_no_todo(own):
    edit(
        own,
        "        return buffer\n",
        '        return buffer\n        raise NotImplementedError("task 1.6: x")\n',
    )
    assert my_sgd() is not torch.optim.SGD


def test_edited_file_is_read_again_without_a_restart(own):
    assert one_step(my_sgd()) == 0.5
    edit(own, "alpha=-lr)", "alpha=-2*lr)")
    assert one_step(my_sgd()) == 0.0


def test_file_that_does_not_load_gives_the_reference_and_says_where(own, capsys):
    edit(own, "def descend_(", "def descend_((")
    assert my_sgd() is torch.optim.SGD
    assert "because optimizer.py does not load: SyntaxError" in (said := capsys.readouterr().out)
    assert "(optimizer.py:" in said


def test_solutions_stand_in_where_there_is_no_other_reference(own, capsys):
    edit(own, "def descend_(", "def descend_((")
    assert my_sgd(reference=None).__module__.startswith("solutions.")
    assert "(the course's)" in capsys.readouterr().out


def test_without_solutions_and_reference_an_experiment_is_left_out(own, monkeypatch, capsys):
    edit(own, "def descend_(", "def descend_((")
    monkeypatch.setattr(notebook, "has_solutions", lambda: False)
    with notebook.experiment():
        my_sgd(reference=None)([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        pytest.fail("the experiment went on with nothing")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("Left out: SGDFromScratch is not there, because optimizer.py")


def test_language_is_that_of_the_notebook(own, monkeypatch, capsys):
    monkeypatch.setenv("JPY_SESSION_NAME", "tutorial/lesson_zh.ipynb")
    monkeypatch.setenv("COURSE_LANG", "en")
    my_sgd()
    assert capsys.readouterr().out == "SGDFromScratch：你写的\n"


# ---------------------------------------------------------------------------------- when the student's code stops


def test_crash_is_one_sentence_with_line_and_task(own, capsys):
    edit(own, "buffer.mul_(", "buffer.no_such_method(")
    plt.plot([1, 2])
    with notebook.experiment():
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = my_sgd()([weight], lr=0.1, momentum=0.9)
        for _ in range(2):
            weight.grad = torch.ones(1)
            optimizer.step()
    assert not plt.get_fignums(), "half a picture was left"
    said = capsys.readouterr().out.splitlines()[1:]
    assert len(said) == 1
    assert "no_such_method" in said[0]
    assert "task 1.6" in said[0]
    assert "`course check 01`" in said[0]


def test_endless_loop_is_stopped_and_named(own, capsys):
    edit(own, "        loss = None\n", "        loss = None\n        while True: pass\n")
    with notebook.experiment(seconds=0.3):
        one_step(my_sgd())
    assert "more than 0.3 s" in (said := capsys.readouterr().out)
    assert "`while True: pass`, task 1.3" in said


def test_task_that_is_met_on_the_way_is_named(own, capsys):
    edit(own, "        return buffer\n", '        raise NotImplementedError("task 1.6: momentum")\n')
    with notebook.experiment():
        optimizer = my_sgd(needs="1.1")([weight := torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        weight.grad = torch.ones(1)
        optimizer.step()
    assert "needs task 1.6, which is not written yet: `course hint 1.6`" in capsys.readouterr().out


def test_wrong_result_that_stops_the_cell_is_told_with_its_line(own, capsys):
    edit(own, "        self.state: dict[Tensor, dict[str, Any]] = {}\n", "        self.state = None\n")
    with notebook.experiment():
        optimizer = my_sgd()([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        len(optimizer.state)
    assert "stopped at `len(optimizer.state)`: TypeError" in (said := capsys.readouterr().out)
    assert "It used your code: `course check 01`" in said


def test_fault_of_the_notebook_is_raised_where_no_own_code_runs(own):
    with pytest.raises(ZeroDivisionError), notebook.experiment():
        1 / 0  # noqa: B018


def test_experiment_draws_the_same_numbers_every_time(own):
    drawn = []
    for _ in range(2):
        with notebook.experiment():
            drawn.append((torch.rand(1).item(), random.random()))
    assert drawn[0] == drawn[1]


# ------------------------------------------------------------------------------------------------ colours, reader


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"], ids=["light", "dark"])
@pytest.mark.parametrize("color", sorted({*notebook.COLORS, notebook.GREY}))
def test_colour_stands_out_from_the_page(page, color):
    """Contrast of at least 3, as WCAG 2.2 asks of graphics (success criterion 1.4.11)."""

    def luminance(name):
        channels = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(name)
        ]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True)) + 0.05

    lighter, darker = sorted((luminance(page), luminance(color)), reverse=True)
    assert lighter / darker >= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# %% [markdown] en\n# # T\n# %%\nx = 1\n", ":3: a text cell .* followed by its twin"),
        ("# %% [markdown] en\n# # T\n", ":1: this text cell has no twin"),
        ("# %% [markdown] zh\n# # T\n", ":1: a text cell"),
        ("# %% [markdown]\n# # T\n", ":1: a cell begins with"),
        ("# %% [markdown] en\n# # T\n# %% [markdown] zh\n题\n", ":4: a line of a text cell begins with"),
        ("# %% [markdown] en\n# # T\n# %% [markdown] zh\n# # 题\n# %%\n\n", ":5: an empty cell"),
        ("# %%\nx = 1\n", "the first cell is a text"),
    ],
)
def test_malformed_source_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "x.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match=message):
        read_cells(path)


def test_every_source_belongs_to_a_lesson():
    assert {path.name for path in SOURCES.iterdir() if path.suffix} == {
        f"{lesson.name}.py" for lesson in lessons()
    }


# ---------------------------------------------------------------------------------------- what is committed


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.number)
def test_committed_notebooks_are_those_of_their_source(lesson):
    assert check_files(lesson) == []


def test_no_notebook_gives_a_solution_away():
    assert check_leaks(lessons()) == []


@dataclass(frozen=True)
class Moved(Lesson):
    """A lesson whose notebooks lie elsewhere."""

    place: Path = Path()

    @property
    def folder(self) -> Path:
        return self.place


def text_changed(cells):
    cells[0]["source"][0] = "# Another title\n"


def code_changed(cells):
    next(cell for cell in cells if cell["cell_type"] == "code")["source"].append("\nx = 1")


def cell_removed(cells):
    del cells[-1]


def output_removed(cells):
    next(cell for cell in cells if cell.get("outputs"))["outputs"].pop()


def path_printed(cells):
    next(cell for cell in cells if cell.get("outputs"))["outputs"][0]["text"] = ["/home/me/x.py\n"]


def not_run(cells):
    next(cell for cell in cells if cell["cell_type"] == "code")["execution_count"] = None


def warned(cells):
    stream = {"output_type": "stream", "name": "stderr", "text": ["careful\n"]}
    next(cell for cell in cells if cell.get("outputs"))["outputs"].append(stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text_changed, "is older than its source"),
        (code_changed, "is older than its source"),
        (cell_removed, "is older than its source"),
        (output_removed, "has text"),
        (path_printed, "no addresses and no paths"),
        (not_run, "was not run in order"),
        (warned, "output of the kind stderr"),
    ],
)
def test_changed_notebook_is_noticed(tmp_path, change, message):
    lesson = find_lesson("01")
    for name in FILES.values():
        shutil.copy(lesson.folder / name, tmp_path / name)
    path = tmp_path / "lesson_zh.ipynb"
    book = json.loads(path.read_text(encoding="utf-8"))
    change(book["cells"])
    path.write_text(json.dumps(book), encoding="utf-8")
    moved = Moved(lesson.stage, lesson.name, lesson.title_en, lesson.title_zh, lesson.tasks, tmp_path)
    problems = check_files(moved)
    assert any(message in problem for problem in problems), problems


def test_picture_is_made_small_and_stays_the_same_picture():
    import io

    from PIL import Image

    figure, ax = plt.subplots()
    ax.plot([1, 3, 2])
    written = io.BytesIO()
    figure.savefig(written, format="png")
    plt.close(figure)
    before = Image.open(written).convert("RGBA")
    after_bytes = small(written.getvalue())
    after = Image.open(io.BytesIO(after_bytes)).convert("RGBA")
    assert len(after_bytes) < len(written.getvalue()) / 2
    assert after.size == before.size
    difference = torch.tensor(list(before.tobytes())).sub(torch.tensor(list(after.tobytes()))).abs()
    assert difference.float().mean() < 1


@pytest.mark.parametrize("lesson", [REBUILT], ids=lambda lesson: f"{lesson.number}-seed{SEED}")
def test_fresh_run_has_the_outputs_that_are_committed(lesson):
    assert check_fresh(lesson) == []


@pytest.mark.parametrize("lesson", [RELEASED], ids=lambda lesson: f"{lesson.number}-seed{SEED}")
def test_notebook_runs_in_a_student_release(lesson, tmp_path):
    """The empty skeletons, without solutions/: every cell runs, and says what it leaves out."""
    for room in ("course", "training", "tutorial"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for skeleton in skeletons(lesson):
        path = tmp_path / skeleton.path.relative_to(ROOT)
        path.write_text(skeleton.text, encoding="utf-8")
    done = execute(lesson, read_cells(source_of(lesson)), "en", "tutorial", root=tmp_path)
    assert done.errors == []
    printed = "".join(o.text for cell in code_cells(done.notebook) for o in cell.outputs if kind(o) == "text")
    assert "is not written yet" in printed
    assert not [line for line in printed.splitlines() if line.endswith(": yours")]
