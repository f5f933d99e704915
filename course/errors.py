"""The one exception that the `course` command turns into a sentence and exit status 2."""


class CourseError(Exception):
    """Something that the user can mend: what is wrong, where, and what to do, in one sentence."""
