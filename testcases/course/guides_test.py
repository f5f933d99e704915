"""Tests of the front page, the guides, the glossary and the FAQ: what they name exists, what they show is true.

Run: pytest testcases/course/guides_test.py
"""

import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from course.__main__ import _parser
from course.mistakes import read_catalogue
from course.registry import ROOT, SOLUTIONS, exam, find_lesson, find_task, lessons
from docs.figures import make_figures, resumed_run

NAMES = [
    "README.md",
    "CONTRIBUTING.md",
    *(
        f"docs/{name}.md"
        for name in ("student_guide", "instructor_guide", "engineer_guide", "faq", "glossary")
    ),
]
PAGES = [page for name in NAMES for page in (name, name.replace(".md", "_zh.md"))]
LANGUAGES = ("en", "zh")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("bash", "console")
FOREIGN = {"--pdb", "--nproc_per_node"}  # options of pytest and of torchrun
PLACEHOLDER = re.compile(r"[<…*]|ADDRESS|NN")
PLANTED = "adamw-l2-in-gradient"  # the mistake that the front page and the instructor's guide show


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text_of(page)) if name == language]


def commands(page: str) -> list[str]:
    """Every command of a page, from its shell blocks and from its inline code, without comments."""
    text = text_of(page)
    lines = [line for name, body in FENCE.findall(text) if name in SHELLS for line in body.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text))
    parts = [part for line in lines for part in re.split(r" && |; ", line.partition(" #")[0])]
    return [re.sub(r"^([A-Z_]+=\S+ )+|^\.venv/bin/", "", part.strip()) for part in parts if part.strip()]


def commands_of(program: str) -> list[pytest.param]:
    """(words after the program's name) of each different command, as test cases that name the page."""
    found = {}
    for page in PAGES:
        for command in commands(page):
            if (command + " ").startswith(program + " ") and not PLACEHOLDER.search(command):
                found.setdefault(command, page)
    return [pytest.param(command[len(program) :], id=f"{page}: {command}") for command, page in found.items()]


@pytest.mark.parametrize("words", [*commands_of("course"), *commands_of("python -m course")])
def test_course_command_of_a_page_parses_and_names_a_lesson_that_is_there(words):
    said, options = io.StringIO(), None
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        options = _parser().parse_args(shlex.split(words))
    if options is None:
        named_only = "arguments are required" in said.getvalue() and len(words.split()) == 1
        assert named_only, f"`course{words}`: {said.getvalue()}"
        return
    names = [getattr(options, "lesson", None), *getattr(options, "lessons", [])]
    for name in filter(None, names):
        find_lesson(name)
    if getattr(options, "task", None):
        find_task(options.task)


@pytest.mark.parametrize("words", commands_of("make"))
def test_make_target_of_a_page_is_in_the_makefile(words):
    targets = re.findall(r"^(\w[\w-]*):", text_of("Makefile"), re.MULTILINE)
    assert words.split()[0] in targets


