from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.evals.score.stable import described
from tests import tiny


def doubled(number: int, by: int = 2) -> int:
    return number * by


def scaled(by: int) -> Callable[[int], int]:
    return lambda number: number * by


class Plain:
    pass


def test_the_form_holds_no_address() -> None:
    values = [doubled, scaled(3), Plain(), Plain, functools.partial(doubled, by=3), {"f": [doubled]}, len]
    text = json.dumps(described(values))
    assert " at 0x" not in text and text == json.dumps(described(values))


def test_other_functions_have_other_forms() -> None:
    forms = [
        described(value)
        for value in (doubled, scaled(3), scaled(4), functools.partial(doubled, by=3), Plain, None, "doubled")
    ]
    assert len({json.dumps(form) for form in forms}) == len(forms)


def test_a_function_is_its_whole_module(tmp_path: Path) -> None:
    """A helper that changes makes other prompts, though the function that calls it is the same."""
    forms = []
    for helper in ("1", "2"):
        file = tmp_path / f"m{helper}.py"
        file.write_text(f"def helper():\n    return {helper}\n\ndef f(x):\n    return helper()\n")
        module: dict[str, object] = {"__name__": "m"}
        exec(compile(file.read_text(), str(file), "exec"), module)
        forms.append(described(module["f"]))
    assert forms[0] != forms[1]


PRINTED = """
from pipeline.evals.score.stable import described
from tests.evals.score.test_stable import doubled, scaled
import functools, json
code = compile('def f(x): return x in {"a", "b", "c"}', "<string>", "exec")
space = {}; exec(code, space)
partial = functools.partial(doubled, by=3)
print(json.dumps(described([{"b", "a", "c"}, doubled, scaled(3), partial, space["f"]])))
"""


def test_it_is_the_same_in_every_process() -> None:
    lines = set()
    for seed in ("1", "2"):
        environment = {**tiny.environment(), "PYTHONHASHSEED": seed}
        line = [sys.executable, "-c", PRINTED]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        lines.add(done.stdout)
    assert len(lines) == 1 and "doubled" in lines.pop()
