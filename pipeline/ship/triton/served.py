"""Which version of each model a repository serves: the one that its config.pbtxt names, as Triton reads it.

`ship` writes the newest there. Who goes back by hand copies configs/vN.pbtxt over config.pbtxt.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from pipeline.ship.triton import repository
from pipeline.ship.triton.repository import ENDING
from pipeline.store import records
from pipeline.store.records import ShippedModel, ShippedVersion, ShipRecord
from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A Triton model.

    Attributes:
        name: NAME or NAME_generate.
        number: of the version that is served.
        version: what was shipped as that.
    """

    name: str
    number: int
    version: ShippedVersion

    @property
    def is_text(self) -> bool:
        """Whether it takes text: NAME_generate."""
        return self.name.endswith(ENDING)


MAX_BYTES = 2**20
"""Bytes of a config.pbtxt at most."""


def models(folder: Path, record: ShipRecord) -> list[ServedModel]:
    """The Triton models of a repository, NAME before NAME_generate.

    Raises:
        UserError: a config.pbtxt is missing or is none, or names a version that was not shipped.
    """
    served = []
    for name, shipped in record.models.items():
        text = _model(folder, name + ENDING, shipped)
        served += [_model(folder, name, shipped)] if text.version.raw_model else []
        served.append(text)
    return served


def _model(folder: Path, name: str, shipped: ShippedModel) -> ServedModel:
    file = folder / name / "config.pbtxt"
    config = pb.ModelConfig()
    try:
        text_format.Parse(records.read_bytes(file, MAX_BYTES).decode(), config)
    except (UserError, UnicodeDecodeError, RecursionError, text_format.ParseError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no config of Triton's ({reason}); {_advice(file, shipped)}") from None
    # Of several versions Triton gives the highest to who names none; without a policy it serves the newest.
    number = max(config.version_policy.specific.versions, default=max(map(int, shipped.versions)))
    version = shipped.versions.get(str(number))
    if version is None or not (version.raw_model or name.endswith(ENDING)):
        raise UserError(
            f"{file} serves version {number}, and {repository.RECORD} has none; {_advice(file, shipped)}"
        )
    return ServedModel(name, number, version)


def _advice(file: Path, shipped: ShippedModel) -> str:
    newest = max(map(int, shipped.versions))
    return f"copy {shlex.quote(str(file.parent / 'configs' / f'v{newest}.pbtxt'))} over it"
