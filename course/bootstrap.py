"""Make `.venv` ready: `python3 course/bootstrap.py`. The Makefile calls this before everything else.
`python3 course/bootstrap.py docs` adds requirements-docs.txt to it.

Uses the standard library only and the oldest syntax that does, since it runs before anything is installed and on
whatever `python3` is. `.venv` counts as ready only when its last act, writing `.venv/installed.txt`, was done
for the present requirements: an install that failed or was interrupted starts afresh the next time.
"""

import hashlib
import os
import shutil
import subprocess
import sys

MINIMUM = (3, 11)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
# What may be installed, and the file that its last act writes.
STAMPS = {
    "requirements.txt": os.path.join(VENV, "installed.txt"),
    "requirements-docs.txt": os.path.join(VENV, "installed-docs.txt"),
}
PYTHON = os.path.join(
    VENV, "Scripts" if os.name == "nt" else "bin", "python.exe" if os.name == "nt" else "python"
)


def fingerprint(requirements):
    """What an install depends on: the requirements (those of the course, too) and the package's metadata."""
    digest = hashlib.sha256()
    names = ["requirements.txt", "pyproject.toml"]
    for name in names if requirements in names else [*names, requirements]:
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def finished_install(requirements):
    """The fingerprint that `.venv` was installed to the end for; "" when it was not, was moved, or is broken."""
    try:
        with open(STAMPS[requirements]) as file:
            digest, place = file.read().splitlines()
        works = place == VENV and subprocess.call([PYTHON, "-c", ""], stderr=subprocess.DEVNULL) == 0
        return digest if works else ""
    except (OSError, ValueError):
        return ""


def find_python():
    """This Python if it is new enough, else a newer one on the PATH, else None."""
    if sys.version_info >= MINIMUM:
        return sys.executable
    for minor in range(13, MINIMUM[1] - 1, -1):
        path = shutil.which("python3.%d" % minor)
        if path and subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def create(python):
    """An empty `.venv`, in place of whatever an unfinished install left."""
    if os.path.lexists(VENV):
        if not os.path.exists(os.path.join(VENV, "pyvenv.cfg")) and os.listdir(VENV):
            stop("%s exists and is not a virtual environment: move it away and run this again." % VENV)
        shutil.rmtree(VENV)
    if subprocess.call([python, "-m", "venv", VENV]) != 0:
        stop(
            "%s could not make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv."
            % python
        )


def install(requirements, size):
    """Install the requirements into `.venv`; the stamp goes first and comes back last."""
    print("Installing %s into .venv (%s) ..." % (requirements, size), flush=True)
    stamp = STAMPS[requirements]
    if os.path.exists(stamp):
        os.unlink(stamp)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.call([*pip, "-r", requirements], cwd=ROOT) != 0:
        stop(
            "pip could not install %s (its message is above); .venv is not used until it can." % requirements
        )
    with open(stamp + ".new", "w") as file:
        file.write("%s\n%s\n" % (fingerprint(requirements), VENV))
        file.flush()
        os.fsync(file.fileno())
    os.replace(stamp + ".new", stamp)


def stop(sentence):
    sys.stderr.write("bootstrap: %s\n" % sentence)
    sys.exit(1)


def main():
    finished = finished_install("requirements.txt")
    try:
        if finished != fingerprint("requirements.txt"):
            python = find_python()
            if python is None:
                stop("Python %d.%d or newer is needed, this is %s." % (*MINIMUM, sys.version.split()[0]))
            if not finished:
                create(python)
            install("requirements.txt", "about a minute, 1.3 GB")
        if sys.argv[1:] == ["docs"]:
            docs = "requirements-docs.txt"
            if finished_install(docs) != fingerprint(docs):
                install(docs, "seconds, 150 MB")
        elif sys.argv[1:]:
            stop("expected nothing or 'docs', got %s" % " ".join(sys.argv[1:]))
    except KeyboardInterrupt:
        stop("interrupted; the next call starts the install afresh.")


if __name__ == "__main__":
    main()
