"""The real Triton server on what `pipeline ship` wrote, on the CPU: tensors, loading, and how it stops."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from pipeline.ship.ports import Ports
from pipeline.ship.triton import checks, http, repository, served, ship
from pipeline.ship.triton.server import Server
from pipeline.types import Failed
from tests import serving
from tests.serving import BASE, CUT, PROMPTS, Served, until

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def test_every_check_of_the_smoke_run_passes(healthy: Served) -> None:
    models = served.models(healthy.repo, repository.read(healthy.repo))
    results = list(checks.examine(healthy.repo, models, healthy.server.http, healthy.server.grpc))
    assert len(results) == 3 * 6 and all(check.passed for check in results), [c.line() for c in results]


@pytest.mark.parametrize(("protocol", "client"), [("http", httpclient), ("grpc", grpcclient)])
@pytest.mark.parametrize("model", [BASE, CUT])
def test_tensors_over_both_protocols(healthy: Served, protocol: str, client: Any, model: str) -> None:
    """Logits and cache of a padded batch with a past, equal to the direct run; on an empty cache too."""
    runner = healthy.runners[model]
    ids, mask = np.arange(3, 15).reshape(2, 6), np.array([[0, 0, 1, 1, 1, 1], [1] * 6])
    first = runner.feeds(ids, attention_mask=mask)
    _, cache = runner.forward(ids, attention_mask=mask)
    longer = np.concatenate([mask, np.ones((2, 1), int)], axis=1)
    second = runner.feeds(np.array([[7], [9]]), cache, attention_mask=longer)
    address = healthy.server.http.removeprefix("http://") if protocol == "http" else healthy.server.grpc
    with client.InferenceServerClient(address) as triton:
        for feeds in (first, second):
            tensors = []
            for name, array in feeds.items():
                tensor = client.InferInput(name, list(array.shape), client.np_to_triton_dtype(array.dtype))
                tensor.set_data_from_numpy(array)
                tensors.append(tensor)
            answer, expected = triton.infer(model, tensors), runner.infer(feeds)
            for name in runner.outputs:
                np.testing.assert_allclose(answer.as_numpy(name), expected[name], atol=1e-5)


def test_equal_shapes_run_together(healthy: Served) -> None:
    """Sixteen concurrent requests of one shape need fewer executions than requests."""
    runner, ids = healthy.runners[BASE], np.arange(3, 60)[None]

    def ask(_: int) -> None:
        with httpclient.InferenceServerClient(healthy.server.http.removeprefix("http://")) as triton:
            tensors = []
            for name, array in runner.feeds(ids).items():
                tensor = httpclient.InferInput(
                    name, list(array.shape), httpclient.np_to_triton_dtype(array.dtype)
                )
                tensor.set_data_from_numpy(array)
                tensors.append(tensor)
            triton.infer(BASE, tensors, outputs=[httpclient.InferRequestedOutput("logits")])

    with httpclient.InferenceServerClient(healthy.server.http.removeprefix("http://")) as triton:
        before = triton.get_inference_statistics(BASE)["model_stats"][0]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, range(48)))
        after = triton.get_inference_statistics(BASE)["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 48
    assert after["execution_count"] - before["execution_count"] < 48


def test_two_variants_side_by_side(healthy: Served) -> None:
    texts = {model: healthy.generate(model, PROMPTS[1], max_tokens=24) for model in (BASE, CUT)}
    assert texts == {model: healthy.direct(model, PROMPTS[1], max_tokens=24) for model in (BASE, CUT)}
    assert texts[BASE] != texts[CUT]


def test_unload_and_load(healthy: Served) -> None:
    """Requests in flight at an unload end with a result or an error; after a load all is as before."""
    expected = healthy.direct(CUT, PROMPTS[1], max_tokens=8)
    with httpclient.InferenceServerClient(healthy.server.http.removeprefix("http://")) as triton:
        for model in (CUT, f"{CUT}_generate"):
            triton.unload_model(model)
            until(lambda model=model: not triton.is_model_ready(model))
        assert "text_output" not in http.post(healthy.url(CUT), {"text_input": "a"})[1]
        for model in (CUT, f"{CUT}_generate"):
            triton.load_model(model)
    assert healthy.generate(CUT, PROMPTS[1], max_tokens=8) == expected


def test_reload(healthy: Served) -> None:
    """The process of the old model ends, which Triton asks of it when the new one answers already."""

    def stubs() -> set[int]:
        """Of this server: those of other tests may run beside it."""
        name = f"{CUT}_generate"
        return {process for process in serving.stubs(f"{name}/") if healthy.server.is_stub(process, name)}

    before = stubs()
    healthy.server.reload(f"{CUT}_generate")
    assert healthy.generate(CUT, "a", max_tokens=4) == healthy.direct(CUT, "a", max_tokens=4)
    serving.until(lambda: not before & stubs())
    assert len(before) == len(stubs()) == 1


def test_it_stops_without_a_trace_and_says_why_it_did_not_start(workdir: Path) -> None:
    repo = Path("engines/triton").resolve()
    wheel = serving.triton()
    ship.ship(serving.project(workdir, ("base",)), repo)
    log = workdir / "server.log"
    with Server(wheel, repo, [f"{BASE}_generate"], Ports(0, 0, 0), log) as server:
        assert server.is_running() and server.is_healthy()
        folder, prefix, port = server.folder, server.shm_prefix, server.ports.http
        assert list(Path("/dev/shm").glob(f"{prefix}*"))
    assert not server.is_running() and not server.is_healthy()
    assert not folder.exists() and not list(Path("/dev/shm").glob(f"{prefix}*"))
    assert not serving.stubs(str(repo)) and log.stat().st_size
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    (repo / f"{BASE}_generate" / "1" / "artefact.json").write_text("{}")
    with (
        pytest.raises(
            Failed, match=r"ended with 1 before it was ready: .*is not as `pipeline ship` writes it"
        ),
        Server(wheel, repo, [f"{BASE}_generate"], Ports(0, 0, 0)),
    ):
        pass
