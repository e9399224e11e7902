"""Stage: a graph's variant → a folder that other engines load (`pipeline ship GRAPH --to hf FOLDER`).

Everything is written beside the folder and proved there; then it takes its name.
"""

from __future__ import annotations

import errno
import filecmp
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models import checkpoint_files, provenance
from pipeline.ship import outline, pruned
from pipeline.ship.hf import card, contents, forms, nemotron_nas, parts, weights
from pipeline.ship.hf.engines import Engine
from pipeline.ship.hf.forms import FormVerdict
from pipeline.ship.hf.parts import Shard
from pipeline.ship.outline import Outline
from pipeline.ship.pruned import PrunedModel
from pipeline.store import records
from pipeline.types import UserError

log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class HfShipment:
    """What one call did.

    Attributes:
        folder: where it lies.
        variant: its name.
        form: 'own class' or 'nemotron-nas'.
        layers: index in the whole model of each layer that is written.
        num_layers: L of the whole model.
        bytes: of the weights.
        shared: of the weights' files, those that are the source's as they are.
        rewritten: the others.
        engines: which load it.
        check: 'passed' or 'not checked'.
        is_new: False where the folder held this very variant.
        remarks: what a user should know.
    """

    folder: Path
    variant: str
    form: str
    layers: tuple[int, ...]
    num_layers: int
    bytes: int
    shared: int
    rewritten: int
    engines: tuple[Engine, ...]
    check: str
    is_new: bool
    remarks: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        own = {name: getattr(self, name) for name in self.__slots__}
        engines = [engine.plain() for engine in self.engines]
        lists = {"layers": list(self.layers), "remarks": list(self.remarks), "engines": engines}
        return {**own, "folder": str(self.folder), **lists}

    def described(self) -> str:
        """What lies there, for a person."""
        there = f"{self.folder}: {self.variant}, {self.form}, {len(self.layers)} of {self.num_layers} layers"
        files = f"{self.bytes / 1e6:.0f} MB in {self.shared + self.rewritten} files"
        lines = [
            f"{there}, check {self.check}",
            f"{files}, {self.shared} as in the source, {self.rewritten} rewritten"
            + ("" if self.is_new else "; it was there already, nothing to do"),
        ]
        yes = "loads in" if self.form == "nemotron-nas" else "loads in what loads the whole model"
        for words, loads in ((yes, True), ("not in", False)):
            if engines := [engine.words() for engine in self.engines if engine.loads is loads]:
                lines.append(f"{words}: {', '.join(engines)}")
        return "\n".join([*lines, *self.remarks])


def ship(graph: Path, folder: Path, force: bool = False, unchecked: bool = False) -> HfShipment:
    """Writes the variant of a graph as a Hugging Face folder.

    Args:
        graph: of one variant, compensated and healed ones too.
        folder: new, empty, or one that holds this very variant.
        force: write also what some engines do not run (`FormVerdict.unless_forced`).
        unchecked: take a graph that has passed no check.

    Raises:
        UserError: the variant has no such form, the folder holds something else or lies within the source's,
            or the disk has no room. Nothing is changed then.
        NotProved: transformers would read something else from it.
    """
    model = pruned.read(graph, unchecked)
    variant = outline.of_model(model)
    verdict = accepted(graph, variant, force)
    folder = folder.resolve()
    refuse_within(folder, model.checkpoint.folder)
    check = "passed" if store.check_passed(graph, model.record.sha256, provider=None) else "not checked"
    config = contents.config(model, variant, verdict)
    shards = parts.shards(contents.parts(model, variant, verdict), model.checkpoint.files)
    shipment = _shipment(folder, model, variant, verdict, shards, check)
    with store.lock(folder, make=False):
        if _is_there(folder, config, shards, model):
            log.info("%s holds this very variant; nothing to do", folder)
            return replace(shipment, is_new=False)
        folder.parent.mkdir(parents=True, exist_ok=True)
        files = {"config.json": config, "README.md": card.text(model, variant, verdict, check)}
        _write(folder, files, shards, model, variant)
    return shipment


