"""A checkpoint of the Hugging Face hub: plain files, safetensors only, from the network or from the cache."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline import store
from pipeline.models import checkpoint_files, hub_cache, weight_files
from pipeline.models.checkpoint_files import SMALL_FILES
from pipeline.store.records import CheckpointSource
from pipeline.types import UserError, first_line

log = logging.getLogger(__name__)
TIMEOUT = 10.0
"""Seconds that the hub may take to answer, before the cache is looked into."""
_NETWORK = {"requests": "RequestException", "httpx": "HTTPError", "httpx2": "HTTPError"}
"""Network library of huggingface_hub below 1, below 2, and of 2 → the error that all of its errors are."""
CONFIG = "config.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def download(name: str, folder: Path, prove: Callable[[Path], object]) -> CheckpointSource:
    """Downloads a repository's checkpoint, and goes on with a download that was stopped.

    What the cache has is copied from there; where the hub cannot be asked, what it has counts.

    Args:
        name: org/name, or org/name@revision with a commit, a branch or a tag.
        folder: where its files go, as plain files.
        prove: refuses a snapshot of the cache that cannot be used, before it is copied.

    Returns:
        Where it came from: the commit, and what the hub gives as each file's digest.

    Raises:
        UserError: neither hub nor cache has it whole, or it has no safetensors weights.
    """
    from huggingface_hub import HfApi, snapshot_download

    repo, _, revision = name.partition("@")
    try:
        info = HfApi().model_info(repo, revision=revision or None, files_metadata=True, timeout=TIMEOUT)
        files = {file.rfilename: file for file in info.siblings or [] if "/" not in file.rfilename}
        names = wanted_files(repo, files)
        cached = hub_cache.find(repo, str(info.sha))
        if cached and all((cached.folder / name).is_file() for name in names):
            return copy(cached, folder, prove, name)
        snapshot_download(repo, revision=info.sha, local_dir=folder, allow_patterns=names)
    except _refusals() as error:
        cached = hub_cache.find(repo, revision or "main")
        if cached is None:
            raise _unreachable(name, error) from None
        log.warning("the hub is not asked (%s); taking %s", _reason(error), cached.folder)
        return copy(cached, folder, prove, name)
    digests = {name: lfs.sha256 if (lfs := files[name].lfs) else files[name].blob_id for name in names}
    etags = {name: digest for name, digest in digests.items() if digest}
    return CheckpointSource(kind="hub", origin=name, revision=info.sha, etags=etags)


def config(name: str) -> Path:
    """A repository's config.json, in the hub's cache; where the hub cannot be asked, the one that lies there.

    Args:
        name: org/name, or org/name@revision.

    Raises:
        UserError: neither hub nor cache has it.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        info = HfApi().model_info(repo, revision=revision or None, timeout=TIMEOUT)
        return Path(hf_hub_download(repo, CONFIG, revision=info.sha))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the network went between the two questions
            raise _unreachable(name, error) from None
        raise UserError(f"{name} has no {CONFIG} on the Hugging Face hub") from None
    except _refusals() as error:
        cached = hub_cache.find(repo, revision or "main")
        if cached is None or not (cached.folder / CONFIG).is_file():
            raise _unreachable(name, error) from None
        log.warning("the hub is not asked (%s); taking %s", _reason(error), cached.folder)
        return cached.folder / CONFIG


def _unreachable(name: str, error: Exception) -> UserError:
    return UserError(
        f"cannot fetch {name!r} from the Hugging Face hub ({_reason(error)}), no folder has that name here, "
        "and the hub's cache has none; check the name, the network and HF_TOKEN"
    )


def _refusals() -> tuple[type[Exception], ...]:
    """What the hub's library raises where it gives nothing; each version has another network library."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    network = [
        getattr(importlib.import_module(module), name)
        for module, name in _NETWORK.items()
        if store.is_installed(module)
    ]
    return (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, *network)


def _reason(error: Exception) -> str:
    """Why the hub gave nothing. Messages of the network's library name its own objects."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set"
    if kinds & {"Timeout", "TimeoutException"}:
        return f"no answer in {TIMEOUT:g} s"
    return "no connection" if kinds & {"ConnectionError", "NetworkError"} else first_line(error)


def copy(
    snapshot: hub_cache.Snapshot, folder: Path, prove: Callable[[Path], object], origin: str | None = None
) -> CheckpointSource:
    """Copies a snapshot of the cache, as plain files.

    Args:
        snapshot: of the cache.
        folder: where its files go.
        prove: refuses a folder that cannot be used; called before anything is copied.
        origin: what it is known by; the snapshot's own by default.

    Raises:
        UserError: it is not whole, or `prove` refuses it.
    """
    hub_cache.refuse_incomplete(snapshot)
    prove(snapshot.folder)
    checkpoint_files.copy(snapshot.folder, folder)
    names = {file.name for file in checkpoint_files.files_of(snapshot.folder)}
    etags = {name: etag for name, etag in snapshot.etags().items() if name in names}
    return CheckpointSource(
        kind="hub", origin=origin or snapshot.origin, revision=snapshot.revision, etags=etags
    )


def wanted_files(repo: str, files: Collection[str]) -> list[str]:
    """Which of a repository's files make its checkpoint; of two sets of weights, as transformers chooses.

    Raises:
        UserError: it has no weights that are read here.
    """
    small = [name for name in files if name in SMALL_FILES]
    if weight_files.ONE_FILE in files:
        return [*small, weight_files.ONE_FILE]
    if weight_files.INDEX in files:
        return [*small, weight_files.INDEX, *(name for name in files if _SHARD.fullmatch(name))]
    if "adapter_config.json" in files:
        raise UserError(f"{repo} is an adapter, not a model; merge it with peft's merge_and_unload() first")
    if any(name.endswith(".gguf") for name in files):
        raise UserError(f"{repo} holds GGUF files; download one, and name the file")
    raise UserError(
        f"{repo} has no safetensors weights; pickled weights are code and are not opened here: "
        "convert them first"
    )
