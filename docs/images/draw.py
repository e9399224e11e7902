"""Draws the README's picture from demo.json: demo-light.svg and demo-dark.svg, beside this file.

Run it as `python docs/images/draw.py`; it needs matplotlib.
The same numbers give the same files, byte for byte.
`--png DIR` writes PNGs as well, to look at.

Left: the smoke score of each variant with its standard error.
Right: the time that it saves, beside its ceiling.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

HERE = Path(__file__).parent
SIZE = (10.0, 4.3)
"""Inches; a README shows the picture about 800 pixels wide."""
LENGTH = "100"
"""Tokens of the prompts whose time is drawn."""
GROUPS = {"attention": "attention", "MLP": "MLPs", "blocks": "blocks"}
"""Kind in demo.json → what the axis calls it, from top to bottom."""
OFFSET = {"last": -0.19, "cosine": 0.19}
"""Where a rule's row lies within its group; the axis points down."""
MARKERS = {"last": "s", "cosine": "o"}


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one picture; the two rules differ in hue, in lightness and in marker."""

    paper: str
    ink: str
    soft: str
    line: str
    band: str
    last: str
    cosine: str

    def rule(self, name: str) -> str:
        """The colour of what a rule chose."""
        return self.cosine if name == "cosine" else self.last


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#f1f4f7", "#c2410c", "#0b5cad"),
    "dark": Theme("#0d1117", "#f0f6fc", "#9198a1", "#3d444d", "#171d25", "#fb9a5b", "#6cb6ff"),
}


def draw(data: dict[str, Any], theme: Theme) -> Figure:
    """The whole picture.

    Args:
        data: demo.json.
        theme: light or dark.
    """
    figure = Figure(figsize=SIZE, facecolor=theme.paper)
    axes = figure.subplots(1, 2, width_ratios=[1.45, 1], sharey=True)
    figure.subplots_adjust(left=0.105, right=0.98, top=0.665, bottom=0.155, wspace=0.1)
    for plot, title in zip(axes, ("Smoke score, %", f"Time saved at {LENGTH} tokens, %"), strict=True):
        _frame(plot, theme, title)
    _scores(axes[0], data, theme)
    _savings(axes[1], data, theme)
    _words(figure, theme)
    _key(figure, theme)
    return figure


def _words(figure: Figure, theme: Theme) -> None:
    """Headline, what was done, and what a reader must know before believing it."""
    headline, note = "Which sublayers you skip matters more than how many", "Bars left: ± 1 standard error. "
    note += (
        "Ceiling: the saving that the removed FLOPs allow. 20 sequences on 2 CPU cores: timings are noisy."
    )
    figure.text(0.018, 0.935, headline, color=theme.ink, fontsize=15, weight="bold", va="center")
    subject = "SmolLM2-135M with 25 % of its attention sublayers, MLPs or blocks left out"
    figure.text(0.018, 0.865, subject, color=theme.soft, fontsize=11, va="center")
    figure.text(0.018, 0.04, note, color=theme.soft, fontsize=9.5, va="center")


def _frame(plot: Axes, theme: Theme, title: str) -> None:
    """One panel: its title, a row a kind, no box, a light grid."""
    plot.set_title(title, color=theme.ink, fontsize=11.5, weight="bold", loc="left", pad=24)
    plot.set_facecolor(theme.paper)
    plot.spines[:].set_visible(False)
    plot.set_ylim(len(GROUPS) - 0.45, -0.55)
    plot.set_yticks(range(len(GROUPS)), list(GROUPS.values()), color=theme.ink, fontsize=12)
    plot.tick_params(axis="both", length=0)
    plot.tick_params(axis="x", labelsize=10, labelcolor=theme.soft, pad=6)
    plot.grid(axis="x", color=theme.line, linewidth=0.7, alpha=0.7)
    plot.set_axisbelow(True)
    for row in range(1, len(GROUPS), 2):
        plot.axhspan(row - 0.5, row + 0.5, color=theme.band, zorder=0)


def _scores(plot: Axes, data: dict[str, Any], theme: Theme) -> None:
    """The left panel: smoke score, standard error, the whole model's score and chance."""
    score, error = data["base"]["smoke"]
    plot.axvspan(score - error, score + error, color=theme.soft, alpha=0.18, linewidth=0, zorder=1)
    for x, words in ((score, f"whole model {score:.1f}"), (data["chance"], "chance")):
        plot.axvline(x, color=theme.soft, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        plot.text(x, -0.6, words, color=theme.soft, fontsize=10, ha="center", va="bottom")
    for variant in data["variants"]:
        y, color = _row(variant), theme.rule(variant["rule"])
        score, error = variant["smoke"]
        plot.errorbar(
            score,
            y,
            xerr=error,
            fmt=MARKERS[variant["rule"]],
            color=color,
            markersize=8.5,
            markeredgecolor=theme.paper,
            markeredgewidth=1,
            elinewidth=2,
            capsize=0,
            zorder=3,
        )
        plot.text(
            score - error - 0.9,
            y,
            f"{score:.1f}",
            color=color,
            fontsize=11,
            weight="bold",
            ha="right",
            va="center",
        )
    plot.set_xlim(30, 85)


def _savings(plot: Axes, data: dict[str, Any], theme: Theme) -> None:
    """The right panel: time saved, and the ceiling of each kind."""
    for variant in data["variants"]:
        y, color = _row(variant), theme.rule(variant["rule"])
        saved, ceiling = variant["saved"][LENGTH], variant["ceiling"][LENGTH]
        plot.barh(y, saved, height=0.27, color=color, zorder=3)
        plot.vlines(ceiling, y - 0.19, y + 0.19, color=theme.paper, linewidth=4.5, zorder=4)
        plot.vlines(ceiling, y - 0.19, y + 0.19, color=theme.ink, linewidth=2, zorder=5)
        plot.text(
            max(saved, ceiling) + 0.8,
            y,
            f"{saved:.1f}",
            color=color,
            fontsize=11,
            weight="bold",
            ha="left",
            va="center",
        )
    plot.set_xlim(0, 33)
    plot.grid(visible=False)
    plot.set_xticks([0, 10, 20, 30])


def _row(variant: dict[str, Any]) -> float:
    return list(GROUPS).index(variant["kind"]) + OFFSET[variant["rule"]]


def _key(figure: Figure, theme: Theme) -> None:
    """What marks mean, in the order of the rows."""
    words = {"last": "last: the last ones", "cosine": "cosine: least effect on the stream"}
    marks = [
        Line2D([], [], color=theme.rule(rule), marker=MARKERS[rule], markersize=8.5, linestyle="none")
        for rule in words
    ]
    marks.append(
        Line2D([], [], color=theme.ink, marker="|", markersize=12, markeredgewidth=2, linestyle="none")
    )
    figure.legend(
        marks,
        [*words.values(), "ceiling"],
        loc="upper right",
        bbox_to_anchor=(0.988, 1.0),
        frameon=False,
        fontsize=10.2,
        labelcolor=theme.ink,
        handletextpad=0.4,
        borderaxespad=0.5,
    )


def main() -> None:
    """Writes the two SVGs, and PNGs where they are asked for."""
    parser = argparse.ArgumentParser(description="Draws the README's picture from demo.json.")
    parser.add_argument("--png", type=Path, help="a folder for PNGs to look at")
    folder = parser.parse_args().png
    data = json.loads((HERE / "demo.json").read_text(encoding="utf-8"))
    matplotlib.rcParams |= {"svg.fonttype": "path", "svg.hashsalt": "demo", "font.family": "DejaVu Sans"}
    for name, theme in THEMES.items():
        figure = draw(data, theme)
        figure.savefig(HERE / f"demo-{name}.svg", metadata={"Date": None, "Creator": None})
        if folder:
            figure.savefig(folder / f"demo-{name}.png", dpi=160)


if __name__ == "__main__":
    main()