def accepted(graph: Path, variant: Outline, force: bool) -> FormVerdict:
    """The form of a variant.

    Raises:
        UserError: it has none, or one for which `force` is needed.
    """
    verdict = forms.verdict(variant)
    if verdict.refusal:
        raise UserError(f"{graph} cannot be shipped to hf: {verdict.refusal}")
    if verdict.unless_forced and not force:
        raise UserError(f"{graph}: {verdict.unless_forced}; --force writes it for the others")
    return verdict


def refuse_within(folder: Path, source: Path) -> None:
    """Refuses a folder within the checkpoint's, or the checkpoint's itself."""
    if folder.is_relative_to(source.resolve()):
        raise UserError(f"{folder} lies within {source}, the source's own folder; name another one")


def _shipment(
    folder: Path,
    model: PrunedModel,
    variant: Outline,
    verdict: FormVerdict,
    shards: list[Shard],
    check: str,
) -> HfShipment:
    whole = sum(shard.whole is not None for shard in shards)
    return HfShipment(
        folder,
        model.variant.name,
        verdict.form,
        contents.layers(variant, verdict),
        model.num_layers,
        sum(shard.nbytes for shard in shards),
        whole,
        len(shards) - whole,
        verdict.engines,
        check,
        True,
        contents.remarks(model, verdict),
    )


def _is_there(folder: Path, config: Mapping[str, Any], shards: list[Shard], model: PrunedModel) -> bool:
    """Whether a folder holds this variant, byte for byte.

    Args:
        folder: that may be there.
        config: config.json that it should have.
        shards: its weights.
        model: the variant.

    Raises:
        UserError: it holds something else, or was changed since.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
    if not any(folder.iterdir()):
        return False
    file = folder / "config.json"
    present = records.read_object(file) if file.is_file() else {}
    mark, wanted = present.get(provenance.NAME), config[provenance.NAME]
    if not isinstance(mark, dict):
        raise UserError(f"{folder} holds something else; name a folder that is new or empty")
    if any(mark.get(key) != wanted[key] for key in (provenance.DIGEST, contents.FILES)):
        raise UserError(
            f"{folder} holds another variant ({mark.get(provenance.VARIANT)!r:.80}), or other weights or "
            "settings of this one; remove it, or name another folder"
        )
    if changed := _changed(folder, present == json.loads(json.dumps(config)), shards, model):
        raise UserError(
            f"{folder}: {changed} was changed since it was written; remove the folder, or name another one"
        )
    return True


def _changed(folder: Path, is_config: bool, shards: list[Shard], model: PrunedModel) -> str | None:
    """The first file or tensor of a folder that is not what would be written."""
    if not is_config:
        return "config.json"
    filecmp.clear_cache()  # it goes by dates
    for source in contents.small_files(model):
        copy = folder / source.name
        if not copy.is_file() or not filecmp.cmp(source, copy, shallow=False):
            return source.name
    return weights.altered(shards, folder)


def _write(
    folder: Path, files: Mapping[str, Any], shards: list[Shard], model: PrunedModel, variant: Outline
) -> None:
    """Writes all files beside the folder, and renames them into it."""
    try:
        with store.staging(folder) as staging:
            staging.chmod(0o755)
            weights.require_room(shards, staging)
            _fill(staging, files, shards, model)
            _prove(staging, variant, model)
            staging.replace(folder)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(f"{folder} cannot be written: {error.strerror}; free some space") from None


def _prove(staging: Path, variant: Outline, model: PrunedModel) -> None:
    from pipeline.ship.hf import proof

    if variant.whole_blocks:
        proof.prove(staging, variant, contents.given(model))
    else:
        proof.prove_sublayers(staging)


def _fill(staging: Path, files: Mapping[str, Any], shards: list[Shard], model: PrunedModel) -> None:
    """config.json last: what lies there before is no checkpoint."""
    weights.write(shards, staging)
    for file in contents.small_files(model):
        checkpoint_files.copy_file(file, staging / file.name)
    (staging / "README.md").write_text(files["README.md"], encoding="utf-8")
    config = files["config.json"]
    if config["model_type"] == nemotron_nas.MODEL_TYPE:
        checkpoint_files.copy_file(Path(__file__).parent / nemotron_nas.CODE, staging / nemotron_nas.CODE)
    store.write_json(staging / "config.json", config)
