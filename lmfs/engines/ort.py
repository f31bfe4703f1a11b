"""ONNX Runtime as an engine: a step graph for decoding, a sequence graph for encoding.

Owns: sessions, the buffers bound to them, and the choice of lowering. A state belongs to
one caller at a time; the engine itself may be shared by threads. Start none before a fork.

CPU: the uint8 x int8 lowering. CUDA: the float32 one (MatMulInteger takes other types
there); not yet measured on a GPU.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, ModelError
from ..models.package import ModelPackage
from ..native import TokenDecoder, TokenEncoder

try:
    import onnxruntime

    from ..models import certificate
except ImportError as error:
    raise EngineError(
        "cannot run models",
        expected="onnxruntime and onnx",
        got=error,
        do="install lmfs[cpu] or lmfs[gpu]",
    ) from error

if TYPE_CHECKING:
    from typing_extensions import Buffer

Provider = str | tuple[str, dict[str, Any]]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NEXT = ".next"


@dataclasses.dataclass
class _Binding:
    """A step from one set of state buffers to another."""

    io: Any
    state: dict[str, NDArray[Any]]


class LaneState:
    """The recurrent state of some lanes, in two sets of buffers that a step alternates."""

    def __init__(self, engine: OrtEngine, arrays: dict[str, NDArray[Any]]) -> None:
        self.lanes = len(next(iter(arrays.values())))
        self.arrays = arrays
        self._engine = engine
        self._bindings: list[_Binding] | None = None
        self.tokens = np.zeros(self.lanes, np.int64)
        self.logits = np.zeros((0, 0), np.int16)

    def advance(self, tokens: NDArray[np.int64]) -> NDArray[np.int16]:
        """One step; the logits stay valid until the next one."""
        if self._bindings is None:
            self._bindings = self._bind()
        self.tokens[:] = tokens
        self._bindings[0].io.synchronize_inputs()
        self._engine.step_session.run_with_iobinding(self._bindings[0].io)
        self._bindings.reverse()
        self.arrays = self._bindings[0].state
        return self.logits

    def _bind(self) -> list[_Binding]:
        other = {name: np.empty_like(array) for name, array in self.arrays.items()}
        self.logits = np.empty((self.lanes, self._engine.vocab), np.int16)
        sets = [self.arrays, other]
        bindings = []
        for before, after in (sets, sets[::-1]):
            io = self._engine.step_session.io_binding()
            io.bind_ortvalue_input("tokens", _shared(self.tokens))
            io.bind_ortvalue_output("logits", _shared(self.logits))
            for name in before:
                io.bind_ortvalue_input(name, _shared(before[name]))
                io.bind_ortvalue_output(name + NEXT, _shared(after[name]))
            bindings.append(_Binding(io, before))
        return bindings


def _shared(array: NDArray[Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


class OrtEngine:
    """One model in ONNX Runtime; raises ModelError unless its graphs are proved exact."""

    def __init__(
        self,
        package: ModelPackage,
        *,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        lowering_step: str | None = None,
        lowering_sequence: str | None = None,
    ) -> None:
        """threads: of the processor, all that this process may use if None."""
        self.package = package
        self.providers = list(providers) if providers is not None else default_providers()
        self.threads = threads or len(os.sched_getaffinity(0))
        on_gpu = any(name_of(p) != CPU for p in self.providers)
        kind = "float32" if on_gpu else "uint8"
        self._sessions: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._step = lowering_step or f"step-{kind}"
        self._sequence = lowering_sequence or f"sequence-{kind}"
        self.vocab = int(package.card["architecture"]["vocab"])
        self.lanes = 64 if on_gpu else 16

    @property
    def step_session(self) -> Any:
        return self._session(self._step)

    @property
    def sequence_session(self) -> Any:
        return self._session(self._sequence)

    def start(self, lanes: int, *, sequence: bool = False) -> LaneState:
        """Zeros: what every lane starts from, before `step` (or before `sequence`)."""
        arrays: dict[str, NDArray[Any]] = {}
        for value in self._session(self._sequence if sequence else self._step).get_inputs():
            if value.name == "tokens":
                continue
            dtype = np.int64 if "int64" in value.type else np.float32
            arrays[value.name] = np.zeros((lanes, *value.shape[1:]), dtype)
        return LaneState(self, arrays)

    def step(
        self, state: LaneState, tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.int16], LaneState]:
        """tokens (lanes,) -> logits (lanes, vocab), valid until the next step; same state."""
        return state.advance(tokens), state

    def sequence(
        self, state: LaneState, tokens: NDArray[np.int64], *, alone: bool = False
    ) -> tuple[NDArray[np.int16], LaneState]:
        """tokens (lanes, time) -> logits (lanes, time, vocab), and the state after them."""
        names = list(state.arrays)
        outputs = self.sequence_session.run(
            ["logits", *(name + NEXT for name in names)], {"tokens": tokens, **state.arrays}
        )
        return outputs[0], LaneState(self, dict(zip(names, outputs[1:], strict=True)))

    def encode(
        self,
        state: LaneState,
        encoders: Sequence[TokenEncoder],
        inputs: Buffer,
        tokens: Buffer,
        *,
        alone: bool = False,
    ) -> LaneState:
        """A sequence of one chunk and its encoders; see lmfs.types.Engine."""
        logits, state = self.sequence(state, np.asarray(inputs).reshape(state.lanes, -1))
        in_turns = logits.transpose(1, 0, 2).reshape(-1, self.vocab)[: len(memoryview(tokens))]
        for encoder in encoders:
            encoder.push(in_turns, tokens)
        return state

    def decode(
        self,
        state: LaneState,
        decoders: Sequence[TokenDecoder],
        tokens: array[int],
        steps: int,
        *,
        alone: bool = False,
    ) -> LaneState:
        """Steps of all lanes and their decoders; see lmfs.types.Engine. A session's threads are
        its own: `alone` changes nothing."""
        for _ in range(steps):
            logits, state = self.step(state, np.asarray(tokens))
            end = 0
            for decoder in decoders:
                begin, end = end, end + decoder.strands
                tokens[begin:end] = array("q", decoder.step(logits[begin:end]).tolist())
            if not all(len(decoder.active) for decoder in decoders):
                break
        return state

    def join(self, states: Sequence[LaneState]) -> LaneState:
        names = states[0].arrays
        return LaneState(
            self, {name: np.concatenate([one.arrays[name] for one in states]) for name in names}
        )

    def select(self, state: LaneState, lanes: Buffer) -> LaneState:
        chosen = np.asarray(lanes)
        return LaneState(self, {name: of_all[chosen] for name, of_all in state.arrays.items()})

    def _session(self, lowering: str) -> Any:
        with self._loading:
            if lowering not in self._sessions:
                self._sessions[lowering] = self._load(lowering)
            return self._sessions[lowering]

    def _load(self, lowering: str) -> Any:
        model = self.package.graph(lowering)
        certificate.prove(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # What was proved is an ONNX model; the same bytes might be one of ORT's own format as well.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            return onnxruntime.InferenceSession(model, options, providers=self.providers)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                "ONNX Runtime refuses the model", where=self.package.path, got=error
            ) from error


def name_of(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def default_providers() -> list[Provider]:
    """CUDA where onnxruntime-gpu and a GPU are there, then the processor."""
    return cuda_providers() if CUDA in onnxruntime.get_available_providers() else [CPU]


def cuda_providers() -> list[Provider]:
    """CUDA, and the processor for what it cannot do; raises EngineError where there is no CUDA."""
    available = onnxruntime.get_available_providers()
    if CUDA not in available:
        raise EngineError(
            "no GPU to run models on", expected=CUDA, got=", ".join(available),
            do="install lmfs[gpu] on a machine with an NVIDIA GPU",
        )  # fmt: skip
    return [(CUDA, {"use_tf32": "0"}), CPU]
