"""`course release TARGET`: the course for students, without the solutions, as a folder or a .zip file.

What students need is in it: skeletons (fresh, whatever stands in this `tutorial/`), tests, the machine, `training/`,
the pages. What gives answers away is not: `solutions/`, and the patches of the catalogue. The diagnosis works all the
same: a fingerprint holds numbers that wrong code gave, and no code.

Before TARGET appears, every file of it is searched for the lines of the solutions (course/leaks.py); a single hit
ends the release.

    python -m course release ../students.zip
"""

import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course import fingerprints
from course.build import MANIFEST, RELEASED, skeletons
from course.errors import CourseError
from course.leaks import Search, find_leaks
from course.markdown import unlink
from course.mistakes import Entry, places, read_catalogue
from course.registry import MISTAKES, ROOT, Lesson, lessons, require_solutions

# What students get: files of the root, and rooms.
_ROOT_FILES = ("README.md", "README_zh.md", "CHANGELOG.md", "LICENSE", "Makefile", "conftest.py", "pyproject.toml",
               "requirements.txt", "requirements-docs.txt", ".gitignore", ".editorconfig")  # fmt: skip
_ROOMS = ("course/", "docs/", "testcases/", "training/", "tutorial/")
# What is left out of the rooms, and why.
LEFT_OUT = {
    "docs/instructor_guide": "it is for those who make the release",
    "testcases/agreement/": "it tests the solutions",
    "testcases/course/": "it tests the machine, on pieces of solutions",
    "testcases/mistakes/equivalent/": "it holds lines of solutions",
    "testcases/mistakes/lesson": "its patches hold lines of solutions; it is written anew, without them",
    "testcases/site/": "it tests the site, which is made from the whole repository",
    "testcases/torture/": "it kills runs of the solutions",
}
_STAND_IN = '''"""Stands in for the solutions, which a student release does not have: `python -m solutions.…` says so."""

import sys

sys.exit(
    "This is a student release, without solutions. What this command prints is on the lesson's page; "
    "your own code runs with `python -m tutorial.` in the place of `python -m solutions.`.\\n"
    "这是不含参考答案的学生版。这条命令的输出印在课程页面上；运行你自己的代码，请把 `python -m solutions.` 换成 `python -m tutorial.`。"
)
'''  # noqa: E501
_NOTICE = {
    "README.md": "> This is a student release, without solutions. A command that needs them says so.",
    "README_zh.md": "> 这是不含参考答案的学生版。需要答案的命令会直接说明。",
}
_ZIP_DATE = (2020, 1, 1, 0, 0, 0)  # the same release is the same file


@dataclass
class Release:
    """What came of it."""

    files: int
    bytes: int
    mistakes: int
    unlinked: int  # links to what is left out, now plain text
    unknown: int  # files in the rooms that git does not track, left out
    search: Search


def release(target: Path) -> Release:
    """Make the release; `target` exists only when all is well.

    Raises:
        CourseError: in a release, for a target that is not empty, for old fingerprints, for a leak.
    """
    require_solutions("`course release`")
    _check_target(target)
    for lesson in lessons():
        if any(fingerprints.stale(lesson)):
            raise CourseError(f"the fingerprints of {lesson.name} are old: run `course build` first")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / target.name.removesuffix(".zip")
        names, unknown = chosen_files()
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
        mistakes = sum(_write_lesson(folder, lesson) for lesson in lessons())
        (folder / "solutions.py").write_text(_STAND_IN, encoding="utf-8")
        _put_notices(folder)
        unlinked = sum(_unlink_page(folder, page) for page in folder.rglob("*.md"))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        search = find_leaks(folder, files)
        if search.leaks:
            shown = "".join(f"\n  {leak.file}: `{leak.line}` ({leak.place})" for leak in search.leaks)
            raise CourseError(f"no release: {len(search.leaks)} lines of solutions are in it:{shown}")
        size = sum(path.stat().st_size for path in files)
        if target.suffix == ".zip":
            _pack(folder, files, target)
        else:
            if target.is_dir():
                target.rmdir()
            folder.rename(target)
    return Release(len(files), size, mistakes, unlinked, unknown, search)


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise CourseError(f"{target.parent} is not a folder: the release needs one to stand in")
    if target.is_dir() and target.suffix != ".zip":
        if any(target.iterdir()):
            raise CourseError(f"{target} is not empty: name a new folder, or a .zip file")
    elif target.exists():
        raise CourseError(f"{target} exists: name a new folder, or a new .zip file")


