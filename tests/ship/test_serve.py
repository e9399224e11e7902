"""`pipeline serve` where things go wrong: killed models, swapped weights, taken ports, a server that dies."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from pipeline.ship import ship
from pipeline.ship.ports import Ports
from pipeline.ship.triton import checks, http, repository, wheel
from pipeline.ship.triton.server import Server
from pipeline.types import Failed, UserError
from tests import serving, soak
from tests.serving import command, until

TEXT = "tiny-base_generate"


@pytest.fixture
def repo(workdir: Path) -> Path:
    """A repository of one tiny model."""
    serving.triton()
    folder = Path("engines/triton").resolve()
    ship.ship(serving.project(workdir, ("base",)), folder)
    return folder


@pytest.mark.triton
@pytest.mark.slow
def test_smoke_checks_and_leaves_nothing(repo: Path) -> None:
    done = command("serve", str(repo), "--smoke")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.strip() == "8 checks passed, 0 failed"
        and "logits are those of the graph run directly" in done.stderr
    )
    assert not serving.stubs(str(repo))


@pytest.mark.triton
@pytest.mark.slow
def test_a_killed_model_is_noticed_and_loaded_again(repo: Path) -> None:
    """Triton goes on calling it ready; a request for a token finds out. Ctrl-C ends all."""
    with soak.served(repo, "--openai", "--openai-port", "0") as serve:
        before = {path.name for path in Path("/dev/shm").glob("pipeline-*")}
        killed = serve.stub(TEXT)
        os.kill(killed, signal.SIGKILL)
        until(lambda: checks.problem(serve.http, TEXT) is not None, 10)
        until(lambda: checks.problem(serve.http, TEXT) is None, 60)
        assert serve.stub(TEXT) != killed
        port = int(serve.http.rsplit(":", 1)[1])
    assert serve.process.returncode == 0
    assert not serving.stubs(str(repo)) and not serving.stubs(f"--model-repository={repo}")
    assert not before & {path.name for path in Path("/dev/shm").glob("pipeline-*")}
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))


@pytest.mark.triton
@pytest.mark.slow
def test_a_server_that_dies_is_an_error(repo: Path) -> None:
    with soak.served(repo) as serve:
        os.kill(serve.server(), signal.SIGKILL)
        serve.process.wait(60)
    assert serve.process.returncode == 1 and not serving.stubs(str(repo))


@pytest.mark.triton
@pytest.mark.slow
def test_a_killed_command_takes_the_server_along(repo: Path) -> None:
    with soak.served(repo) as serve:
        serve.process.kill()
        until(lambda: not serving.stubs(str(repo)), 60)


@pytest.mark.triton
@pytest.mark.slow
def test_swapped_weights_are_refused(repo: Path) -> None:
    """By the command, and by the model itself on a server of the user's own."""
    data = repo / "tiny-base/1/model.onnx/model.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    done = command("serve", str(repo), "--smoke")
    assert done.returncode == 2 and "model.data is not what was shipped" in done.stderr
    with (
        pytest.raises(Failed, match="ended with 1 before it was ready"),
        Server(wheel.find(), repo, [TEXT], Ports(0, 0, 0)),
    ):
        pass
    content[100] ^= 1
    data.write_bytes(content)
    (repo / TEXT / "1" / "model.py").write_text("print('mine')")
    with pytest.raises(UserError, match=r"model\.py is not what was shipped"):
        repository.verify(repo, repository.read(repo))


@pytest.mark.triton
@pytest.mark.slow
def test_a_config_of_another_graph_is_refused(repo: Path) -> None:
    """The stand-in holds config.pbtxt to the graph, as Triton's own backend does."""
    config = repo / "tiny-base" / "config.pbtxt"
    config.write_text(config.read_text().replace("past_key_values.0.key", "past_key_values.9.key"))
    with (
        pytest.raises(Failed, match="before it was ready"),
        Server(wheel.find(), repo, ["tiny-base"], Ports(0, 0, 0)),
    ):
        pass


@pytest.mark.triton
@pytest.mark.slow
def test_taken_ports_and_other_folders_are_one_line(repo: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        done = command("serve", str(repo), "--http-port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    advice = "stop what listens there, or choose another --http-port"
    assert done.stderr == f"error: port {port} is taken; {advice}\n"
    done = command("serve", "graphs")
    assert done.returncode == 2 and "holds no SHIP.json" in done.stderr
    done = command("serve", str(repo), "--docker")
    assert (
        done.returncode == 0 and f"-v {repo}:/models:ro" in done.stdout and "onnxruntime-gpu==" in done.stdout
    )


@pytest.mark.triton
@pytest.mark.slow
def test_a_plan_is_stood_in_for(workdir: Path) -> None:
    """The shipped config of a TensorRT plan loads unchanged; the graph that it was built from runs."""
    from tests.ship.test_ship import plan

    serving.triton()
    graph = serving.project(workdir, ("attn2-3",))[0]
    repo = Path("engines/triton").resolve()
    ship.ship([plan(graph, "tensorrt")], repo, unchecked=True)
    done = command("serve", str(repo), "--smoke")
    assert done.returncode == 0 and "8 checks passed" in done.stdout, done.stderr
    assert "plans are not executed here" in done.stderr
    with soak.served(repo) as serve:
        url = f"{serve.http}/v2/models/tiny-attn2-3_generate/generate"
        assert "text_output" in http.post(url, {"text_input": "a", "max_tokens": 4})[1]
    assert repository.read(repo).models["tiny-attn2-3"].versions["1"].kind == "tensorrt plan"


@pytest.mark.triton
@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    """Seconds of what `make soak` does for minutes: nothing lost or wrong, two killed models survived."""
    report = soak.run(tmp_path, 30)
    assert report.kills == 2 and not report.wrong, report.wrong[:3]
    assert report.counts["whole"] > 20 and report.counts["stream"] > 20 and report.counts["hang up"] > 5
    # Triton never answers what was in a model when its process died: those clients wait for their time-out.
    broken = sum(count for kind, count in report.counts.items() if kind.startswith("connection"))
    assert broken <= report.kills * soak.CLIENTS
    memory = [megabytes for _, megabytes in report.memory]
    # The first samples may lack a model that is loading.
    assert memory[-1] < 1.2 * max(memory[: len(memory) // 2]) + 50