@cache
def help_of(*module: str) -> str:
    """What `python -m MODULE [COMMAND] --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", *module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> list[pytest.param]:
    cases = [*commands_of("python -m"), *commands_of("torchrun --nproc_per_node=2 -m")]
    return [case for case in cases if case.values[0].split()[0] not in ("course", "venv")]


@pytest.mark.parametrize("words", modules())
def test_module_of_a_page_has_the_command_and_the_flags(words):
    module, *rest = shlex.split(words)
    if module.startswith(("tutorial.", "solutions.")):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        return
    assert importlib.util.find_spec(module), module
    if not rest:
        return
    command = [module] if rest[0].startswith("-") else [module, rest[0]]
    text = help_of(*command)  # argparse refuses a command that is not there
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"{flag}\b", text), f"{' '.join(command)} has no {flag}"


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_paths_of_a_page_exist(page):
    machine = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "course").rglob("*.py"))
    known = set(re.findall(r"--[a-z][\w-]+", machine + help_of("training", "pretrain"))) | FOREIGN
    for command in commands(page):
        for word in command.split():
            word = word.rstrip("/").partition("::")[0]
            if re.match(r"(tutorial|solutions|training|testcases|docs|course|benchmarks)/", word):
                assert PLACEHOLDER.search(word) or (ROOT / word).exists(), f"{page}: {word} is not there"
        if command.startswith(("pytest ", "--")) and not PLACEHOLDER.search(command):
            flags = [word.partition("=")[0] for word in command.split() if word.startswith("--")]
            assert set(flags) <= known, f"{page}: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert slugs.count(anchor) == 1, f"{page}: {target}"


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_file_tree_names_files_that_are_there(page):
    (tree,) = (body for body in blocks(page, "text") if body.startswith("tutorial/"))
    room = ""
    for line in tree.splitlines():
        if line[0] != " ":
            room = line.split()[0]
            assert (ROOT / room).is_dir()
        for name in re.findall(r"(?:^  |  )([a-z_]+(?:\.py|\.md|/))(?= )", line):
            assert (ROOT / room / name).exists(), f"{page}: {room}{name}"


@pytest.mark.parametrize("page", ["docs/engineer_guide.md", "docs/engineer_guide_zh.md"])
def test_engineer_guide_has_every_file_of_the_package_once(page):
    rows = [row for row in text_of(page).splitlines() if re.match(r"\| `\w+\.py`", row)]
    named = [name for row in rows for name in re.findall(r"`(\w+\.py)`", row.split("|")[1])]
    assert sorted(named) == sorted(
        p.name for p in (ROOT / "training").glob("*.py") if p.name != "__init__.py"
    )


def glossary(page: str) -> list[tuple[str, str, str, str]]:
    """(term, the other language's term, link, meaning) in order."""
    entry = r"^### (.+)\n\n(.+?) · \[[^\]]+\]\((\S+?)\)\n\n(.+)$"
    return re.findall(entry, text_of(page), re.MULTILINE)


def test_glossary_has_the_same_terms_in_both_languages():
    english, chinese = glossary("docs/glossary.md"), glossary("docs/glossary_zh.md")
    assert len(english) == text_of("docs/glossary.md").count("\n### ") >= 80  # no entry is of another form
    assert [(a, b) for a, b, _, _ in english] == [(b, a) for a, b, _, _ in chinese]
    assert [c.replace("README.md", "README_zh.md") for _, _, c, _ in english] == [c for _, _, c, _ in chinese]
    for entries in (english, chinese):
        terms = [term.lower() for term, *_ in entries]
        assert len(set(terms)) == len(terms)


@pytest.mark.parametrize(("weeks", "place"), [(6, 0), (14, 1)])
@pytest.mark.parametrize("page", ["docs/instructor_guide.md", "docs/instructor_guide_zh.md"])
def test_week_table_has_every_lesson_in_order(page, weeks, place):
    tables = re.findall(r"(?:^\| \d+ \|.*\n)+", text_of(page), re.MULTILINE)
    rows = tables[place].splitlines()
    assert [row.split("|")[1].strip() for row in rows] == [str(week + 1) for week in range(weeks)]
    linked = re.findall(r"/(lesson\d\d_\w+)/README", tables[place])
    assert list(dict.fromkeys(linked)) == [lesson.name for lesson in lessons()] == sorted(set(linked))
    assert "testcases/README" in rows[-1]
    assert all(float(row.split("|")[4]) > 0 for row in rows)


def test_counts_in_words_are_those_of_the_course():
    count = {10: ("Ten", "十"), 14: ("Fourteen", "十四")}[len(lessons())]
    tasks = {7: ("seven", "七")}
    (each,) = {len(lesson.tasks) for lesson in lessons()}
    points = sum(part.points for part in [*lessons(), exam()])
    assert f"{count[0]} lessons, {tasks[each][0]} tasks each" in text_of("docs/student_guide.md")
    assert f"{count[1]}课，每课{tasks[each][1]}个任务" in text_of("docs/student_guide_zh.md")
    assert f"{count[0]} lessons and an exam, {points} points" in text_of("docs/instructor_guide.md")
    assert f"{count[1]}课加一场考试，共 {points} 分" in text_of("docs/instructor_guide_zh.md")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A folder with the solutions of lesson 02, one known mistake in them."""
    lesson = find_lesson("02")
    folder = tmp_path_factory.mktemp("submission")
    shutil.copytree(SOLUTIONS / lesson.path, folder / lesson.path)
    (entry,) = (mistake for mistake in read_catalogue(lesson).mistakes if mistake.id == PLANTED)
    for patch in entry.patches:
        file = folder / lesson.path / patch.file
        file.write_text(file.read_text(encoding="utf-8").replace(patch.old, patch.new), encoding="utf-8")
    return folder


def run_tests(folder: Path, language: str) -> str:
    target = f"tutorial/{find_lesson('02').path}/testcases"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", target, f"--impl={folder}"]
    done = subprocess.run(
        [*command, "--lang", language, "--report", str(folder / "ann.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout


@pytest.mark.parametrize("language", LANGUAGES)
def test_front_page_shows_the_report_that_the_mistake_gives(planted, language):
    (shown,) = blocks("README.md" if language == "en" else "README_zh.md", "output")
    printed = iter(run_tests(planted, language).splitlines())
    for line in shown.splitlines():
        assert line == "…" or line in printed, (
            f"{line!r} does not come, or not in this order"
        )  # `in` reads on
    report = json.loads((planted / "ann.json").read_text(encoding="utf-8"))
    (points,) = (part["points"] for part in report["lessons"])
    guide = text_of("docs/instructor_guide.md" if language == "en" else "docs/instructor_guide_zh.md")
    assert (f"got {points} of 100 points" if language == "en" else f"第 02 课只得 {points} 分") in guide


def test_instructors_example_reads_a_report(planted, tmp_path, monkeypatch, capsys):
    if not (planted / "ann.json").exists():
        run_tests(planted, "en")
    shutil.copy(planted / "ann.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("docs/instructor_guide.md", "python")
    exec(compile(ast.parse(example), "instructor_guide.md", "exec"), {})
    assert re.fullmatch(r"lesson02_adamw \d+ of 100\n", capsys.readouterr().out)


def test_engineers_example_trains(tmp_path):
    (example,) = blocks("docs/engineer_guide.md", "python")
    (tmp_path / "my.txt").write_text(5 * text_of("docs/glossary.md"), encoding="utf-8")
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"40 \d\.\d", done.stdout.strip())
    assert (tmp_path / "runs" / "library" / "epoch_0_step_40.pt").is_file()


def test_figures_are_those_that_the_script_draws():
    for path, text in make_figures.figures().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m docs.figures.make_figures"


def test_resumed_run_of_the_figure_is_the_uninterrupted_one():
    found = json.loads(resumed_run.DATA.read_text(encoding="utf-8"))
    alone, reached = found["alone"], 0
    assert found["command"] == "python " + resumed_run.COMMAND
    for process in found["processes"]:
        assert process["from"] <= reached  # it goes on from a checkpoint behind the kill
        reached = process["from"] + len(process["losses"])
        assert process["losses"] == alone[process["from"] : reached]
    assert reached == len(alone) == resumed_run.UPDATES
    assert found["equal_tensors"] == found["tensors"] > 0
