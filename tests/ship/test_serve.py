"""`pipeline serve` where things go wrong: killed models, swapped weights, taken ports, a server that dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipeline import store
from pipeline.ship import serve
from pipeline.ship.ports import Ports
from pipeline.ship.triton import checks, http, repository, ship, wheel
from pipeline.ship.triton.server import Server
from pipeline.ship.web.guard import Access
from pipeline.types import Failed, UserError
from tests import abuse, serving, soak
from tests.serving import command, plan, ship_record, until

TEXT = "tiny-base_generate"


@pytest.fixture
def repo(workdir: Path) -> Path:
    """A repository of one tiny model."""
    serving.triton()
    folder = Path("engines/triton").resolve()
    ship.ship(serving.project(workdir, ("base",)), folder)
    return folder


@dataclass
class FakeServer:
    """What is read of a server."""

    http: str = "http://127.0.0.1:8000"
    grpc: str = "127.0.0.1:8001"
    metrics: str = "http://127.0.0.1:8002/metrics"
    wheel: wheel.Wheel = field(
        default_factory=lambda: wheel.Wheel(Path("p"), Path("r"), (), Path("s"), "cuda")
    )


def test_a_failed_check_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [checks.ServingCheck("m", what, what == "is READY") for what in ("is READY", "x", "y")]
    asked: list[object] = []
    monkeypatch.setattr(checks, "examine", lambda *arguments: iter(asked.append(arguments[-1]) or results))
    with pytest.raises(Failed, match="2 checks failed; the first: FAILED  m: x"):
        serve._require_checks(Path("repo"), ship_record(), FakeServer())
    results = results[:1]
    serve._require_checks(Path("repo"), ship_record(), FakeServer())
    assert asked == ["cuda"] * 2  # compared with what runs where the server's graphs do


def test_addresses_and_a_curl_with_its_content_type(capsys: pytest.CaptureFixture[str]) -> None:
    urls = ["http://127.0.0.1:7000", "http://127.0.0.1:9000"]
    serve._print_addresses(FakeServer(), ["m", "m_generate"], urls, Access())
    first, *lines, curl = capsys.readouterr().out.splitlines()
    assert first.startswith("ready: http://127.0.0.1:7000 (HTTP), 127.0.0.1:8001 (gRPC)")
    assert "  http://127.0.0.1:9000/v1 (OpenAI)" in lines
    url = "http://127.0.0.1:7000/v2/models/m_generate"
    assert curl.startswith(f"  curl -N {url}/generate_stream -H 'Content-Type: application/json' -d ")
    serve._print_addresses(FakeServer(), ["m_generate"], urls[:1], Access(api_key="sesame"))
    printed = capsys.readouterr().out
    assert '-H "Authorization: Bearer $PIPELINE_API_KEY"' in printed and "sesame" not in printed


def test_an_empty_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my repo").mkdir()
    store.write_json(tmp_path / "my repo" / "SHIP.json", ship_record().plain())
    with pytest.raises(UserError, match=r"holds no model; ship one with `.* --to triton '.*my repo'`"):
        serve.smoke(tmp_path / "my repo")


def test_a_model_that_knows_no_provider_is_refused_on_cuda(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that an earlier version shipped would run on the CPU, and say nothing."""
    folder = Path("engines/triton").resolve()
    ship.ship(serving.project(workdir, ("base",)), folder)
    assert [model.name for model in serve._verified(folder, "cuda")] == ["tiny-base", TEXT]
    monkeypatch.setattr(repository, "verify", lambda *_: None)
    code = folder / TEXT / "1/pipeline/ship/triton/in_triton/generate_model.py"
    code.write_text(code.read_text().replace("PIPELINE_PROVIDER", ""))
    assert serve._verified(folder, "cpu")
    with pytest.raises(UserError, match=r"tiny-base_generate was shipped by a version .*; ship it again"):
        serve._verified(folder, "cuda")


def test_the_server_is_that_of_the_provider(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("engines/triton").resolve()
    ship.ship(serving.project(workdir, ("base",)), folder)
    monkeypatch.setattr(wheel, "find", lambda provider: wheel.Wheel(workdir, workdir, (), workdir, provider))

    def started(found: wheel.Wheel, *_: object) -> None:
        raise Failed(f"on {found.provider}")

    monkeypatch.setattr(serve, "Server", started)
    for provider in ("cuda", "cpu"):
        with pytest.raises(Failed, match=f"on {provider}"):
            serve.smoke(folder, provider)
        with pytest.raises(Failed, match=f"on {provider}"):
            serve.serve(folder, Ports(0, 0, 0), provider=provider)


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
    with soak.served(repo, "--openai", "--openai-port", "0") as running:
        memory = running.memory_regions()
        assert list(Path("/dev/shm").glob(memory))
        killed = running.stub(TEXT)
        os.kill(killed, signal.SIGKILL)
        until(lambda: checks.problem(running.http, TEXT) is not None, 10)
        until(lambda: checks.problem(running.http, TEXT) is None, 60)
        assert running.stub(TEXT) != killed
        port = int(running.http.rsplit(":", 1)[1])
    assert running.process.returncode == 0
    assert not serving.stubs(str(repo)) and not serving.stubs(f"--model-repository={repo}")
    assert not list(Path("/dev/shm").glob(memory))
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))


