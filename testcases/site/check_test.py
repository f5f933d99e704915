"""The check of the built site finds each thing that may be wrong with it, and nothing in a good one."""

import pytest

from course.__main__ import main
from course.site.check import check

PAGE = (
    '<!doctype html><html lang="{language}"><head><link rel="stylesheet" href="{up}style.css"></head><body>'
    '<a class="language-switch" href="{twin}">x</a><h1 id="title">t</h1><img src="{up}a%20b.png">'
    '<a href="#title">x</a><a href="https://example.org/#x">x</a><a href="page.html#title">x</a></body></html>'
)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "zh").mkdir()
    for name in ("index.html", "page.html"):
        (tmp_path / name).write_text(PAGE.format(language="en", up="", twin=f"zh/{name}"))
        (tmp_path / "zh" / name).write_text(PAGE.format(language="zh-CN", up="../", twin=f"../{name}"))
    (tmp_path / "style.css").write_text("body { background: url('a b.png') }")
    (tmp_path / "a b.png").touch()
    return tmp_path


def test_good_site_has_no_problem_and_everything_is_counted(site):
    report = check(site)
    assert report.problems == []
    assert report.counts == {
        "pages": 4,
        "links": 16,
        "links out": 4,
        "anchors": 8,
        "loaded files": 9,
        "switches": 4,
        "style sheets": 1,
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('href="page.html#title"', 'href="gone.html"', "the link gone.html leads nowhere"),
        (
            'href="page.html#title"',
            'href="page.html#gone"',
            "page.html#gone leads to a page without that anchor",
        ),
        ('href="#title"', 'href="#gone"', "#gone leads to a page without that anchor"),
        ('href="#title"', 'href="../outside.html"', "leads nowhere"),
        ('href="#title"', 'href="/index.html"', "works on no reader's machine"),
        ('href="#title"', 'href="file:///home/x"', "works on no reader's machine"),
        ('src="a%20b.png"', 'src="gone.png"', "loads gone.png, which is not there"),
        ('src="a%20b.png"', 'src="https://example.org/a.png"', "from another machine"),
        ('href="style.css"', 'href="//example.org/style.css"', "from another machine"),
        ("<h1 ", '<p style="background: url(http://example.org/b.png)"></p><h1 ', "from another machine"),
        ("<h1 ", '<script src="https://example.org/a.js"></script><h1 ', "from another machine"),
        ("<h1 ", '<p id="title"></p><h1 ', "the id 'title' is there 2 times"),
        ('lang="en"', 'lang="zh"', "its language is 'zh'"),
        ('href="zh/index.html"', 'href="zh/page.html"', "the language switch does not lead to zh/index.html"),
        ('class="language-switch"', "", "the language switch does not lead to"),
    ],
)
def test_fault_of_a_page_is_named_with_the_page(site, old, new, words):
    page = site / "index.html"
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, new))
    problems = check(site).problems
    assert len(problems) == 1
    assert problems[0].startswith("index.html: ")
    assert words in problems[0]


def test_style_sheet_and_missing_twin_are_checked(site):
    (site / "style.css").write_text("@import 'https://example.org/a.css'; p { background: url(gone.png) }")
    (site / "zh" / "page.html").unlink()
    problems = "\n".join(check(site).problems)
    assert "style.css: loads https://example.org/a.css from another machine" in problems
    assert "style.css: loads gone.png, which is not there" in problems
    assert "page.html: the link zh/page.html leads nowhere" in problems


def test_folder_without_pages_is_no_site(tmp_path):
    assert check(tmp_path).problems == [f"{tmp_path} holds no page: build the site first"]


@pytest.mark.parametrize("what", ["check", "browse"])
def test_folder_without_a_site_is_no_site_without_problems(what, tmp_path, capsys):
    assert main(["docs", what, "--out", str(tmp_path)]) == 2
    assert "holds no site" in capsys.readouterr().err
