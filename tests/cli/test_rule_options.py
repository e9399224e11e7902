"""An option of `select` that nothing would read is refused, and never passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.rule_options import RuleOptions
from pipeline.types import UserError
from tests import published
from tests.commands import run


@pytest.mark.parametrize(
    ("typed", "rule", "start", "is_timed", "is_compared"),
    [
        (RuleOptions(seed=3), "random", None, False, False),
        (RuleOptions(seed=3, samples=2, length=9), "evo", None, False, False),
        (RuleOptions(seed=3, samples=2), "evo", None, True, False),
        (RuleOptions(tokens="mean"), "angular", None, False, False),
        (RuleOptions(tokens="mean"), "evo", "angular", False, False),
        (RuleOptions(texts=[Path("a.txt")], samples=2, length=9), "greedy", None, False, False),
        (RuleOptions(texts=[Path("a.txt")]), "last", None, False, True),
        (RuleOptions(dataset="a/b"), "cosine", None, True, True),
        (RuleOptions(length=9), "cosine", None, True, False),
        (RuleOptions(texts=[]), "last", None, False, False),
    ],
)
def test_what_is_read_is_taken(
    typed: RuleOptions, rule: str, start: str | None, is_timed: bool, is_compared: bool
) -> None:
    typed.belong_to(rule, start, is_timed, is_compared)


@pytest.mark.parametrize(
    ("typed", "rule", "is_timed", "is_compared", "message"),
    [
        (RuleOptions(seed=0), "last", False, False, "--seed belongs to --select evo or random, and the"),
        (RuleOptions(seed=1), "cosine", True, True, "--seed belongs"),
        (RuleOptions(tokens="final"), "evo", False, False, "--tokens belongs to --select angular"),
        (RuleOptions(texts=[Path("a.txt")]), "cosine", False, False, "--texts belongs to --select evo or"),
        (RuleOptions(dataset="a/b"), "cosine", True, False, "--dataset belongs"),
        (RuleOptions(samples=0), "last", False, True, "--samples belongs"),
        (RuleOptions(length=0), "last", False, True, "--length belongs"),
        (RuleOptions(length=7), "nosuch", False, False, "no selector 'nosuch'; choose from angular, cosine"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused(
    typed: RuleOptions, rule: str, is_timed: bool, is_compared: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        typed.belong_to(rule, None, is_timed, is_compared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "5"), "--seed belongs to"),
        (("--texts", "none.txt"), "--texts belongs to"),
        (("--tokens", "bogus"), "--tokens belongs to --select angular, and the rule is published"),
        (("--length", "7"), "--length belongs to"),
        (("--set", ""), "--set is empty"),
    ],
)
def test_published_sets_take_none_of_them(
    options: tuple[str, ...], message: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published.write(workdir)
    with pytest.raises(UserError, match=message):
        run(capsys, "select", "--model", "made-up/tiny", "--select", "published", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--select", "evo", "--start", ""), "--start is empty"),
        (("--finalists", "2", "--with", ""), "--with is empty"),
        (("--finalists", "2", "--tasks", ""), "--tasks is empty"),
        (("--select", "evo", "--start", "last", "--length", "0"), "cannot cut 8 sequences of 0 tokens"),
    ],
)
def test_nothing_is_no_default(
    options: tuple[str, ...], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        run(capsys, "select", "m", "--kind", "mlp", "--count", "1", *options)
