"""The system calls of x86-64 that concern files, and which files an operation is about.

seen.py holds this list against strace: a call that is missing here is found there.
"""

from __future__ import annotations

import os

AT_FDCWD = -100
PROT_WRITE, MAP_SHARED = 2, 1
O_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# number: (name, where the file is named), a letter an argument: d a descriptor, p a path, D a folder's descriptor
# with a path behind it, "." something else
CHANGES = {
    1: ("write", "d"),
    18: ("pwrite64", "d"),
    20: ("writev", "d"),
    296: ("pwritev", "d"),
    328: ("pwritev2", "d"),
    40: ("sendfile", "d"),
    275: ("splice", "..d"),
    326: ("copy_file_range", "..d"),
    77: ("ftruncate", "d"),
    76: ("truncate", "p"),
    285: ("fallocate", "d"),
    3: ("close", "d"),
    74: ("fsync", "d"),
    75: ("fdatasync", "d"),
    277: ("sync_file_range", "d"),
    306: ("syncfs", "d"),
    82: ("rename", "pp"),
    264: ("renameat", "DD"),
    316: ("renameat2", "DD"),
    87: ("unlink", "p"),
    263: ("unlinkat", "D"),
    84: ("rmdir", "p"),
    83: ("mkdir", "p"),
    258: ("mkdirat", "D"),
    86: ("link", "pp"),
    265: ("linkat", "DD"),
    88: ("symlink", ".p"),
    266: ("symlinkat", ".D"),
    85: ("creat", "p"),
    73: ("flock", "d"),
    91: ("fchmod", "d"),
    90: ("chmod", "p"),
    268: ("fchmodat", "D"),
    93: ("fchown", "d"),
    280: ("utimensat", "D"),
}
# an open or an mmap may also be a change, see `name_of`
LOOKS = {
    2: ("open", "p"),
    257: ("openat", "D"),
    437: ("openat2", "D"),
    0: ("read", "d"),
    17: ("pread64", "d"),
    19: ("readv", "d"),
    217: ("getdents64", "d"),
    5: ("fstat", "d"),
    4: ("stat", "p"),
    6: ("lstat", "p"),
    262: ("newfstatat", "D"),
    332: ("statx", "D"),
    8: ("lseek", "d"),
    16: ("ioctl", "d"),
    72: ("fcntl", "d"),
    21: ("access", "p"),
    269: ("faccessat", "D"),
    89: ("readlink", "p"),
    267: ("readlinkat", "D"),
    9: ("mmap", "....d"),
    221: ("fadvise64", "d"),
}
SYSTEM_CALLS = CHANGES | LOOKS
LOOKING = {name for name, _ in LOOKS.values()}
WRITES = ("write", "pwrite64")  # the count is their third argument, so they can be cut short


def name_of(number: int, arguments: tuple[int, ...]) -> tuple[str, str] | None:
    """The name of a system call and where its files are named; None for one that is not about files."""
    if number not in SYSTEM_CALLS:
        return None
    name, shape = SYSTEM_CALLS[number]
    if name in ("open", "openat") and arguments[1 + (name == "openat")] & O_CHANGES:
        name = "creat"
    if name == "mmap" and arguments[2] & PROT_WRITE and arguments[3] & MAP_SHARED:
        name = "mmap to write"
    return name, shape


class Process:
    """A stopped process, asked for the paths in the arguments of its system call. Close it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._memory = -1

    def close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)

    def paths(self, shape: str, arguments: tuple[int, ...]) -> list[str]:
        """The absolute paths of the files; "" for a descriptor of none."""
        found = []
        position = 0
        for letter in shape:
            value = arguments[position]
            if letter == "d":
                found.append(self._descriptor(value))
            elif letter == "p":
                found.append(self._path(AT_FDCWD, value))
            elif letter == "D":
                found.append(self._path(value, arguments[position + 1]))
                position += 1
            position += 1
        return found

    def text(self, address: int) -> str:
        """The string at an address, up to its NUL."""
        if self._memory < 0:
            self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        text = b""
        while address and b"\0" not in text and len(text) < 4096:
            start = address + len(text)
            text += os.pread(self._memory, 256 - start % 256, start)  # never over the end of a page
        return os.fsdecode(text.partition(b"\0")[0])

    def _descriptor(self, register: int) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{_int(register)}")
        except OSError:  # −1, or closed
            return ""

    def _path(self, folder: int, address: int) -> str:
        text = self.text(address)
        if not text:  # AT_EMPTY_PATH: the descriptor itself
            return self._descriptor(folder)
        if text.startswith("/"):
            return os.path.normpath(text)
        place = "cwd" if _int(folder) == AT_FDCWD else f"fd/{_int(folder)}"
        return os.path.normpath(os.path.join(os.readlink(f"/proc/{self.pid}/{place}"), text))


def _int(register: int) -> int:
    """What C sees in a register where it expects an int."""
    low = register & (1 << 32) - 1
    return low - (1 << 32) if low >= 1 << 31 else low