def chosen_files() -> tuple[list[str], int]:
    """(names of the files that are copied as they are, number of files that git does not know)."""
    here = {name for name in _walk() if _belongs(name)}
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    if (ROOT / ".git").exists():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CourseError(f"git does not say which files are the course's: {done.stderr.strip()}")
        tracked = here & set(done.stdout.split("\0"))
        return sorted(tracked), len(here - tracked)
    return sorted(here), 0


def _belongs(name: str) -> bool:
    return (name in _ROOT_FILES or name.startswith(_ROOMS)) and not name.startswith(tuple(LEFT_OUT))


def _walk() -> Iterator[str]:
    """All files of the repository but caches, what an installation makes, and hidden folders."""
    for path in ROOT.rglob("*"):
        name = path.relative_to(ROOT)
        folders = name.parts[:-1]
        if path.is_file() and not any(
            f.startswith(".") or f == "__pycache__" or "egg-info" in f for f in folders
        ):
            yield name.as_posix()


# ----------------------------------------------------------------------------------------- what is not copied


def _write_lesson(folder: Path, lesson: Lesson) -> int:
    """Fresh skeletons, twice (the second for `course reset`), and the catalogue. Returns the number of mistakes."""
    rows = []
    for skeleton in skeletons(lesson):
        for path in (skeleton.path, RELEASED / skeleton.name):
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(skeleton.text, encoding="utf-8")
        rows.append(f"{skeleton.digest}  {skeleton.name}\n")
    manifest = folder / MANIFEST.relative_to(ROOT)
    first = lesson == lessons()[0]
    with manifest.open("w" if first else "a", encoding="utf-8") as file:
        file.writelines(rows)
    entries = read_catalogue(lesson).mistakes
    catalogue = folder / MISTAKES.relative_to(ROOT) / f"{lesson.name}.toml"
    catalogue.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_released_entry(lesson, entry) for entry in entries)
    catalogue.write_text(text, encoding="utf-8")
    return len(entries)


def _released_entry(lesson: Lesson, entry: Entry) -> str:
    """A `[[mistake]]` without its patch: where it is made, and not what to write."""
    table = {
        "id": entry.id,
        "task": entry.task,
        "places": [list(place) for place in places(lesson, entry)],
        "caught_by": list(entry.caught_by),
        "says": entry.says,
        "says_zh": entry.says_zh,
        "seen": entry.seen,
        "raises": entry.raises,
        "varies": entry.varies,
    }
    # Strings, lists of strings and `true` look the same in JSON and in TOML.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items() if value]
    return "\n".join(["[[mistake]]", *lines, ""])


def _put_notices(folder: Path) -> None:
    """Below the title of the front page."""
    for name, notice in _NOTICE.items():
        page = folder / name
        if page.is_file():
            title, _, rest = page.read_text(encoding="utf-8").partition("\n")
            page.write_text(f"{title}\n\n{notice}\n{rest}", encoding="utf-8")


def _unlink_page(folder: Path, page: Path) -> int:
    """Links to files that are not in the release become their text. Returns how many."""

    def is_gone(target: str) -> bool:
        name = target.partition("#")[0]
        return bool(name) and "://" not in name and not (page.parent / name).exists()

    text, count = unlink(page.read_text(encoding="utf-8"), is_gone)
    if count:
        page.write_text(text, encoding="utf-8")
    return count


def _pack(folder: Path, files: list[Path], target: Path) -> None:
    """A .zip with one folder in it."""
    packed = folder.parent / "release.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            info = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), _ZIP_DATE)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, path.read_bytes())
    packed.rename(target)
