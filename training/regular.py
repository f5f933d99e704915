"""Files that can be read to their end. A FIFO would be waited for without end, a device read without end.

Used by yaml_file.py and checkpoint_file.py: ``with open_regular(path) as file: …``.
"""

from __future__ import annotations

import errno
import io
import os
import stat


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading bytes.

    Raises:
        OSError: as `open`; and where the path is a FIFO, a device or a socket.
    """
    # Looked at once it is open: what has been looked at is what will be read. O_NONBLOCK: the other end of a
    # FIFO is not waited for; regular files do not know it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
