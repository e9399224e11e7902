"""The page in a real browser: it loads without a complaint, draws, filters, and fits a narrow screen."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pipeline.report import collect, report
from tests import results
from tests.chromium import missing, opened

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
DRAWN = "[...document.querySelectorAll('[data-chart]')].every(p => p.querySelector('.main-svg'))"
PARETO = "[data-chart=pareto-saved]"
TRACES = "chart => chart.data.filter(t => t.visible !== false && t.name !== 'frontier').map(t => t.meta)"
FIRST_CHART = """globalThis.firstChart = new Promise(seen => new MutationObserver(() =>
    document.querySelector("[data-chart] .main-svg")
        && requestAnimationFrame(() => seen(performance.now() / 1000))
).observe(document, {childList: true, subtree: true}))"""
"""The second in which the first chart is painted, by the page's own clock."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A report on two models, with statistics, a sweep's failures and the paper's model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("root"))
        for model in ("SmolLM2-135M-Instruct", "Llama-2-7b-hf"):
            results.healed_grid(model)
        results.statistics("SmolLM2-135M-Instruct", 12)
        results.ledger([results.job("build", "Llama-2-7b-hf", "failed", variant="mlp21-31", error="no GPU")])
        yield report.write(Path("report"), collect.collect())[0].resolve()


def draw_all(page: Page) -> None:
    """Brings every chart into view, one after the other."""
    for chart in page.locator("[data-chart]").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 400])
def test_it_loads_draws_and_fits(file: Path, width: int, dark: bool) -> None:
    with opened(file, width, dark) as (page, complaints):
        draw_all(page)
        assert page.evaluate(DRAWN) and page.locator("[data-chart]").count() >= 12
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator("#rows tbody tr").count() == 10
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(22, 22, 26)" if dark else "rgb(255, 255, 255)")
        assert complaints == []


def test_the_filter_filters_everything(file: Path) -> None:
    with opened(file) as (page, complaints):
        chart = page.locator(PARETO)
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
        assert len(chart.evaluate(TRACES)) == 2 * 4 + 3
        page.select_option("#model", "Llama-2-7b-hf")
        page.select_option("#kind", "attn")
        shown = chart.evaluate(TRACES)
        assert {m["model"] for m in shown} == {"Llama-2-7b-hf", "Tyukin et al."}
        assert {m["kind"] for m in shown} == {"attn", "base"}
        assert page.locator("#rows tbody th").all_text_contents() == ["attn24-31.fp32"]
        cards = page.locator(".card:not([hidden])").evaluate_all("all => all.map(c => c.dataset.model)")
        assert set(cards) == {"Llama-2-7b-hf"}
        page.select_option("#kind", "")
        assert "of 5" in page.inner_text("#count")
        page.fill("#search", "nothing")
        assert page.inner_text("#count") == "none fits the filter"
        assert complaints == []


def test_keyboard_and_screen_reader(file: Path) -> None:
    with opened(file) as (page, _):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert [page.locator(tag).count() for tag in ("header", "nav", "main", "footer")] == [1] * 4
        tables = page.locator("table")
        assert tables.evaluate_all("all => all.every(t => t.caption && t.querySelector('th[scope=col]'))")
        assert page.locator("select, input").evaluate_all("all => all.every(i => i.labels.length === 1)")
        levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(h => Number(h.tagName[1]))")
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert page.locator("[role=img]").evaluate_all("all => all.every(c => c.getAttribute('aria-label'))")
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in tree if not node.get("ignored")]
        named = [node for node in shown if node["role"]["value"] in ("link", "button", "combobox")]
        assert named and all(node.get("name", {}).get("value") for node in named)


def test_links_open_from_the_file_system(file: Path) -> None:
    with opened(file) as (page, _):
        links = page.locator("a[href]").evaluate_all("all => all.map(a => a.href)")
        outside = [link for link in links if "#" not in link]
        assert len(outside) > 50 and all(link.startswith(file.parent.as_uri()) for link in outside)
        page.locator("#rows tbody a").first.click()
        page.wait_for_url("**/*.json")
        assert "sha256" in page.inner_text("body")


def test_ten_thousand_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the page's tree, and so its time, does not grow with the results.

    `-rP` prints the times (docs/notes.md).
    """
    monkeypatch.chdir(tmp_path)
    results.many("SmolLM2-135M-Instruct", 3334)
    started = time.monotonic()
    file = report.write(Path("report"), collect.collect())[0]
    print(f"written in {time.monotonic() - started:.2f} s: {file.stat().st_size / 1e6:.1f} MB")
    for _ in range(3):
        with opened(file, script=FIRST_CHART) as (page, complaints):
            assert "of 3334" in page.inner_text("#count")
            assert page.locator("#rows tbody tr").count() == 100
            assert page.evaluate("document.querySelectorAll('*').length") < 10_000
            first = page.evaluate("firstChart")
            readable = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
            drawn = page.locator("[data-chart]:has(.main-svg)")
            assert 0 < drawn.count() < 10  # those in view alone
            count = drawn.first.evaluate("chart => chart.data.reduce((n, t) => n + t.x.length, 0)")
            assert count >= 3334
            assert complaints == []
        print(f"readable after {readable:.2f} s, first chart after {first:.2f} s")
