"""Loads the course's pytest plugin, so that plain `pytest` works from the root and from inside a lesson."""

pytest_plugins = ["course.pytest_plugin"]
