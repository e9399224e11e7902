"""Stage: result files → the report: tables beside the papers' own, charts, recommendations, one page. Nothing is drawn by hand.

Every number carries the file that it came from; a copy of that file lies in the report, so that its link works from anywhere.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from pipeline import store
from pipeline.report import charts, curves, page, recommend, tables, texts
from pipeline.report.collect import slug
from pipeline.report.rows import Findings, Source
from pipeline.types import UserError

__all__ = ["write"]

MANIFEST = "manifest.json"


def write(out: Path, found: Findings) -> list[Path]:
    """Writes the report of what `collect.collect` found and returns its files, the page first.

    The same results give the same bytes. What an earlier report left here and this one has not is removed.

    Args:
        out: its folder.

    Raises:
        UserError: the folder is a file, or a result changed while it was read.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    made = _texts(found)
    files = {source.copy: source.digest for source in found.sources}
    for source in found.sources:
        _copy(source, out)
    for name, text in made.items():
        _write(out / name, text)
        files[name] = store.text_digest(text)
    _remove_left_over(out, files)
    store.write_json(out / MANIFEST, {"what": "report", "files": dict(sorted(files.items()))})
    return [out / name for name in made]


def _texts(found: Findings) -> dict[str, str]:
    """Name → content of all that is not copied."""
    papers_tables, recommended = tables.tyukin(found), recommend.recommend(found)
    drawn = [*charts.charts(found), *curves.charts(found)]
    figures = curves.figures(drawn)
    made = {
        "index.html": page.html(found, papers_tables, recommended, drawn, figures),
        "report.md": texts.markdown(found, papers_tables, recommended, drawn, figures),
        "tables/results.csv": texts.results_csv(found),
    }
    for table in papers_tables:
        made[f"tables/{table.name}.csv"], made[f"tables/{table.name}.tex"] = (
            texts.csv_table(table),
            texts.latex(table),
        )
    made |= {
        f"charts/{slug(c.name)}.json": json.dumps(c.figure, ensure_ascii=False) + "\n"
        for c in drawn
        if not c.gap
    }
    return made


def _write(path: Path, text: str) -> None:
    with store.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _copy(source: Source, out: Path) -> None:
    """Copies a result into the report. Not synced: it can be made again, and there may be ten thousand of them."""
    target = out / source.copy
    if target.is_file() and store.sha256(target) == source.digest:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(Path(source.path).read_bytes())
    if store.sha256(temporary) != source.digest:
        temporary.unlink()
        raise UserError(f"{source.path} changed while it was read; run `pipeline report` again")
    temporary.replace(target)


def _remove_left_over(out: Path, files: dict[str, str]) -> None:
    """Removes what the manifest of an earlier report names and this one has not."""
    manifest = out / MANIFEST
    if not manifest.is_file():
        return
    try:
        before = store.read_json(manifest)["files"]
    except (UserError, KeyError, TypeError):
        return  # not ours to judge, then nothing of it is ours to remove
    for name in before if isinstance(before, dict) else ():
        parts = PurePosixPath(name).parts
        if name not in files and ".." not in parts and not name.startswith("/"):
            (out / name).unlink(missing_ok=True)
