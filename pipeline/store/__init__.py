"""Every path, every record, every atomic write of a project."""

from pipeline.store import records, weights
from pipeline.store.files import atomic, lock, read_json, sha256, sweep_temporaries, text_digest, write_json
from pipeline.store.inventory import default_model, engines_of, graphs_of, models
from pipeline.store.paths import (
    DEMO,
    SOURCE,
    Project,
    graph_path,
    healed_path,
    model_of,
    plain_name,
    relative,
    resolved,
    result_of,
    sidecar_path,
)
from pipeline.store.sidecars import (
    check_passed,
    checkpoint_folder,
    engine_sidecar,
    graph_sidecar,
    healed_weights,
    is_current,
    sidecar,
    variant,
    write_sidecar,
)
from pipeline.store.versions import version, versions

__all__ = [
    "DEMO",
    "SOURCE",
    "Project",
    "atomic",
    "check_passed",
    "checkpoint_folder",
    "default_model",
    "engine_sidecar",
    "engines_of",
    "graph_path",
    "graph_sidecar",
    "graphs_of",
    "healed_path",
    "healed_weights",
    "is_current",
    "lock",
    "model_of",
    "models",
    "plain_name",
    "read_json",
    "records",
    "relative",
    "resolved",
    "result_of",
    "sha256",
    "sidecar",
    "sidecar_path",
    "sweep_temporaries",
    "text_digest",
    "variant",
    "version",
    "versions",
    "weights",
    "write_json",
    "write_sidecar",
]
