"""The gallery of mistakes: complete, small, the same each time, and without a cure."""

import re
import xml.etree.ElementTree as ET

import pytest

from course import gallery, sparkline
from course.drift import check as check_pages
from course.fingerprints import Bank, Sight
from course.leaks import find_leaks
from course.markdown import read_page
from course.mistakes import Entry, read_catalogue
from course.registry import lessons
from course.symptom import first_symptom, sentence, shown

CASES = ["basic_test::test_a[1]", "basic_test::test_b", "advanced_test::test_c"]


def bank(**fails):
    return Bank(CASES, "", {"wrong": fails}, {})


def sight(*misses, raised="Mismatch", where="", after=""):
    return Sight(raised, where, after, [list(miss) for miss in misses])


def entry(*caught_by):
    return Entry("wrong", (), "says", task="1.1", caught_by=caught_by)


# -------------------------------------------------------------------------------------------------- this gallery


def test_gallery_is_what_the_catalogue_and_the_fingerprints_say():
    assert gallery.check() == []
    size = sum(path.stat().st_size for path in gallery.FOLDER.rglob("*") if path.is_file())
    print(f"{size} bytes, {len(list(gallery.FOLDER.rglob('*.svg')))} curves")
    assert 0 < size < 2_000_000


@pytest.mark.parametrize("ending", ["", "_zh"])
def test_every_mistake_has_its_place_with_an_anchor(ending):
    for lesson in lessons():
        page = read_page(gallery.FOLDER / f"{lesson.name}{ending}.md")
        anchors = page.anchors()
        for mistake in read_catalogue(lesson).mistakes:
            section = page.sections[anchors[mistake.id]]
            text = "\n".join(section.prose)
            assert section.title == mistake.id
            assert all(f"`{test}`" in text for test in mistake.caught_by)
            assert mistake.seen in text
            assert ("最先的症状：" if ending else "First symptom: ") in text


