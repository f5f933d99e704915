"""The source tree of one language: copies of its pages, in the repository's layout, ready for Sphinx.

A page X_zh.md becomes X.md in the Chinese tree, so that a page has the same name, and the same address, in both
languages. A README.md becomes index.md. Relative paths of pictures go on working; links are resolved later (links.py).
"""

import ast
import re
import shutil
from pathlib import Path

from course.registry import ROOT
from course.site.contents import LANGUAGES, Contents, Page, Part
from course.site.notebook import to_markdown

PICTURES = (".svg", ".png", ".jpg", ".gif")
WORDS = {
    "en": {
        "notebook": "Notebook",
        "intro": "This page shows a notebook as it was run. To play with it: {download}`%s` "
        "(or `jupyter lab %s` in the repository).",
        "reference": "Reference: %s",
        "generated": "Written from the docstrings of the code.",
        "module": "module",
        "holds": "what it holds",
    },
    "zh": {
        "notebook": "笔记本",
        "intro": "本页是笔记本的运行结果。想亲手试：{download}`%s`，或在仓库里运行 `jupyter lab %s`。",
        "reference": "接口参考：%s",
        "generated": "由代码里的文档字符串生成，正文是英文。",
        "module": "模块",
        "holds": "内容",
    },
}


def assemble(contents: Contents, language: str, target: Path, root: Path = ROOT) -> None:
    """Write the tree of this language to the empty or missing folder `target`."""
    assert language in LANGUAGES
    for page in contents.pages:
        if page in contents.notebooks:
            text = _notebook(page, language, target, root)
        else:
            text = (root / page.source(language)).read_text(encoding="utf-8")
            text += _pages_below(page, contents, language)
            _copy_pictures(text, root / page.english, target, root)
        if page == contents.home:
            text += "".join(_toctree(part, language) for part in contents.parts)
        _write(target / f"{page.document}.md", text)
    for part in contents.parts:
        for package in part.packages:
            _write_reference(package, language, target, root)
    if language == "zh":
        copy = target / "locale" / "zh_CN" / "LC_MESSAGES" / "sphinx.po"
        copy.parent.mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "theme" / "locale" / "zh_CN.po", copy)


def module_file(module: str, root: Path = ROOT) -> str:
    """Where a module's source lies, relative to the root."""
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (root / path).is_dir() else f"{path}.py"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _toctree(part: Part, language: str) -> str:
    below = [child for page in part.pages for child in _below(page, part)]
    documents = [page.document for page in part.pages if page not in below]
    documents += [f"reference/{name}" for name in part.packages]
    if not documents:
        return ""
    return _hidden_toctree(documents, f":caption: {part.title[language]}\n")


def _below(page: Page, part: Part) -> list[Page]:
    """The pages that the sidebar shows below a folder's README: those of its folder and its part."""
    folder = page.document.removesuffix("index")
    if not page.document.endswith("/index"):
        return []
    return [other for other in part.pages if other != page and other.document.startswith(folder)]


def _hidden_toctree(entries: list[str], options: str = "") -> str:
    lines = "\n".join(f"/{entry}" if "<" not in entry else entry for entry in entries)
    return f"\n\n```{{toctree}}\n:hidden:\n{options}\n{lines}\n```\n"


def _pages_below(page: Page, contents: Contents, language: str) -> str:
    """A lesson's notebook, and the pages below a folder's README."""
    part = next((part for part in contents.parts if page in part.pages), None)
    entries = [child.document for child in _below(page, part)] if part else []
    notebook = contents.notebook_of(page)
    if notebook is not None:
        entries.append(f"{WORDS[language]['notebook']} </{notebook.document}>")
    return _hidden_toctree(entries) if entries else ""


def _notebook(page: Page, language: str, target: Path, root: Path) -> str:
    source = root / page.source(language)
    folder = (target / page.document).parent
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / source.name)
    intro = WORDS[language]["intro"] % (source.name, page.source(language))
    return to_markdown(source, folder / "lesson_pictures", intro)


def _copy_pictures(text: str, page: Path, target: Path, root: Path) -> None:
    """Copy what the page shows with ![](…) or <img src>; a picture that is missing is Sphinx's to report."""
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)", text)  # whatever brackets a picture's description has
    for name in links + re.findall(r'<img[^>]* src="([^"]+)"', text):
        picture = (page.parent / name).resolve()
        if picture.suffix in PICTURES and picture.is_file() and picture.is_relative_to(root):
            copy = target / picture.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, copy)


def _modules(package: str, root: Path) -> list[str]:
    """The module itself and, of a package, its public modules, sorted."""
    folder = root / package.replace(".", "/")
    if not folder.is_dir():
        return [package]
    return [package, *sorted(f"{package}.{path.stem}" for path in folder.glob("[!_]*.py"))]


def _write_reference(package: str, language: str, target: Path, root: Path) -> None:
    """A page for each module, and for a package one that lists them with the first line of their docstrings."""
    words = WORDS[language]
    first, *others = _modules(package, root)
    for module in others:
        _write(target / f"reference/{module}.rst", _module_page(module, module))
    if not others:
        _write(target / f"reference/{first}.rst", _module_page(first, words["reference"] % f"``{first}``"))
        return
    rows = []
    for module in others:
        summary = _summary(root / module_file(module, root))
        rows.append(f"| [`{module}`](document:reference/{module}) | {summary} |")
    table = "\n".join([f"| {words['module']} | {words['holds']} |", "| --- | --- |", *rows])
    title = words["reference"] % f"`{package}`"
    page = f"# {title}\n\n{words['generated']}\n\n{table}\n"
    _write(
        target / f"reference/{package}.md", page + _hidden_toctree([f"reference/{name}" for name in others])
    )


def _module_page(module: str, title: str) -> str:
    # Twice as long as the title: Chinese characters take two columns.
    underline = "=" * 2 * len(title)
    return f"{title}\n{underline}\n\n.. automodule:: {module}\n   :members:\n   :member-order: bysource\n"


def _summary(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|").replace("``", "`")
