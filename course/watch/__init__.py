"""`course watch [LESSON]`: run a lesson's tests at each save, from a process that is warm already.

    command.py    imports torch, once; forks
    └ collector   collects the tests of one lesson, watches the files (session.py, files.py); at each save, forks
      └ run       imports the student's code, runs the tests, prints the report, ends (run.py)
        └ helper  runs half of the tests, on a second core (pair.py)

So the student's code is always freshly imported, and a crash, an endless loop, `os._exit` or a leak ends with its
run. A collector is replaced when the tests change or a file of another lesson is saved. Where processes cannot be
forked (Windows) there is no collector, and each run is a fresh process.
"""
