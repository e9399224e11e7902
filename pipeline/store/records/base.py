"""What all records share: they are read strictly from JSON, once, and are typed from then on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.types import UserError

log = logging.getLogger(__name__)
MAX_BYTES = 64 * 2**20
"""Bytes of a record at most: a larger file is none of ours."""
MAX_VALUES = 1_000_000
"""Values of a record at most: pydantic makes an error of each that is wrong, of all before it ends."""
MAX_LAYERS = 10_000

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, in hexadecimal."""
Count = Annotated[int, Field(ge=0, le=2**62)]
Layer = Annotated[int, Field(ge=0, lt=MAX_LAYERS)]
NumLayers = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
Magnitude = Annotated[float, Field(ge=0, le=1e100)]
Seconds = Magnitude
Number = Annotated[float, Field(ge=-1e100, le=1e100)]
"""A measured one: its square, and sums of a few thousand of these, are finite too."""
Positive = Annotated[int, Field(ge=1, le=2**62)]
VariantName = Annotated[str, Field(min_length=1, max_length=100_000)]
"""Every other layer of MAX_LAYERS, attention and MLP each its own, fits."""

Form = TypeVar("Form")
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class Record(BaseModel):
    """A record of one kind: fields with types, finite numbers, no field missing.

    A key that the kind does not know is passed over, so that files of later versions can be read.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )

    def plain(self) -> dict[str, Any]:
        """The record as JSON takes it, under the names that files have."""
        return self.model_dump(mode="json", by_alias=True)

    def matches(self, wanted: Mapping[str, Any]) -> bool:
        """Whether these fields have just these values, compared as JSON has them."""
        fields, expected = self.plain(), json.loads(json.dumps(dict(wanted)))
        return all(key in fields and fields[key] == value for key, value in expected.items())

    def replaced(self, **changes: Any) -> Self:
        """The same record with other values in some fields, checked again."""
        return type(self).model_validate({**dict(self), **changes})


class FileDigest(Record):
    """A file by its name and its SHA-256."""

    file: str
    sha256: Digest


class FileState(Record):
    """What a record says of a file that it speaks for.

    Attributes:
        file: its name, or its path from where the record says.
        bytes, mtime_ns, ctime_ns, inode: while they are equal, the file is taken for unchanged.
        sample: digest of the parts that are read of it (`store/weights.py`).
        sha256: of the whole file, where all of it was read.
    """

    file: str
    bytes: Count
    mtime_ns: int
    ctime_ns: int
    inode: Count
    sample: Digest
    sha256: Digest | None = None


class WeightsRecord(Record):
    """weights.json beside a model's weights: digests of its files, each taken once a content."""

    what: Literal["weights"] = "weights"
    files: tuple[FileState, ...] = ()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open to be read: no pipe is waited for, no device read without end.

    Raises:
        UserError: it is missing, no regular file, or cannot be opened.
    """
    try:
        # Without O_NONBLOCK a named pipe would be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # a NUL in its name
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handle)
        if stat.S_ISDIR(mode := os.fstat(handle).st_mode):
            raise UserError(f"{path} cannot be read: Is a directory")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is not a regular file")
        yield stack.enter_context(os.fdopen(handle, "rb", closefd=False))


def is_there(path: Path) -> bool:
    """Whether a file lies at a path where a checkpoint may have one.

    A pipe, a folder or a link that leads nowhere is no missing file: what it should say would be left out.

    Raises:
        UserError: something lies there that is no regular file.
    """
    if path.is_file():
        return True
    if os.path.lexists(path):
        raise UserError(f"{path} is no regular file; remove it, or put the file itself there")
    return False


def refuse_odd_file(path: Path, most: int | None = None) -> None:
    """Refuses what a library that opens files by their names would hang on, or read into memory for ever.

    Args:
        path: of the file.
        most: bytes that it may have; None for any number.

    Raises:
        UserError: it is missing, no regular file, larger, or cannot be opened.
    """
    with open_regular(path) as file:
        _refuse_large(path, file, most)


def _refuse_large(path: Path, file: BinaryIO, most: int | None) -> None:
    if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
        raise UserError(f"{path} has {size:,} bytes; a file of its kind has {most:,} at most")


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a file of which all is read.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        UserError: it is missing, no regular file, larger, or cannot be read.
    """
    with open_regular(path) as file:
        _refuse_large(path, file, most)
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > most:  # those of /proc have no size, and this one grew
        raise UserError(f"{path} has more than {most:,} bytes, which no file of its kind has")
    return content


def parse(form: type[Form] | TypeAdapter[Form], data: bytes, path: Path) -> Form:
    """JSON text as a record of one kind.

    Args:
        form: the kind of record, or an adapter of several kinds.
        data: the text, in UTF-8.
        path: where it was read, for the message.

    Raises:
        UserError: it is not UTF-8, not JSON, nested too deep, or has another form; says where in it.
    """
    adapter: TypeAdapter[Form] = form if isinstance(form, TypeAdapter) else TypeAdapter(form)
    if adapter is not _OBJECT and data.count(b",") > MAX_VALUES:
        raise UserError(f"{path} has more than {MAX_VALUES:,} values, which no record has")
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f" at {place!r:.200}" if place else ""
        kind = "missing" if first["type"] == "missing" else first["msg"]
        if first["type"].startswith("union_tag"):  # of a record of another kind
            tag = first["ctx"]["discriminator"]
            kind = f"its {tag} is missing or not known; it is the record of something else"
        raise UserError(f"{path} is not a valid record{where}: {kind}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None


def read(form: type[Form] | TypeAdapter[Form], path: Path) -> Form:
    """The record in a file.

    Raises:
        UserError: as `read_bytes` and `parse`.
    """
    return parse(form, read_bytes(path), path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of another program, whose keys are its own: config.json say.

    Raises:
        UserError: as `read_bytes` and `parse`.
    """
    return read(_OBJECT, path)


def read_if_valid(form: type[Form], path: Path) -> Form | None:
    """The record in a file that can be made again: None where it is missing or has another form.

    A record of another form proves nothing, so what it stood for is done again.
    """
    if not path.exists():
        return None
    try:
        return read(form, path)
    except UserError as error:
        log.warning("%s; it is made again", error)
        return None
