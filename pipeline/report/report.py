"""Stage: result files → the report: tables beside the papers' own, charts, recommendations, one page.

Every number carries the file that it came from. A copy of that file lies in the report, so that its link
works from anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path, PurePosixPath

from pydantic import Field

from pipeline import store
from pipeline.report import latex, markdown, page, spreadsheet
from pipeline.report.content import ReportContent
from pipeline.report.rows import Collection
from pipeline.report.sources import SourceFile, slug
from pipeline.store import records
from pipeline.store.records import Digest, Record
from pipeline.types import UserError, file_name

__all__ = ["write"]

MANIFEST = "manifest.json"


class ReportManifest(Record):
    """manifest.json: the report's files with their digests."""

    what: str = "report"
    files: dict[str, Digest] = Field(default_factory=dict)


def write(out: Path, collection: Collection) -> list[Path]:
    """Writes the report on what `collect.collect` read; the same results give the same bytes.

    Files of an earlier report that this one does not have are removed.

    Args:
        out: its folder.
        collection: what it is made of.

    Returns:
        The files that were written, the page first.

    Raises:
        UserError: the folder is a file, or a result changed while it was read.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if (out / MANIFEST).is_dir():
        raise UserError(f"{out / MANIFEST} is a folder; name another --out")
    texts = _texts(ReportContent.of(collection))
    files = {source.copy: source.sha256 for source in collection.sources}
    for source in collection.sources:
        _copy(source, out)
    for name, text in texts.items():
        with store.atomic(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
        files[name] = store.text_digest(text)
    _remove_stale(out, files)
    store.write_json(out / MANIFEST, ReportManifest(files=dict(sorted(files.items()))).plain())
    return [out / name for name in texts]


def _texts(content: ReportContent) -> dict[str, str]:
    """Name → content of all that is not copied."""
    texts = {
        "index.html": page.html(content),
        "report.md": markdown.markdown(content),
        "tables/results.csv": spreadsheet.results_csv(content.collection),
    }
    for table in content.tables:
        texts[f"tables/{table.name}.csv"] = spreadsheet.table_csv(table)
        texts[f"tables/{table.name}.tex"] = latex.latex(table)
    for chart in content.charts:
        if not chart.gap:
            texts[f"charts/{slug(chart.name)}.json"] = json.dumps(chart.figure, ensure_ascii=False) + "\n"
    return texts


def _copy(source: SourceFile, out: Path) -> None:
    """Copies a result into the report. Not synced: it can be made again, and there may be ten thousand."""
    target = out / source.copy
    if target.is_file() and store.sha256(target) == source.sha256:
        return
    content = source.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise UserError(f"{source.path} changed while it was read; run `pipeline report` again")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{file_name(target.name, 200)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_stale(out: Path, files: dict[str, str]) -> None:
    """Removes the files that the manifest of an earlier report names and this report does not have."""
    manifest = out / MANIFEST
    if not manifest.is_file():
        return
    try:
        before = records.read(ReportManifest, manifest).files
    except UserError:
        return  # it is no manifest of a report, so nothing that it names may be removed
    for name in before:
        parts = PurePosixPath(name).parts
        if name not in files and ".." not in parts and not name.startswith("/"):
            with contextlib.suppress(OSError, ValueError):  # a folder, or no name: not ours
                (out / name).unlink()
