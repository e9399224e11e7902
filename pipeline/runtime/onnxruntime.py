"""A graph in ONNX Runtime: on the CPU by default, on CUDA when that is named."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort

from pipeline.runtime import cache_graphs, device_memory, ort_placement, tensorrt_library
from pipeline.runtime.cache import Cache
from pipeline.runtime.ort_cache import CacheSurgeon, OrtCache, run_bound, uploaded
from pipeline.runtime.runner import Array, Limits, Pass, Runner, TensorInfo
from pipeline.types import UserError, first_line

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    # By default the arena doubles when it grows: a 7B model would reserve half a GPU that it never uses.
    # TF32 is on by default there: of fp32's 23 bits its products read 10, and the graph says fp32.
    "cuda": {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"},
}


_PRODUCTS = "session.qdq_matmulnbits_accuracy_level"
"""How exact products with quantised weights are on the CPU: "4", ONNX Runtime's own default, rounds
activations to 8 bits (0.7 % of a product; int4 takes a third of the time then, int8 a fiftieth), "1" computes
in fp32."""


class OnnxRunner(Runner):
    """A graph in an ONNX Runtime session. On a GPU its caches stay there.

    On the CPU numpy holds them: it joins rows twice as fast, and a bound step gains nothing (docs/notes.md).
    ONNX Runtime's CPU attention computes all S·T scores, the masked ones too: 1000 tokens in pieces of 256
    take 6 % less time than at once.

    Args:
        path: the artefact.
        session: it, loaded.

    Attributes:
        keeps_values: caches are ONNX Runtime's own tensors, bound from step to step.
    """

    piece = 256

    def __init__(self, path: Path, session: ort.InferenceSession) -> None:
        self.path = path
        self.session = session
        self.device = "cuda" if PROVIDERS["cuda"] in session.get_providers() else "cpu"
        self.inputs = {
            i.name: TensorInfo(np.dtype(_DTYPES[i.type]), tuple(i.shape)) for i in session.get_inputs()
        }
        self.outputs = {
            o.name: TensorInfo(np.dtype(_DTYPES[o.type]), tuple(o.shape)) for o in session.get_outputs()
        }
        # A static cache is for engines: here it is checked, widened and cut on the host in every step.
        self.keeps_values = self.device != "cpu" and self.max_tokens is None
        if self.max_tokens is not None:
            self.limits = Limits(new=self.max_tokens, past=self.max_tokens - 1)

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        """Runs the graph on just its inputs; `wanted` names the outputs, all by default."""
        names = wanted or list(self.outputs)
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))

    def cache_of(self, arrays: Mapping[str, Array], rows: int, tokens: int) -> Cache:
        """As `Runner.cache_of`, on the session's device."""
        if not self.keeps_values:
            return super().cache_of(arrays, rows, tokens)
        values = {name: uploaded(array, self.device) for name, array in arrays.items()}
        return OrtCache(values, rows, tokens, self._surgeon)

    def close(self) -> None:
        """Frees the session."""
        del self.session

    @property
    def on_host(self) -> dict[str, int] | None:
        """Operator → nodes that run on the CPU though the session is on CUDA; None on the CPU."""
        return None if self.device == "cpu" else ort_placement.nodes_on(self.session, PROVIDERS["cpu"])

    @cached_property
    def _surgeon(self) -> CacheSurgeon:
        dtypes = {name: dtype for name, (_, _, dtype) in self.cache_shapes().items()}
        # One thread: copies are bound by memory, and a pool of threads would stand beside the session's.
        return CacheSurgeon(
            dtypes, self.cache_bytes, self.device, lambda graph: _session(graph, _options(1), self.device)
        )

    def _run(self, one: Pass, keep_cache: bool) -> tuple[dict[str, Array], Cache | None]:
        if not self.keeps_values:
            return super()._run(one, keep_cache)
        assert isinstance(one.cache, OrtCache), "a cache stays with the runner that made it"
        presents = self._presents() if keep_cache else {}
        logits = {name: "cpu" for name in self.outputs if name.split(".")[0] == "logits"}
        wanted = logits | dict.fromkeys(presents, self.device)
        values = run_bound(self.session, one.feeds, one.cache.values, wanted)
        arrays = {name: values[name].numpy() for name in logits}
        if not keep_cache:
            return arrays, None
        after = {past: values[name] for name, past in presents.items()}
        return arrays, OrtCache(after, one.rows, one.tokens, self._surgeon)


