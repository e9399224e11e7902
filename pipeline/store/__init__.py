"""Every path, every record, every atomic write of a project."""

from pipeline.store import records
from pipeline.store._before import (
    calib_dir,
    engine_path,
    engines_dir,
    figures_dir,
    graphs_dir,
    prompts_path,
    read_sidecar,
    report_dir,
    report_inputs,
    requests_dir,
    result_path,
    results_dir,
    sweep_dir,
    variant_of,
)
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
from pipeline.store.records import variant_fields as variant_record
from pipeline.store.sidecars import check_passed, checkpoint_folder, healed_weights, is_current, variant
from pipeline.store.sidecars import read as sidecar
from pipeline.store.sidecars import read_engine as engine_sidecar
from pipeline.store.sidecars import read_graph as graph_sidecar
from pipeline.store.sidecars import write as write_sidecar
from pipeline.store.versions import version, versions

__all__ = [
    "DEMO",
    "SOURCE",
    "Project",
    "atomic",
    "calib_dir",
    "check_passed",
    "checkpoint_folder",
    "default_model",
    "engine_path",
    "engine_sidecar",
    "engines_dir",
    "engines_of",
    "figures_dir",
    "graph_path",
    "graph_sidecar",
    "graphs_dir",
    "graphs_of",
    "healed_path",
    "healed_weights",
    "is_current",
    "lock",
    "model_of",
    "models",
    "plain_name",
    "prompts_path",
    "read_json",
    "read_sidecar",
    "records",
    "relative",
    "report_dir",
    "report_inputs",
    "requests_dir",
    "resolved",
    "result_of",
    "result_path",
    "results_dir",
    "sha256",
    "sidecar",
    "sidecar_path",
    "sweep_dir",
    "sweep_temporaries",
    "text_digest",
    "variant",
    "variant_of",
    "variant_record",
    "version",
    "versions",
    "write_json",
    "write_sidecar",
]
