from __future__ import annotations

import re
from pathlib import Path

from pipeline.report import collect, markdown
from pipeline.report.content import ReportContent
from tests import results


def test_escapes() -> None:
    assert markdown.md("a|b <i> [x](y)\nz") == r"a\|b &lt;i&gt; \[x\](y) z"


def test_numbers_gaps_and_problems(workdir: Path) -> None:
    results.small_grid("Llama-2-7b-hf")
    results.put(Path("evals/results/Llama-2-7b-hf/list.json"), [1])
    collection = collect.collect()
    text = markdown.markdown(ReportContent.of(collection))
    assert "| Llama-2-7b-hf | attn24-31.fp32 | [passed](sources/" in text
    assert "(paper 52.5, difference +7.0)" in text and "not run (paper 52.8)" in text
    assert "## Files that could not be used\n\n- evals/results/Llama-2-7b-hf/list.json: is not" in text
    copies = {source.copy for source in collection.sources}
    links = set(re.findall(r"\]\((sources/[^)]+)\)", text))
    assert links and links <= copies


def test_a_long_table_is_cut_and_says_so(workdir: Path) -> None:
    results.config("m", 300)
    for n in range(markdown.SHOWN + 3):
        results.check("m", f"attn{n}")
    text = markdown.markdown(ReportContent.of(collect.collect()))
    assert "3 more are in [tables/results.csv]" in text and text.count("| m | attn") == markdown.SHOWN
