"""A template renders in a sandbox; what it may say is compared with transformers in test_prompts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.runtime.generation import chat_template
from pipeline.runtime.generation.chat_template import render
from pipeline.types import UserError
from tests import tiny


def test_variables_and_time_are_there() -> None:
    assert render("{{ a }}{{ b is defined }}", {"a": 1}) == "1False"
    assert render("{{ strftime_now('%Y') }}", {}) == str(datetime.now().year)


def test_blocks_leave_no_blank_lines() -> None:
    assert (
        render("{% if true %}\n  {% for i in range(3) %}\n{{ i }}\n  {% endfor %}\n{% endif %}", {})
        == "0\n1\n2\n"
    )


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('a\nb') }}", "{% if %}", "{{ x.y.z }}", "{% break %}"]
)
def test_an_error_is_one_line(template: str) -> None:
    with pytest.raises(UserError) as caught:
        render(template, {})
    assert re.fullmatch("the model's chat template refuses these messages: .+", str(caught.value))


MEMORY, TIME, OUTPUT = "over 512 MB of memory", "over 2 s", "over 1,000,000 characters"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 10**9 }}", MEMORY),
        ("{{ '%999999999d' % 1 }}", MEMORY),
        ("{{ '{:>999999999}'.format('a') }}", MEMORY),
        ("{{ 'a' | center(10**9) }}", MEMORY),
        ("{{ ('a\n' * 100000) | indent(100000) }}", MEMORY),
        ("{{ [1] * 10**9 }}", MEMORY),
        (
            "{% set ns = namespace(x='aaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}"
            "{% endfor %}{{ ns.x }}",
            MEMORY,
        ),
        ("{% for i in range(9999) %}{{ 'a' * 999 }}{% endfor %}", OUTPUT),
        ("{{ 'a' * 10**7 }}", OUTPUT),
        pytest.param(
            "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
            TIME,
            marks=pytest.mark.slow,
        ),
        pytest.param("{{ (9 ** (9 ** 8)) % 7 }}", TIME, marks=pytest.mark.slow),  # one operation in C
        ("{{ " + "(" * 10**5, "recursion"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ (10**5000) | string }}", "4300 digits"),
    ],
)
def test_a_template_has_bounds_and_the_next_one_renders(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        render(template, {})
    assert "\n" not in str(caught.value)
    assert render("{{ a }}", {"a": 1}) == "1"


def test_strftime_of_a_giant_width_does_no_harm() -> None:
    assert render("{{ strftime_now('%99999999Y') }}", {}) == ""


def test_what_is_no_unicode_is_given_back() -> None:
    assert render("{{ a }}{{ '\x85\u2028' }}é\n\n", {"a": "\ud800 é\n"}) == "\ud800 é\n\x85\u2028é\n"


def test_a_megabyte_of_messages_takes_its_turn_and_more_is_refused() -> None:
    assert render("{{ a | length }}", {"a": "x" * 10**7}) == str(10**7)
    with pytest.raises(UserError, match="32,000,000 at most"):
        render("{{ a | length }}", {"a": "x" * 32_000_000})


def test_threads_get_their_own_texts() -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda n: render("{{ a }}", {"a": n}), range(200)))
    assert texts == [str(n) for n in range(200)]


def test_a_process_that_was_killed_is_started_again() -> None:
    render("{{ a }}", {"a": 1})
    process = chat_template._process.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert render("{{ a }}", {"a": 2}) == "2"


def test_an_interruption_leaves_no_answer_behind() -> None:
    """What was asked for before Ctrl-C is not the answer to what is asked next."""
    render("{{ a }}", {"a": 1})
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        render("{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}late", {})
    assert render("{{ a }}", {"a": 2}) == "2"


def test_a_fork_has_a_process_of_its_own() -> None:
    render("{{ a }}", {"a": 1})
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, render("{{ a }}", {"a": "child"}).encode())
        chat_template._process.stop()
        os._exit(0)
    assert render("{{ a }}", {"a": "parent"}) == "parent"
    assert os.read(reader, 99) == b"child"
    os.waitpid(child, 0)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pid: int, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return is_gone(pid)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["{{ a }}", "{{ (9 ** (9 ** 8)) % 7 }}"])
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_nothing_runs_on_when_its_user_ends(template: str, end: str) -> None:
    """However it ends, and though a rendering still runs."""
    script = (
        "import sys, threading; from pipeline.runtime.generation.chat_template import render\n"
        f"render('x', {{}}); arguments = ({template!r}, {{'a': 1}})\n"
        "threading.Thread(target=render, args=arguments, daemon=True).start()\n"
        "print('up', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    parent = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=tiny.environment())
    assert parent.stdout is not None and parent.stdin is not None
    parent.stdout.readline()
    (child,) = children(parent.pid)
    if end == "kill":
        parent.kill()
    else:
        parent.stdin.close()
    parent.wait()
    assert wait_gone(child)


def test_an_interpreter_is_there_where_sys_names_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's stub, which embeds one."""
    render("{{ a }}", {"a": 1})
    version = ".".join(map(str, sys.version_info[:2]))
    for executable in ("", None, "/opt/triton_python_backend_stub"):
        monkeypatch.setattr(sys, "executable", executable)
        path = chat_template._interpreter()
        code = "import sys, json; print(json.dumps(sys.version_info[:2]))"
        done = subprocess.run([path, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
        assert ".".join(map(str, json.loads(done.stdout))) == version


def test_what_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chat_template._process.stop()
    monkeypatch.setattr(chat_template, "_interpreter", lambda: "/bin/false")
    with pytest.raises(UserError, match="/bin/false does not start"):
        render("{{ a }}", {"a": 1})
    monkeypatch.setattr(chat_template, "_interpreter", lambda: str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none does not start"):
        render("{{ a }}", {"a": 1})
