"""Links as GitHub understands them become addresses of the site, in the reader's language."""

import pytest

from course.registry import ROOT
from course.site.contents import read_contents
from course.site.links import BadLink, Links, uri

LESSON = "tutorial/stage01_optimizers/lesson01_sgd"


@pytest.fixture(scope="module")
def contents():
    return read_contents()


def address(contents, language, page, href):
    links = Links(contents, language)
    place = links.resolve(page, href)
    if place is None:
        return None
    return uri(contents.by_file[page][0].document, language, place)


@pytest.mark.parametrize(
    ("language", "page", "href", "wanted"),
    [
        # a page in the reader's language, whichever file the link names
        ("en", "README.md", f"{LESSON}/README.md", f"{LESSON}/index.html"),
        ("zh", "README_zh.md", f"{LESSON}/README_zh.md", f"{LESSON}/index.html"),
        ("zh", "README_zh.md", f"{LESSON}/README.md", f"{LESSON}/index.html"),
        (
            "en",
            f"{LESSON}/README.md",
            "../../../docs/recovery.md#four-failures",
            "../../../docs/recovery.html#four-failures",
        ),
        ("en", "README.md", LESSON, f"{LESSON}/index.html"),
        ("en", "README.md", f"{LESSON}/", f"{LESSON}/index.html"),
        ("zh", "README_zh.md", "CHANGELOG.md", "CHANGELOG.html"),
        # the other language: a page's own twin, and a Chinese file that an English page names
        ("en", "README.md", "README_zh.md", "zh/index.html"),
        ("zh", "README_zh.md", "README.md", "../index.html"),
        ("zh", "docs/recovery_zh.md", "recovery.md", "../../docs/recovery.html"),
        ("en", "README.md", "docs/recovery_zh.md", "zh/docs/recovery.html"),
        # source files and folders
        (
            "en",
            f"{LESSON}/README.md",
            "../../../training/trainer.py#L3",
            "../../../source/training/trainer.py/index.html#L3",
        ),
        ("zh", "README_zh.md", "Makefile", "source/Makefile/index.html"),
        ("en", "README.md", "training/configs/", "source/training/configs/index.html"),
        ("en", f"{LESSON}/README.md", "../../..", "../../../index.html"),
        # not ours
        ("en", "README.md", "https://pytorch.org/x.md", None),
        ("en", "README.md", "mailto:x@example.org", None),
        ("en", "README.md", "#for-students", None),
    ],
)
def test_link_leads_where_it_does_on_github(contents, language, page, href, wanted):
    assert address(contents, language, page, href) == wanted


@pytest.mark.parametrize(
    "href", ["docs/no_such_page.md", "training/nothing.py", "../elsewhere.md", "/etc/hosts"]
)
def test_link_that_leads_nowhere_is_refused(contents, href):
    with pytest.raises(BadLink):
        Links(contents, "en").resolve("README.md", href)


def test_paths_in_running_text_become_links_but_never_to_answers(contents):
    links = Links(contents, "en")
    assert links.mentioned("training/trainer.py").file == "training/trainer.py"
    answer = next((ROOT / "solutions").glob("*/*/optimizer.py")).relative_to(ROOT).as_posix()
    assert links.mentioned(answer) is None
    assert links.mentioned("training/no_such_file.py") is None
    assert links.mentioned("import training/trainer.py") is None


def test_only_a_link_to_the_own_twin_is_a_switch(contents):
    links = Links(contents, "en")
    assert links.is_switch("README.md", "README_zh.md")
    assert not links.is_switch("README.md", "docs/recovery_zh.md")
    assert not links.is_switch("README.md", "README_zh.md#面向学员")  # leads to a place, not to the page
    assert not links.is_switch("README.md", "docs/recovery.md")