@pytest.mark.triton
@pytest.mark.slow
def test_a_server_that_dies_is_started_again(repo: Path) -> None:
    """On the same ports, whole and over both fronts; what the dead one left is gone."""
    with soak.served(repo, "--openai", "--openai-port", "0") as running:
        server, memory = running.server(), running.memory_regions()
        body = {"text_input": "the time", "max_tokens": 9, "ignore_eos": True}
        asked = {"model": "tiny-base", "prompt": "the time", "max_tokens": 9, "temperature": 0}
        url, front = f"{running.http}/v2/models/{TEXT}/generate", f"{running.openai}/completions"
        text = http.post(url, body)[1]["text_output"]
        assert http.post(front, asked)[0] == 200
        os.kill(server, signal.SIGABRT)
        until(lambda: http.post(url, body)[0] == 503, 10)
        until(lambda: http.post(url, body)[0] == 200, 60)
        assert http.post(url, body)[1]["text_output"] == text
        until(lambda: http.post(front, asked)[0] == 200, 10)
        assert running.server() != server and not list(Path("/dev/shm").glob(memory))
    assert running.process.returncode == 0 and not serving.stubs(str(repo))


@pytest.mark.triton
@pytest.mark.slow
def test_a_killed_command_takes_the_server_along(repo: Path) -> None:
    with soak.served(repo) as running:
        running.process.kill()
        until(lambda: not serving.stubs(str(repo)), 60)


@pytest.mark.triton
@pytest.mark.slow
def test_what_a_killed_command_left_is_gone_when_the_next_one_is_ready(repo: Path) -> None:
    """Its folder, its shared memory, its server and its models' processes; those of a server beside stay."""
    with soak.served(repo) as killed, soak.served(repo) as beside:
        server, stubs, memory = killed.server(), killed.stubs(), killed.memory_regions()
        folder = next(
            Path(option.split("=")[1]).parent
            for option in psutil.Process(server).cmdline()
            if option.startswith("--backend-directory=")
        )
        os.kill(server, signal.SIGSTOP)  # it does not end by itself, as where its models hang
        killed.process.kill()
        killed.process.wait()
        assert folder.is_dir() and list(Path("/dev/shm").glob(memory)) and stubs
        with soak.served(repo):
            assert not folder.exists() and not list(Path("/dev/shm").glob(memory))
            until(lambda: not any(map(psutil.pid_exists, (server, *stubs))))
            assert checks.problem(beside.http, TEXT) is None
            assert list(Path("/dev/shm").glob(beside.memory_regions()))


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
    (repo / TEXT / "1" / "model.py").write_text("print('edited')")
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
def test_who_went_back_is_compared_with_what_is_served(workdir: Path) -> None:
    """Both models on version 1, then the text model alone: never version 2, which is only there."""
    serving.triton()
    repo = Path("engines/triton").resolve()
    for graph in serving.project(workdir):
        ship.ship([graph], repo, name="llm")
    for model in ("llm_generate", "llm"):
        shutil.copyfile(repo / model / "configs/v1.pbtxt", repo / model / "config.pbtxt")
        done = command("serve", str(repo), "--smoke")
        assert done.returncode == 0 and "8 checks passed" in done.stdout, done.stderr
        assert "llm_generate: version 1 is READY" in done.stderr
    assert "llm: version 1 is READY" in done.stderr and "version 2" not in done.stderr
    (repo / "llm_generate/2/model.py").write_text("print('not served')")
    assert command("serve", str(repo), "--smoke").returncode == 0
    (repo / "llm_generate/1/model.py").write_text("print('edited')")
    done = command("serve", str(repo), "--smoke")
    assert done.returncode == 2 and "llm_generate/1/model.py is not what was shipped" in done.stderr


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
    serving.triton()
    graph = serving.project(workdir, ("attn2-3",))[0]
    repo = Path("engines/triton").resolve()
    ship.ship([plan(graph, "tensorrt")], repo, unchecked=True)
    done = command("serve", str(repo), "--smoke")
    assert done.returncode == 0 and "8 checks passed" in done.stdout, done.stderr
    assert "plans are not executed here" in done.stderr
    with soak.served(repo) as running:
        url = f"{running.http}/v2/models/tiny-attn2-3_generate/generate"
        assert "text_output" in http.post(url, {"text_input": "a", "max_tokens": 4})[1]
    assert repository.read(repo).models["tiny-attn2-3"].versions["1"].kind == "tensorrt plan"


@pytest.mark.triton
@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    """Seconds of what `make soak` does for minutes: nothing lost or wrong, whoever is killed."""
    report = soak.run(tmp_path, 30)
    assert (report.kills, report.server_kills) == (2, 1) and not report.wrong, report.wrong[:3]
    assert all(len(seconds) > 5 for seconds in report.seconds.values()), report.plain()["good"]
    assert set(report.abuses) == set(abuse.KINDS)
    # What was in a model when its process died is told so, by the gate and by the front.
    assert sum(count for told, count in report.retries.items() if told.startswith("connection")) == 0
    memory = [megabytes for _, megabytes in report.memory]
    # The first samples may lack a model that is loading.
    assert memory[-1] < 1.2 * max(memory[: len(memory) // 2]) + 50
