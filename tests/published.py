"""A folder of published sets, made up for the tiny models of the tests."""

from __future__ import annotations

from pathlib import Path

TEXT = """
model = "made-up/tiny"
aliases = ["made-up/small"]
layers = 4

[sources.paper]
work = "A paper (Nobody 2026)"
where = "https://example.org/paper"
rule = "thrown dice"
numbering = "from 1"
inferred = "that the model is ours"

[[sets]]
name = "dice-mlp1"
skip = "mlp2"
source = "paper"
place = "Table 1"
printed = "3"
measured = "perplexity 7"

[[sets]]
name = "dice-any3"
skip = "attn1_3+mlp2"
source = "paper"
place = "Table 2"

[[sets]]
name = "dice-block2"
skip = "block1_3"
source = "paper"
place = "Table 3"
rule = "loaded dice"

[[sets]]
name = "coin-block2"
skip = "block0-1"
source = "paper"
place = "Table 4"
"""


def write(root: Path, text: str = TEXT) -> Path:
    """calib/published/tiny.toml of the project in `root`."""
    path = root / "calib" / "published" / "tiny.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
