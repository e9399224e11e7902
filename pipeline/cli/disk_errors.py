"""What the system says of a disk, a name or a folder, in one line: what, where, and what mends it."""

from __future__ import annotations

import errno

_ROOM = "free some space or change the folder"
_THERE = "put back what was there, or name another"
_MENDS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("cannot write", _ROOM),
    errno.EDQUOT: ("cannot write", _ROOM),
    errno.EFBIG: ("cannot write", _ROOM),
    errno.EROFS: ("cannot write", _ROOM),
    errno.EACCES: ("cannot read or write", _ROOM),
    errno.EPERM: ("cannot read or write", _ROOM),
    # A folder where a file goes, or a file or a dangling link where a folder goes.
    errno.EISDIR: ("cannot read or write", "move away what lies there"),
    errno.ENOTDIR: ("cannot read or write", "move away what lies there"),
    errno.EEXIST: ("cannot read or write", "move away what lies there"),
    errno.ENOTEMPTY: ("cannot read or write", "move away what lies there"),
    # A name that the file system has not room for, or links that lead in a circle.
    errno.ENAMETOOLONG: ("cannot read or write", "choose another name"),
    errno.ELOOP: ("cannot read or write", "choose another name"),
    errno.ENOENT: ("cannot read or write", _THERE),
    errno.ESTALE: ("cannot read or write", "mount the network folder again"),
    errno.ENODEV: ("cannot read or write", _THERE),
    errno.ENXIO: ("cannot read or write", _THERE),
    errno.EIO: ("cannot read or write", "look whether the disk fails (dmesg)"),
    errno.EUCLEAN: ("cannot read or write", "repair the file system (fsck)"),
    errno.ENOTCONN: ("cannot read or write", "mount the network folder again"),
    errno.ETIMEDOUT: ("cannot read or write", "look after the network"),
    errno.EBUSY: ("cannot read or write", "wait for what uses it"),
    errno.ETXTBSY: ("cannot read or write", "wait for what uses it"),
    errno.ENOLCK: ("cannot lock", "choose a folder on a disk that has locks"),
    errno.EMFILE: ("cannot open", "raise the limit of open files (ulimit -n)"),
    errno.ENFILE: ("cannot open", "close other programs"),
    errno.ENOMEM: ("cannot read or write", "free some memory"),
}
"""Number → what could not be done, and what a user can do about it."""


def line(error: OSError) -> str | None:
    """One line for the user; None of an error that is none of a disk's, and whose traceback is wanted."""
    if error.errno not in _MENDS:
        return None
    verb, mend = _MENDS[error.errno]
    place = error.filename2 or error.filename  # of a copy, the second is where it goes
    where = f" at {place}" if place else ""
    return f"{verb}{where}: {error.strerror}; {mend}, then run the command again"


def odd_name(error: UnicodeEncodeError) -> str:
    """One line about a name that is no UTF-8, which no JSON, no graph and no message can hold."""
    odd = ascii(error.object[max(0, error.start - 60) : error.end + 60])
    return f"a name or a text is no UTF-8: {odd}; rename the file or the folder"


def is_loop(error: Exception) -> bool:
    """Whether it is what `Path.resolve` raises of links in a circle, up to Python 3.12."""
    return isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from ")
