"""A checkpoint of the Hugging Face hub: plain files, safetensors only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.models import safetensors_index
from pipeline.types import UserError


def download(repo: str, folder: Path, small_files: tuple[str, ...]) -> dict[str, Any]:
    """Downloads plain files, resumable; safetensors only."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from requests.exceptions import RequestException

    try:
        info = HfApi().model_info(repo, files_metadata=True)
        files = {s.rfilename: s for s in info.siblings or [] if "/" not in s.rfilename}
        if not {"model.safetensors", safetensors_index.INDEX} & set(files):
            raise UserError(
                f"{repo} has no safetensors weights; pickled weights are code and are not opened here: convert them first"
            )
        wanted = [
            n for n in files if n in small_files or re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", n)
        ]
        snapshot_download(repo, revision=info.sha, local_dir=folder, allow_patterns=wanted)
    except (HfHubHTTPError, OfflineModeIsEnabled, RequestException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot fetch {repo!r} from the Hugging Face hub ({reason}); check the id, the network and HF_TOKEN"
        ) from None
    hashes = {n: lfs.sha256 if (lfs := files[n].lfs) else files[n].blob_id for n in wanted}
    return {"revision": info.sha, "etags": hashes}
