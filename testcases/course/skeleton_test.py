"""The skeleton generator: what it cuts out, and the errors that name file and line."""

import pytest

from course.errors import CourseError
from course.skeleton import find_regions, make_skeleton, without_markers

GOOD = '''
def f(xs):
    """Doc with a # BEGIN SOLUTION in it."""
    total = 0
    for x in xs:
        # TODO 2.3 add "x" to the total
        # more words
        # BEGIN SOLUTION
        if x:
            total += x
        # END SOLUTION
    return total
'''


def test_region_becomes_a_named_error_and_the_rest_stays():
    skeleton = make_skeleton(GOOD, "a.py")
    expected = GOOD.replace(
        """        # BEGIN SOLUTION
        if x:
            total += x
        # END SOLUTION
""",
        """        raise NotImplementedError("task 2.3: add \\"x\\" to the total")
""",
    )
    assert skeleton == expected
    names: dict = {}
    exec(skeleton, names)
    with pytest.raises(NotImplementedError, match=r'^task 2\.3: add "x" to the total$'):
        names["f"]([1])


def test_region_reports_its_lines():
    (region,) = find_regions(GOOD, "a.py")
    assert (region.task, region.todo, region.begin, region.end) == ("2.3", 6, 8, 11)


def test_solution_without_markers_is_the_solution():
    text = without_markers(GOOD)
    assert "\n        # BEGIN" not in text
    assert "\n        # END" not in text
    names: dict = {}
    exec(text, names)
    assert names["f"]([1, 0, 2]) == 3


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("        if x:\n            total += x\n", "        pass\n", 8, "is empty"),
        ("        if x:\n            total += x\n", '        "only a text"\n', 8, "is empty"),
        ("        # END SOLUTION\n", "", 8, "no END SOLUTION"),
        ('        # TODO 2.3 add "x" to the total\n', "", 7, "without a `# TODO"),
        ("        # more words\n", "        y = 1\n", 8, "without a `# TODO"),
        ("        # BEGIN SOLUTION\n", "", 10, "without a BEGIN"),
        ("        if x:\n", "        # BEGIN SOLUTION\n        if x:\n", 9, "inside the region"),
        ("        if x:\n", "        # TODO 2.4 nested\n        if x:\n", 9, "inside the region"),
        ("# BEGIN SOLUTION\n        if", "# Begin solution\n        if", 8, "exactly as"),
        ("        # END SOLUTION", "            # END SOLUTION", 8, "indented"),
        ("# TODO 2.3 add", "# TODO later: add", 6, "TODO line reads"),
        (
            "            total += x\n        # END",
            "            # END SOLUTION\n            total += x\n        # END",
            12,
            "END SOLUTION without a BEGIN",
        ),
        ("total = 0\n", "total = 0  # END SOLUTION\n", 4, "line of its own"),
        ("return total", "return total +", 12, ""),
    ],
)
def test_malformed_region_is_an_error_with_file_and_line(old, new, line, says):
    assert GOOD.count(old) == 1
    with pytest.raises(CourseError) as caught:
        make_skeleton(GOOD.replace(old, new), "folder/a.py")
    assert str(caught.value).startswith(f"folder/a.py:{line}: ")
    assert says in str(caught.value)


def test_region_outside_a_function_is_refused():
    source = "# TODO 1.1 a constant\n# BEGIN SOLUTION\nX = 1\n# END SOLUTION\n"
    with pytest.raises(CourseError, match=r"^a\.py:2: .*inside a function"):
        find_regions(source, "a.py")


def test_region_that_cuts_a_statement_in_half_is_refused():
    source = GOOD.replace(
        "        # BEGIN SOLUTION\n        if x:\n", "        if x:\n        # BEGIN SOLUTION\n"
    )
    source = source.replace("        # more words\n", "")
    with pytest.raises(CourseError, match=r"^a\.py:"):
        find_regions(source, "a.py")