def test_figures_are_used_well_formed_and_small():
    figures = set(gallery.FOLDER.rglob("*.svg"))
    used = {
        (page.parent / figure).resolve()
        for page in gallery.FOLDER.glob("*.md")
        for section in read_page(page).sections
        for figure in section.figures
    }
    assert used == {figure.resolve() for figure in figures}
    for figure in figures:
        assert figure.stat().st_size < 3000
        root = ET.fromstring(figure.read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")
        for number in re.findall(r"(?:cx|cy)=\"([^\"]+)\"", figure.read_text(encoding="utf-8")):
            assert 0 <= float(number) <= sparkline.WIDTH, figure


def test_no_page_of_the_gallery_gives_an_answer_away():
    files = [path for path in gallery.FOLDER.rglob("*") if path.is_file()]
    assert find_leaks(gallery.FOLDER, files).leaks == []


def test_languages_of_the_gallery_agree():
    assert check_pages(gallery.FOLDER)[0].pairs == len(lessons()) + 1
    problems = [p for p in check_pages(gallery.FOLDER.parent.parent)[1] if p.startswith("docs/mistakes/")]
    assert problems == []


# --------------------------------------------------------------------------------------- a toy course's gallery


def test_build_writes_the_gallery_and_check_sees_every_change(toy, edit):
    folder = toy.root / "docs" / "mistakes"
    page, index = folder / "lesson01_toy.md", folder / "README.md"
    text = page.read_text(encoding="utf-8")
    assert "You squared." in text
    assert "`2x`, step 0: got `9`, too large by 3 (`test_double_is_twice`)" in text
    assert "no error, where one is expected" not in text
    assert "2 | 0 | 0" in index.read_text(encoding="utf-8")
    assert toy.course("build", "--check").status == 0
    for change in (
        lambda: edit(page, "You squared.", "You tripled."),
        lambda: (folder / "lesson01_toy_zh.md").unlink(),
        lambda: (folder / "more.md").write_text("mine"),
        lambda: edit(toy.fingerprints, "0,9.0,3.0", "0,9.0,4.0"),
    ):
        change()
        result = toy.course("build", "--check")
        assert result.status == 1, result.text
        assert "docs/mistakes: " in result.err
        assert "run `course build`" in result.err
        assert "files of docs/mistakes" in toy.course("build").out
        assert toy.course("build", "--check").status == 0
    assert not (folder / "more.md").exists()


# ------------------------------------------------------------------------------------------------------ symptoms


def test_first_symptom_is_that_of_a_test_that_the_entry_names():
    fails = bank(**{case: sight((f"x{n}", 1, 2.0, 0.5)) for n, case in enumerate(CASES)})
    assert sentence(first_symptom(fails, entry("test_c"))) == "`x2`, step 1: got `2`, too large by 0.5"
    assert first_symptom(fails, entry("test_c", "test_a")).test == CASES[0]
    assert first_symptom(fails, entry("test_c")).failing == 3


@pytest.mark.parametrize(
    ("miss", "says"),
    [
        (("loss", 3, 1.5, -0.25), "`loss`, step 3: got `1.5`, too small by 0.25"),
        (("count", None, 3, 1.0), "`count`: got `3`, too large by 1"),
        (
            ("w", 1, ["float32[2]", 1.0, -2.0], 1e-7),
            "`w`, step 1: got `[1, -2]`, 1e-7 away from what is expected",
        ),
        (
            ("w", 1, ["float32[2, 4]", 0.5, 2.25, 1.0, 1.0, 1.0, 1.0], 0.1),
            "`w`, step 1: got a float32 tensor of shape `[2, 4]` and norm `2.25`, 0.1 away from what is expected",
        ),
        (("x", 1, ["bfloat16[]", 1.0], 0.0), "`x`, step 1: got `1`, the right number in the wrong type"),
        (("x", None, 1.0, "nan"), "`x`: got `1`, at a distance of nan"),
        (("keys", None, ["list 3", "a", 1], None), "`keys`: got `[a, 1, …]`, which is not what is expected"),
        (("state", None, ["dict 0"], None), "`state`: got `{}`, which is not what is expected"),
        (("buffer", 2, None, None), "`buffer`, step 2: got `None`, which is not what is expected"),
        (("the error raised", None, None, None), "no error, where one is expected"),
        (("the error raised", None, "KeyError", None), "`KeyError`, where another error is expected"),
    ],
)
def test_sentence_says_what_the_comparison_saw(miss, says):
    assert sentence(first_symptom(bank(**{CASES[0]: sight(miss)}), entry("test_a"))) == says


def test_sentence_of_a_crash_names_the_error_and_the_function():
    crash = bank(**{CASES[1]: sight(raised="IndexError", where="Trainer.step")})
    assert sentence(first_symptom(crash, entry("test_b"))) == "ends with `IndexError` in `Trainer.step`"
    late = bank(**{CASES[1]: sight(("x", 1, 2.0, 1.0), after="KeyError")})
    assert (
        sentence(first_symptom(late, entry("test_b")))
        == "`x`, step 1: got `2`, too large by 1; then `KeyError`"
    )


def test_noted_value_is_no_symptom():
    fails = bank(**{CASES[0]: sight(("reads", None, 3, None), ("keys", None, "x", None))})
    symptom = first_symptom(fails, entry("test_a"), frozenset({"reads"}))
    assert sentence(symptom).startswith("`keys`: got `x`")


# ------------------------------------------------------------------------------------------------------- figures


def series(*values, name="w", tensor=True):
    rows = [
        (name, step, ["float32[1]", value] if tensor else value, value / 2)
        for step, value in enumerate(values)
    ]
    return first_symptom(bank(**{CASES[0]: sight(*rows)}), entry("test_a"))


def heights(figure):
    return [float(y) for y in re.findall(r'cy="([^"]+)"', figure)]


def test_figure_needs_three_steps_and_something_to_show():
    assert series(1.0, 2.0).figure == ""
    assert series(1.0, 1.01, 1.02).figure == ""
    assert series(3.0, 3.0, 3.0, tensor=False).figure == ""
    assert series(1.0, 2.0, 4.0).figure
    assert series(1.0, 2.0, float("inf")).figure == ""


def test_distances_rise_from_zero_and_large_ranges_are_logarithmic():
    floor = sparkline.HEIGHT - 24
    low, middle, high = heights(series(1.0, 2.0, 4.0).figure)
    assert low - high == pytest.approx(0.75 * (floor - 12), abs=0.2)
    assert low - middle == pytest.approx(0.25 * (floor - 12), abs=0.2)
    low, middle, high = heights(series(1e-4, 1e-2, 1.0).figure)
    assert low == floor
    assert low - middle == pytest.approx(middle - high, abs=0.2)


def test_values_of_a_number_are_drawn_beside_what_is_expected():
    symptom = series(1.0, 2.0, 4.0, tensor=False)
    assert symptom.against
    expected, got = heights(symptom.figure)[:3], heights(symptom.figure)[3:]
    assert all(e > g for e, g in zip(expected, got, strict=True))  # half of it: lower on the page
    assert 'stroke-dasharray="5 4"' in symptom.figure
    assert ">0.5<" in symptom.figure
    assert ">4<" in symptom.figure


def test_markup_in_a_sentence_of_the_catalogue_is_shown_as_it_is():
    assert gallery._plain("a * b < c, `x * y`, _w_, p_q, $5 | [z]") == (
        "a \\* b &lt; c, `x * y`, \\_w\\_, p_q, \\$5 \\| \\[z\\]"
    )
    assert shown(["float32[]", 0.25]) == "`0.25`"
