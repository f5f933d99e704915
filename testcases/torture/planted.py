"""Mistakes planted into a saver: the same kills and errors must find every one of them.

A suite that says "0 lost" of a saver that loses files proves nothing. protocols.py makes the savers; those of its
mistakes that a kill or an error shows are tried here (a power cut shows the others: power.py), and some of our own.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from testcases.torture import errnos, kills
from testcases.torture.matrix import Budget, Row
from testcases.torture.protocols import PLANTED, Patch, manager_class
from testcases.torture.ptrace import unavailable
from testcases.torture.rotation import OurKeeper, Run
from testcases.torture.sweep import Faults, trials
from training import checkpoint, durable

SAMPLED = 1
UNLINK = "        temporary.unlink(missing_ok=True)\n        if raw.error"
COUNT = "            count = os.write(self._descriptor, data)\n"
REPLACED = "        os.replace(temporary, path)\n    except BaseException:\n        temporary.unlink(missing_ok=True)\n"

BY_KILLS: dict[str, list[Patch]] = {
    **{
        name: PLANTED[name]
        for name in (
            "copied over the old file",
            "old file deleted before the rename",
            "digest of the new file alone, first",
            "digest after the file",
            "older ones deleted before the save",
        )
    },
    "what a killed save left is never removed": [
        (durable, "            remove_litter(path.parent)", "            pass")
    ],
    "digests of nothing are never removed": [
        (checkpoint, "                    self._remove_orphans()\n", "                    pass\n")
    ],
}
BY_ERRORS: dict[str, list[Patch]] = {
    **{name: PLANTED[name] for name in ("failed fsync tried again", "failed fsync ignored")},
    "an error of a write is swallowed": [
        (durable, "            self.error = error\n            raise\n", "            return len(data)\n")
    ],
    "a short write is taken for a whole one": [(durable, COUNT, COUNT + "            count = len(data)\n")],
    "the temporary file stays after an error": [
        (durable, UNLINK, "        if raw.error"),
        (durable, "            remove_litter(path.parent)", "            pass"),
    ],
    "an error ends the training": [
        (
            checkpoint,
            "        except Exception as error:  # whatever",
            "        except ValueError as error:  # whatever",
        )
    ],
}


def rows(budget: Budget) -> Iterator[Row]:
    for kind, planted, faults in (("kills", BY_KILLS, kills.faults), ("errors", BY_ERRORS, errnos.faults)):
        name = f"planted mistakes, found by {kind}"
        if reason := unavailable():
            yield Row(name, 0, len(planted), [], 0.0, note=reason, skipped=True)
            continue
        rng, began = random.Random(budget.seed), time.monotonic()
        names = rng.sample(list(planted), SAMPLED) if budget.sample else list(planted)
        missed = [each for each in names if not found(planted[each], faults, budget.folder / "planted", rng)]
        note = f"planted protocol errors found {len(names) - len(missed)} / {len(names)}"
        failures = [f"not found: {each}" for each in missed]
        yield Row(name, len(names), len(planted), failures, time.monotonic() - began, note=note)


def found(patches: list[Patch], faults: Faults, base: Path, rng: random.Random) -> bool:
    """Whether the trials, in any order, find something wrong."""
    manager = manager_class(patches)
    run = Run("planted", partial(_keeper, manager), 3)
    try:
        tried = trials(run, faults, base, lambda all_: rng.sample(all_, len(all_)))
        return any(problem is not None for problem in tried)
    finally:
        shutil.rmtree(base)


def _keeper(manager: type[checkpoint.CheckpointManager], folder: Path) -> OurKeeper:
    return OurKeeper(folder, False, manager)
