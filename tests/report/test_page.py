"""The page in a real browser: it loads without a complaint, draws, filters, and fits a narrow screen."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report import collect, report
from tests import results
from tests.chromium import Browser, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
DRAWN = "[...document.querySelectorAll('[data-chart]')].every(p => p.querySelector('.main-svg'))"
PARETO = "document.querySelector('[data-chart=\"pareto-saved\"]')"
FIRST_CHART = """var firstChart = new Promise(seen => new MutationObserver(() =>
    document.querySelector("[data-chart] .main-svg") && requestAnimationFrame(() => seen(performance.now() / 1000))
).observe(document, {childList: true, subtree: true}))"""
"""The second in which the first chart is painted, by the page's own clock."""
VISIBLE = f"{PARETO}.data.filter(t => t.visible !== false && t.name !== 'frontier').map(t => t.meta)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A report on two models, with statistics, a sweep's failures and the paper's model."""
    before, root = Path.cwd(), tmp_path_factory.mktemp("root")
    os.chdir(root)
    try:
        for model in ("SmolLM2-135M-Instruct", "Llama-2-7b-hf"):
            results.healed_grid(model)
        results.statistics("SmolLM2-135M-Instruct", 12)
        job = {
            "id": "1",
            "stage": "build",
            "model": "Llama-2-7b-hf",
            "variant": "mlp21-31",
            "state": "failed",
            "error": "no GPU",
        }
        results.ledger([job])
        yield report.write(Path("report"), collect.collect())[0].resolve()
    finally:
        os.chdir(before)


def draw_all(browser: Browser) -> None:
    """Brings every chart into view, one after the other."""
    count = browser.run("document.querySelectorAll('[data-chart]').length")
    for k in range(count):
        one = f"document.querySelectorAll('[data-chart]')[{k}]"
        browser.run(f"{one}.scrollIntoView()")
        browser.wait(f"{one}.querySelector('.main-svg') !== null")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 400])
def test_it_loads_draws_and_fits(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    with Browser(tmp_path / "profile", width, dark) as browser:
        browser.open(page)
        draw_all(browser)
        assert browser.run(DRAWN) and browser.run("document.querySelectorAll('[data-chart]').length") >= 12
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.run("document.querySelectorAll('#rows tbody tr').length") == 10
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(22, 22, 26)" if dark else "rgb(255, 255, 255)")
        assert browser.complaints == []


def test_the_filter_filters_everything(page: Path, tmp_path: Path) -> None:
    def choose(name: str, value: str) -> None:
        browser.run(
            f"{{ const s = document.getElementById('{name}'); s.value = '{value}'; s.dispatchEvent(new Event('change')); }}"
        )

    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        browser.run(f"{PARETO}.scrollIntoView()")
        browser.wait(f"{PARETO}.querySelector('.main-svg') !== null")
        assert len(browser.run(VISIBLE)) == 2 * 4 + 3
        choose("model", "Llama-2-7b-hf")
        choose("kind", "attn")
        shown = browser.run(VISIBLE)
        assert {m["model"] for m in shown} == {"Llama-2-7b-hf", "Tyukin et al."} and {
            m["kind"] for m in shown
        } == {
            "attn",
            "base",
        }
        assert browser.run(
            "[...document.querySelectorAll('#rows tbody tr')].map(r => r.cells[1].textContent)"
        ) == ["attn24-31.fp32"]
        assert browser.run(
            "[...document.querySelectorAll('.card:not([hidden])')].every(c => c.dataset.model === 'Llama-2-7b-hf')"
        )
        choose("kind", "")
        assert "of 5" in browser.run("document.getElementById('count').textContent")
        browser.run(
            "{ const s = document.getElementById('search'); s.value = 'nothing'; s.dispatchEvent(new Event('input')); }"
        )
        assert browser.run("document.getElementById('count').textContent") == "none fits the filter"
        assert browser.complaints == []


def test_keyboard_and_screen_reader(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        for key in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=key, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        assert browser.run("document.activeElement.className") == "skip"
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert browser.run(
            "['header', 'nav', 'main', 'footer'].every(tag => document.querySelectorAll(tag).length === 1)"
        )
        assert browser.run(
            "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope=col]'))"
        )
        assert browser.run(
            "[...document.querySelectorAll('select, input')].every(i => i.labels.length === 1)"
        )
        levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
        assert (
            levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
        )
        assert browser.run(
            "[...document.querySelectorAll('[role=img]')].every(c => c.getAttribute('aria-label'))"
        )
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
        unnamed = [
            n
            for n in tree
            if n.get("role", {}).get("value") in ("link", "button", "combobox")
            and not n.get("name", {}).get("value")
        ]
        assert not [n for n in unnamed if not n.get("ignored")]


def test_links_open_from_the_file_system(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        found = browser.run(
            "[...document.querySelectorAll('a[href]')].map(a => a.href).filter(h => !h.includes('#'))"
        )
        assert len(found) > 50 and all(link.startswith(page.parent.as_uri()) for link in found)
        browser.run("document.querySelector('#rows tbody a').click()")
        browser.wait("location.pathname.endsWith('.json') && document.body.innerText.includes('sha256')")


def test_ten_thousand_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the page's tree, and so its time, does not grow with the results; `-rP` prints the times (docs/notes.md)."""
    monkeypatch.chdir(tmp_path)
    results.many("SmolLM2-135M-Instruct", 3334)
    started = time.monotonic()
    page = report.write(Path("report"), collect.collect())[0]
    print(f"written in {time.monotonic() - started:.2f} s: {page.stat().st_size / 1e6:.1f} MB")
    for k in range(3):
        with Browser(tmp_path / f"profile{k}") as browser:
            browser.call("Page.addScriptToEvaluateOnNewDocument", source=FIRST_CHART)
            browser.open(page)
            assert "of 3334" in browser.run("document.getElementById('count').textContent")
            assert browser.run("document.querySelectorAll('#rows tbody tr').length") == 100
            assert browser.run("document.querySelectorAll('*').length") < 10_000
            first = browser.run("firstChart")
            readable = browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
            assert (
                browser.run("document.querySelectorAll('[data-chart] .main-svg').length") < 10
            )  # those in view alone
            drawn = "document.querySelector('[data-chart] .main-svg').closest('[data-chart]')"
            assert browser.run(f"{drawn}.data.reduce((n, t) => n + t.x.length, 0)") >= 3334
            assert browser.complaints == []
        print(f"readable after {readable:.2f} s, first chart after {first:.2f} s")
