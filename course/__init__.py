"""The machine that runs the course: registry, skeleton generator, pytest plugin, gates, the `course` command.

Run it with `python -m course` (or `course`, once `pip install -r requirements.txt` has run).
"""
