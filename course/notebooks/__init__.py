"""The notebooks: written as `docs/notebooks/<lesson>.py`, built into `lesson.ipynb` and `lesson_zh.ipynb`.

    source.py    reads a source: code cells, and text cells in English and Chinese
    student.py   the student's code behind a notebook
    execute.py   runs the cells in a clean kernel
    build.py     writes the two files of a lesson
    check.py     sources, files and a fresh run agree; nothing of a solution is in them
    command.py   `course notebooks build | run | check`

What the cells import is `course/notebook.py`; its docstring tells how to write one.
"""
