"""A checkpoint of the Hugging Face hub: plain files, safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.models import safetensors_index
from pipeline.models.checkpoint_files import SMALL_FILES
from pipeline.store.records import CheckpointSource
from pipeline.types import UserError, first_line

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def download(repo: str, folder: Path) -> CheckpointSource:
    """Downloads a repository's checkpoint, and goes on with a download that was stopped.

    Args:
        repo: org/name.
        folder: where its files go, as plain files.

    Returns:
        Where it came from: the commit, and what the hub gives as each file's digest.

    Raises:
        UserError: the hub cannot be reached, has no such repository, or has no safetensors weights for it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from requests.exceptions import RequestException

    try:
        info = HfApi().model_info(repo, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or [] if "/" not in file.rfilename}
        if not {"model.safetensors", safetensors_index.INDEX} & set(files):
            raise UserError(
                f"{repo} has no safetensors weights; pickled weights are code and are not opened here: "
                "convert them first"
            )
        names = [name for name in files if name in SMALL_FILES or _WEIGHTS.fullmatch(name)]
        snapshot_download(repo, revision=info.sha, local_dir=folder, allow_patterns=names)
    except (HfHubHTTPError, OfflineModeIsEnabled, RequestException) as error:
        raise UserError(
            f"cannot fetch {repo!r} from the Hugging Face hub ({first_line(error)}); "
            "check the id, the network and HF_TOKEN"
        ) from None
    digests = {name: lfs.sha256 if (lfs := files[name].lfs) else files[name].blob_id for name in names}
    etags = {name: digest for name, digest in digests.items() if digest}
    return CheckpointSource(kind="hub", origin=repo, revision=info.sha, etags=etags)
