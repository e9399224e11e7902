"""A missing package of the extra is one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.ship import extra
from pipeline.types import UserError
from tests import tiny


def test_a_missing_package_names_the_extra() -> None:
    message = r"the front needs no_such_package; run `pip install 'skip-pipeline\[serve\]'`"
    with pytest.raises(UserError, match=message), extra.needed_by("the front needs"):
        import no_such_package  # noqa: F401


@pytest.mark.parametrize("package", ["httpx", "tritonclient"])
def test_serve_without_the_extra(package: str) -> None:
    script = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {package!r}:\n"
        f"            raise ModuleNotFoundError(name, name={package!r})\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from pipeline import cli\n"
        "sys.argv = ['pipeline', 'serve', 'nowhere']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=tiny.environment(), check=False
    )
    line = f"error: serving needs {package}; run `pip install 'skip-pipeline[serve]'`\n"
    assert (done.returncode, done.stderr) == (2, line)