def open_session(
    model: Path | bytes,
    folder: Path,
    threads: int = 0,
    provider: str = "cpu",
    fold: bool = True,
    exact: bool = False,
) -> ort.InferenceSession:
    """A session for a graph file, or for a graph in memory whose weights lie in `folder`.

    Args:
        model: the file, or the serialised graph.
        folder: of the weights.
        threads: of one operator; 0 is one a core.
        provider: 'cpu' or 'cuda'.
        fold: whether what depends on constants alone is computed now, and not in every run.
        exact: compute products with quantised weights in the activations' precision, and not in 8 bits.

    Raises:
        UserError: ONNX Runtime refuses the graph, or lacks the provider.
    """
    if reason := refusal(provider):
        raise UserError(reason)
    options = _options(threads)
    options.add_session_config_entry(*ort_placement.RECORD)
    options.add_session_config_entry(_PRODUCTS, "1" if exact else "4")
    if isinstance(model, bytes):
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
    try:
        session = _session(model if isinstance(model, bytes) else str(model), options, provider, fold)
    except Exception as error:  # onnxruntime's own exceptions share no other base class
        name = model if isinstance(model, Path) else "the graph"
        raise UserError(f"ONNX Runtime refuses {name}: {first_line(error)}") from error
    if PROVIDERS[provider] not in session.get_providers():
        raise UserError(f"ONNX Runtime left the {provider} provider out: {_why_left_out()}")
    return session


def refusal(provider: str) -> str | None:
    """Why a provider cannot run graphs here; None where it can.

    ONNX Runtime itself says nothing, and runs on the CPU, where a library of CUDA's is missing. So a graph of
    one node is opened first, before gigabytes of weights are read.

    Args:
        provider: 'cpu' or 'cuda'.
    """
    if PROVIDERS[provider] not in ort.get_available_providers():
        return f"this onnxruntime has no {provider} provider; `pipeline doctor` says what is here"
    if provider == "cpu":
        return None
    if tensorrt_library.gpu_target() is None:
        return f"the {provider} provider needs an NVIDIA GPU and its driver, and none is seen here"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; some of it is optional
        ort.preload_dlls()
    try:
        session = _session(cache_graphs.graph("join", [np.dtype(np.float32)]), _options(1), provider)
    except Exception as error:  # noqa: BLE001 - as in open_session
        return f"the {provider} provider does not start: {first_line(error)}"
    if PROVIDERS[provider] in session.get_providers():
        return None
    return f"the {provider} provider does not load: {_why_left_out()}"


def _why_left_out() -> str:
    """What the dynamic linker says to the CUDA provider's library, and what brings those that it needs."""
    mend = "`pip install 'onnxruntime-gpu[cuda,cudnn]'` brings CUDA's libraries"
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return f"{first_line(error)}; {mend}"
    return f"its library loads, and ONNX Runtime gives no reason; {mend}"


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads that spin after a run would hold the cores while another session is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _limit(provider: str) -> dict[str, str]:
    """The arena's limit, if there is one. What CUDA and cuBLAS take for themselves is not in it."""
    limit = device_memory.bound() if provider == "cuda" else None
    return {} if limit is None else {"gpu_mem_limit": str(limit)}


def _session(
    model: bytes | str, options: ort.SessionOptions, provider: str, fold: bool = True
) -> ort.InferenceSession:
    """A session on a provider; one that fails raises, where onnxruntime would print it and take the CPU."""
    providers = [(PROVIDERS[provider], _OPTIONS[provider] | _limit(provider))]
    left_out = [] if fold else ["ConstantFolding"]
    return ort.InferenceSession(
        model, options, providers=providers, enable_fallback=0, disabled_optimizers=left_out
    )
