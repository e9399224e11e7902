from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from pipeline.report import collect, latex, tyukin
from tests import results


def test_escapes() -> None:
    escaped = r"a\_b \& 50 \% $\pm$1 \textbackslash{}x \textasciitilde{}\{\}"
    assert latex.tex("a_b & 50 % ±1 \\x ~{}") == escaped
    assert latex.tex("模型") == "??"


def test_tables_are_well_formed(workdir: Path) -> None:
    results.small_grid("Llama-2-7b-hf")
    texts = {table.name: latex.latex(table) for table in tyukin.tables(collect.collect())}
    assert len(texts) == 10
    for text in texts.values():
        columns = len(re.search(r"begin\{tabular\}\{l(r+)\}", text)[1]) + 1  # type: ignore[index]
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in rows)
        bare = re.sub(r"\\[\\{}%&$#_]", "", text)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
        assert text.count("\\toprule") == text.count("\\bottomrule") == 1
    assert "-75\\% & 59.5 $\\pm$1.0 (52.5, $+7.0$) &" in texts["tyukin-02"]
    if program := shutil.which("pdflatex"):
        body = "\\clearpage ".join(texts.values())
        Path("all.tex").write_text(
            f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}{body}\\end{{document}}"
        )
        command = [program, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0 and "Overfull" not in run.stdout, run.stdout[-2000:]
