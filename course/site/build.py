"""Build the site: assemble both languages' trees, and let Sphinx make HTML of each; any warning is an error."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from course.errors import CourseError
from course.registry import ROOT
from course.site.assemble import assemble
from course.site.contents import LANGUAGES, read_contents

OUT = ROOT / "site"
REQUIREMENTS = "requirements-docs.txt"
MATHJAX = "tex-svg-full.js"
SPHINX_NAMES = {"en": "en", "zh": "zh_CN"}


def build(out: Path = OUT) -> None:
    """Write the site to `out`, in place of what an earlier build wrote there.

    English lies at the root, Chinese in zh/, page for page. A failed build leaves the earlier site alone.

    Raises:
        CourseError: something is missing in the contents, Sphinx warned, or `out` holds something else.
    """
    if out.exists() and not (out / "searchindex.js").is_file() and any(out.iterdir()):
        raise CourseError(
            f"{out} holds something that is not the site: move it away, or choose another --out"
        )
    if importlib.util.find_spec("sphinx") is None:
        raise CourseError(f"Sphinx is not installed: run `make docs`, or pip install -r {REQUIREMENTS}")
    contents = read_contents()
    with tempfile.TemporaryDirectory(prefix="site-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        running = []
        for language in LANGUAGES:  # both at once: each takes one core
            assemble(contents, language, work / language)
            running.append(_start_sphinx(work, language))
        outputs = [process.communicate()[0] for process in running]
        for language, process, output in zip(LANGUAGES, running, outputs, strict=True):
            if process.returncode != 0:
                tidy = output.replace(f"{work / language}/", "").strip()
                raise CourseError(f"the {language} pages do not build:\n{tidy}")
        html = work / "html"
        shutil.move(work / "html-zh", html / "zh")
        for folder in (html, html / "zh"):
            shutil.copy(_mathjax(), folder / "_static" / MATHJAX)
            for leftover in (".buildinfo", "objects.inv"):
                (folder / leftover).unlink(missing_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(html, out)


def _start_sphinx(work: Path, language: str) -> subprocess.Popen[str]:
    html = work / ("html" if language == "en" else f"html-{language}")
    settings = ["-c", str(ROOT / "course" / "site"), "-D", f"language={SPHINX_NAMES[language]}"]
    # -E, -d: nothing is kept from an earlier build; -T: a crash of Sphinx shows where.
    options = ["-b", "html", "-W", "--keep-going", "-q", "-E", "-T", "-d", str(work / f"doctrees-{language}")]
    command = [sys.executable, "-m", "sphinx", *options, *settings, str(work / language), str(html)]
    # The same bytes every time: sets are written in the order of their hashes.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _mathjax() -> Path:
    """MathJax as one script, out of the package sphinx-mathjax-offline (of which nothing else is used)."""
    try:
        files = importlib.metadata.files("sphinx-mathjax-offline") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((file for file in files if file.name == MATHJAX), None)
    if found is None:
        raise CourseError(f"sphinx-mathjax-offline is not installed: pip install -r {REQUIREMENTS}")
    return Path(str(found.locate()))


def digest(out: Path = OUT) -> str:
    """SHA-256 over names and contents of all files of the site."""
    total = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(out).as_posix()}\0{path.stat().st_size}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()
