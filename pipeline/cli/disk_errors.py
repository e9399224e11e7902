"""What the system says of a disk, a name or a folder, in one line: what, where, and what mends it."""

from __future__ import annotations

import errno

_VERBS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), "cannot write"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "cannot open"),
    errno.ENOLCK: "cannot lock",
}
"""Number → what could not be done; of others, to read or write."""
_MENDS = {
    "free some space or change the folder": (
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    ),
    # A folder where a file goes, or a file or a dangling link where a folder goes.
    "move away what lies there": (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    # A name that the file system has not room for, or links that lead in a circle.
    "choose another name": (errno.ENAMETOOLONG, errno.ELOOP),
    "put back what was there, or name another": (errno.ENOENT, errno.ENODEV, errno.ENXIO),
    "mount the network folder again": (errno.ESTALE, errno.ENOTCONN),
    "look whether the disk fails (dmesg)": (errno.EIO,),
    "repair the file system (fsck)": (errno.EUCLEAN,),
    "look after the network": (errno.ETIMEDOUT,),
    "wait for what uses it": (errno.EBUSY, errno.ETXTBSY),
    "choose a folder on a disk that has locks": (errno.ENOLCK,),
    "raise the limit of open files (ulimit -n)": (errno.EMFILE,),
    "close other programs": (errno.ENFILE,),
    "free some memory": (errno.ENOMEM,),
}  # fmt: skip
"""What a user can do → the numbers of the errors that it helps against."""


def line(error: OSError) -> str | None:
    """One line for the user; None of an error that is none of a disk's, and whose traceback is wanted."""
    mend = next((mend for mend, numbers in _MENDS.items() if error.errno in numbers), None)
    if mend is None:
        return None
    verb = _VERBS.get(error.errno or 0, "cannot read or write")
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
