"""NumPy's files, read strictly: .npy and .npz, of which no object is made and nothing is trusted.

`numpy.load` allocates what a header claims, unpacks what an archive holds however much that is, and raises
whatever its parts raise.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.records.base import open_regular
from pipeline.types import UserError, first_line

MOST = 4 * 2**30
"""Bytes of all arrays of a file at most."""
_MALFORMED = (
    ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError,
    RuntimeError, SyntaxError, TypeError, OverflowError, MemoryError, AttributeError, tokenize.TokenError,
)  # fmt: skip
"""What `numpy.load` raises of a damaged file."""


def read_array(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file.

    Raises:
        UserError: it is missing, no regular file, or no such file.
    """
    with open_regular(path) as file:
        try:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        except _MALFORMED as error:
            raise _refusal(path, error) from None
    return array


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .npz file, by name.

    Raises:
        UserError: it is missing, no regular file, or no such file; or its arrays have more than MOST bytes.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if (size := sum(entry.file_size for entry in archive.infolist())) > MOST:
                    raise UserError(
                        f"{path} holds {size:,} bytes of arrays; {MOST:,} is the most that is read"
                    )
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                return {name.removesuffix(".npy"): _entry(archive, name) for name in names}
        except UserError:
            raise
        except _MALFORMED as error:
            raise _refusal(path, error) from None


def _entry(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(name) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _refusal(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} holds no arrays that can be read ({first_line(error, 200)})")
