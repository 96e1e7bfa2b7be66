"""CudaErrors: what a failed call of CUDA means, as one of our errors."""

from __future__ import annotations

from typing import Any

from nanort.errors import DeviceMemoryError, DriverError, NanortError

STICKY = (
    "ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "CONTAINED", "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "ASSERT",
    "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC",
    "LAUNCH_FAILED", "TENSOR_MEMORY_LEAK", "EXTERNAL_DEVICE", "UNKNOWN",
)  # fmt: skip
"""Results (CUDA_ERROR_...) after which every call of the process fails alike."""

ADVICE = {
    "OUT_OF_MEMORY": "free memory, or plan with a smaller budget",
    "NOT_SUPPORTED": "this GPU or driver cannot do it",
    "INVALID_RESOURCE_CONFIGURATION": "take groups of one split, each once",
    "STREAM_CAPTURE_UNSUPPORTED": "it cannot be captured: run it with capture=False",
    "STREAM_CAPTURE_INVALIDATED": "something before it could not be captured: run it with capture=False",
    "STREAM_CAPTURE_UNJOINED": "let the stream that is captured wait for all others",
}

MARKS = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
"""How torch and Triton begin the RuntimeErrors that stand for a result of CUDA."""


class CudaErrors:
    """Makes errors from results, by the names and texts that ``cu``, cuda.bindings.driver, has for them."""

    def __init__(self, cu: Any) -> None:
        self._cu = cu
        self._sticky = {int(getattr(cu.CUresult, f"CUDA_ERROR_{name}")) for name in STICKY}
        self._no_memory = int(cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY)

    def of_result(self, call: str, code: int) -> NanortError:
        """What to raise when ``call`` gave this result: a DriverError, sticky or not, or a DeviceMemoryError."""
        return self._error(call, code, f"{self._name(code)}, {self._text(code)}")

    def of_torch(self, call: str, error: RuntimeError) -> NanortError | None:
        """The same for an error of torch or Triton; None if it has nothing to do with CUDA."""
        if not any(mark in str(error) for mark in MARKS):
            return None
        return self._error(call, self._code(error), str(error).splitlines()[0])

    def _error(self, call: str, code: int, reason: str) -> NanortError:
        if code in self._sticky:
            return DriverError(f"{call} failed: {reason}: start the process again", call=call, sticky=True)
        advice = ADVICE.get(self._name(code).removeprefix("CUDA_ERROR_"))
        message = f"{call} failed: {reason}{f': {advice}' if advice else ''}"
        return DeviceMemoryError(message) if code == self._no_memory else DriverError(message, call=call)

    def _code(self, error: RuntimeError) -> int:
        """The result that it stands for, 0 if that matters to nobody."""
        if isinstance(code := getattr(error, "error_code", None), int):  # torch.AcceleratorError
            return code
        return next((code for code in (*self._sticky, self._no_memory) if self._text(code) in str(error)), 0)

    def _name(self, code: int) -> str:
        return self._told(self._cu.cuGetErrorName, code)

    def _text(self, code: int) -> str:
        return self._told(self._cu.cuGetErrorString, code)

    def _told(self, asked: Any, code: int) -> str:
        if code not in self._cu.CUresult.__members__.values():
            return f"result {code}"
        _, text = asked(self._cu.CUresult(code))
        return str(text.decode())
