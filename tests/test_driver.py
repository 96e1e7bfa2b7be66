"""CudaDriver asks CUDA what it should, and says what fails; its bindings and torch's streams are stand-ins here."""

from __future__ import annotations

import ctypes
import enum
import inspect
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fake_driver import FakeDriver
from nanort import driver as drivers
from nanort.driver import Driver
from nanort.driver import cuda as cuda_driver
from nanort.driver import facts as gpu
from nanort.driver import failures as cuda_errors
from nanort.driver.cuda import CudaDriver
from nanort.errors import BackendError, DeviceMemoryError, DriverError

try:
    import cuda.bindings.driver as REAL
except ImportError:
    REAL = None

RESULTS = {
    "SUCCESS": 0, "INVALID_VALUE": 1, "OUT_OF_MEMORY": 2, "INVALID_CONTEXT": 201, "ECC_UNCORRECTABLE": 214,
    "NVLINK_UNCORRECTABLE": 220, "CONTAINED": 226, "NOT_READY": 600, "ILLEGAL_ADDRESS": 700, "LAUNCH_TIMEOUT": 702,
    "ASSERT": 710, "HARDWARE_STACK_ERROR": 714, "ILLEGAL_INSTRUCTION": 715, "MISALIGNED_ADDRESS": 716,
    "INVALID_ADDRESS_SPACE": 717, "INVALID_PC": 718, "LAUNCH_FAILED": 719, "TENSOR_MEMORY_LEAK": 721,
    "NOT_SUPPORTED": 801, "STREAM_CAPTURE_UNSUPPORTED": 900, "STREAM_CAPTURE_INVALIDATED": 901,
    "STREAM_CAPTURE_UNJOINED": 904, "EXTERNAL_DEVICE": 911, "INVALID_RESOURCE_CONFIGURATION": 915, "UNKNOWN": 999,
}  # fmt: skip
CUresult = enum.IntEnum(
    "CUresult", {f"CUDA_{'' if value == 0 else 'ERROR_'}{n}": value for n, value in RESULTS.items()}
)
TEXTS = {2: "out of memory", 700: "an illegal memory access was encountered", 999: "unknown error"}

METHODS = sorted(name for name, value in vars(Driver).items() if inspect.isfunction(value) and not name.startswith("_"))


def sms(number: int, alignment: int = 8) -> SimpleNamespace:
    return SimpleNamespace(sm=SimpleNamespace(smCount=number, minSmPartitionSize=8, smCoscheduledAlignment=alignment))


class Bindings(ModuleType):
    """Stands in for cuda.bindings.driver: records calls, and answers as CUDA does, or with a result of ``failing``."""

    CUresult = CUresult
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread_local")
    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM="sm")
    CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT="engines")

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, int] = {}
        self.answers: dict[str, tuple[Any, ...]] = {
            "cuCtxGetCurrent": ("context",),
            "cuCtxGetDevice": (0,),
            "cuDriverGetVersion": (13000,),
            "cuDeviceGetAttribute": (3,),
            "cuDeviceGetDevResource": (sms(132),),
            "cuDevSmResourceSplitByCount": ([sms(8) for _ in range(16)], 16, sms(4)),
            "cuDevResourceGenerateDesc": ("description",),
            "cuGreenCtxCreate": (100,),
            "cuGreenCtxGetDevResource": (sms(24),),
            "cuGreenCtxStreamCreate": (200,),
            "cuStreamCreate": (201,),
            "cuEventCreate": (300,),
            "cuEventElapsedTime": (2.5,),
            "cuLibraryLoadData": ("library",),
            "cuLibraryGetKernel": (400,),
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self.call(name, *arguments)

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append((name, *arguments))
        if name in self.failing:
            return (CUresult(self.failing[name]),)
        return (CUresult(0), *self.answers.get(name, ()))

    def cuGetErrorName(self, result: CUresult) -> tuple[int, bytes]:  # noqa: N802  # CUDA's name
        return 0, result.name.encode()

    def cuGetErrorString(self, result: CUresult) -> tuple[int, bytes]:  # noqa: N802  # CUDA's name
        return 0, TEXTS.get(int(result), result.name.lower()).encode()


class Cuda:
    """Stands in for torch's side: which stream is current, and what graphs are told."""

    def __init__(self) -> None:
        self.current = 0
        self.calls: list[tuple[Any, ...]] = []
        self.error: RuntimeError | None = None

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.current = self.current, stream.cuda_stream
        try:
            yield
        finally:
            self.current = before

    def empty(self, size: int, **options: Any) -> torch.Tensor:
        self.told("empty", size, options)
        return torch.zeros(size, dtype=torch.uint8)

    def told(self, *call: Any) -> None:
        self.calls.append((self.current, *call))
        if self.error:
            raise self.error

    def graph(self) -> SimpleNamespace:
        names = ("capture_begin", "capture_end", "replay", "reset")
        return SimpleNamespace(**{n: lambda *a, n=n, **options: self.told(n, *options.values()) for n in names})


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    bindings = Bindings()
    package, parent = ModuleType("cuda"), ModuleType("cuda.bindings")
    package.bindings, parent.driver = parent, bindings  # type: ignore[attr-defined]  # made here
    for name, module in (("cuda", package), ("cuda.bindings", parent), ("cuda.bindings.driver", bindings)):
        monkeypatch.setitem(sys.modules, name, module)
    return bindings


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stand_in = Cuda()
    about = SimpleNamespace(name="H200", multi_processor_count=132, uuid="1-2")
    for name, value in {
        "init": lambda: stand_in.told("init"),
        "synchronize": lambda: stand_in.told("synchronize"),
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": lambda index: about,
        "ExternalStream": lambda handle, device: SimpleNamespace(cuda_stream=handle, device=device),
        "current_stream": lambda index: SimpleNamespace(cuda_stream=stand_in.current),
        "stream": stand_in.stream,
        "CUDAGraph": stand_in.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return stand_in


@pytest.fixture
def driver(cu: Bindings, cuda: Cuda) -> CudaDriver:
    made = CudaDriver()
    assert cuda.calls == [(0, "init"), (0, "synchronize")], "the primary context, before anything is asked of it"
    assert [name for name, *_ in cu.calls] == ["cuCtxGetCurrent", "cuCtxGetDevice"]
    cu.calls.clear()
    cuda.calls.clear()
    return made


def use(driver: CudaDriver) -> None:
    """Calls every method that asks the bindings for something."""
    driver.facts()
    driver.resource()
    driver.split(8)
    context = driver.create_context((0, 2, 5))
    driver.granted(context)
    confined, free = driver.create_stream(context), driver.create_stream()
    event = driver.create_event()
    driver.create_event(timed=True)
    driver.record(event, confined)
    driver.record(event, confined, external=True)
    driver.wait(free, event)
    driver.happened(event)
    driver.synchronize(event)
    driver.seconds(event, event)
    driver.copy(free, torch.zeros(2), torch.ones(2))
    driver.probe(confined, torch.zeros(264, dtype=torch.int32))
    driver.destroy_event(event)
    driver.destroy_stream(confined)
    driver.destroy_stream(free)
    driver.destroy_context(context)


@pytest.mark.parametrize("method", METHODS)
def test_drivers_have_the_methods_of_the_protocol(method: str) -> None:
    asked = inspect.signature(getattr(Driver, method))
    assert inspect.signature(getattr(CudaDriver, method)) == asked
    assert inspect.signature(getattr(FakeDriver, method)) == asked


def test_every_call_in_order(driver: CudaDriver, cu: Bindings) -> None:
    use(driver)
    groups = cu.answers["cuDevSmResourceSplitByCount"][0]
    calls = [call for call in cu.calls if call[0] not in ("cuMemcpyAsync", "cuLibraryLoadData", "cuLaunchKernel")]
    assert calls == [
        ("cuDriverGetVersion",),
        ("cuDeviceGetAttribute", "engines", 0),
        ("cuDeviceGetDevResource", 0, "sm"),
        ("cuDeviceGetDevResource", 0, "sm"),
        ("cuDevSmResourceSplitByCount", 16, sms(132), 0, 8),
        ("cuDevResourceGenerateDesc", [groups[0], groups[2], groups[5]], 3),
        ("cuGreenCtxCreate", "description", 0, 1),
        ("cuGreenCtxGetDevResource", 100, "sm"),
        ("cuGreenCtxStreamCreate", 100, 1, 0),
        ("cuStreamCreate", 1),
        ("cuEventCreate", 2),
        ("cuEventCreate", 0),
        ("cuEventRecordWithFlags", 300, 200, 0),
        ("cuEventRecordWithFlags", 300, 200, 1),
        ("cuStreamWaitEvent", 201, 300, 0),
        ("cuEventQuery", 300),
        ("cuEventSynchronize", 300),
        ("cuEventElapsedTime", 300, 300),
        ("cuLibraryGetKernel", "library", b"nanort_probe"),
        ("cuEventDestroy", 300),
        ("cuStreamDestroy", 200),
        ("cuStreamDestroy", 201),
        ("cuGreenCtxDestroy", 100),
    ]


@pytest.mark.skipif(REAL is None, reason="cuda-bindings is not installed: pip install 'nanort[cuda]'")
def test_installed_bindings_have_every_function_with_as_many_arguments(driver: CudaDriver, cu: Bindings) -> None:
    use(driver)
    others = ("cuCtxGetCurrent",), ("cuCtxGetDevice",), ("cuCtxSetCurrent", 0), ("cuGetErrorName", 0)
    for name, *arguments in (*cu.calls, *others, ("cuGetErrorString", 0)):
        head = getattr(REAL, name).__doc__.strip().splitlines()[0]  # Cython: "cuEventCreate(unsigned int Flags)"
        inside = re.sub(r"\[[^]]*\]+", "", head[head.index("(") + 1 : head.rindex(")")])
        assert len([argument for argument in inside.split(",") if argument]) == len(arguments), head


@pytest.mark.skipif(REAL is None, reason="cuda-bindings is not installed: pip install 'nanort[cuda]'")
def test_installed_bindings_have_the_same_numbers() -> None:
    assert {result.name: int(result) for result in CUresult}.items() <= REAL.CUresult.__members__.items()
    assert vars(sms(8).sm).keys() <= set(dir(REAL.CUdevResource().sm))
    assert REAL.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM == 1
    assert REAL.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT == 40
    assert REAL.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM == cuda_driver.DEFAULT_STREAM
    assert REAL.CUstream_flags.CU_STREAM_NON_BLOCKING == cuda_driver.NON_BLOCKING
    assert REAL.CUevent_flags.CU_EVENT_DISABLE_TIMING == cuda_driver.DISABLE_TIMING
    assert REAL.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL == cuda_driver.EXTERNAL


def test_answers_are_told_in_our_terms(driver: CudaDriver, cu: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(gpu, "clocks", lambda uuid: {uuid: 1.0})
    assert driver.facts() == ("H200", "580.65.06", "13.0", 132, 3)
    assert driver.clocks() == {"GPU-1-2": 1.0}
    assert driver.resource() == (132, 8, 8)
    assert driver.split(8) == (8,) * 16
    assert driver.granted(driver.create_context((0, 1, 2))) == 24
    assert driver.seconds(1, 2) == 0.0025
    assert driver.happened(1)
    cu.failing["cuEventQuery"] = 600
    assert not driver.happened(1)


def test_device_is_split_once(driver: CudaDriver) -> None:
    driver.split(8)
    with pytest.raises(DriverError, match="split already") as caught:
        driver.split(8)
    assert caught.value.call == "split"


def test_stream_0_is_the_one_that_torch_works_on(driver: CudaDriver, cu: Bindings, cuda: Cuda) -> None:
    cuda.current = 7
    driver.record(1, 0)
    driver.wait(0, 1)
    driver.launch(0, lambda: cuda.told("work"))
    assert cu.calls == [("cuEventRecordWithFlags", 1, 7, 0), ("cuStreamWaitEvent", 7, 1, 0)]
    assert cuda.calls == [(7, "work")]


def test_work_is_queued_on_its_stream_and_the_one_before_is_current_again(driver: CudaDriver, cuda: Cuda) -> None:
    stream = driver.create_stream()
    cuda.current = 7
    driver.launch(stream, lambda: cuda.told("work"))
    with pytest.raises(KeyError, match="mine"):
        driver.launch(stream, lambda: {}["mine"])
    assert cuda.calls == [(201, "work")]
    assert cuda.current == 7


def test_copy_needs_torch_only_where_bytes_do_not_follow_each_other(
    driver: CudaDriver, cu: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, target, source = driver.create_stream(), torch.zeros(2, 3), torch.ones(2, 3)
    driver.copy(stream, target, source)
    copied = ("cuMemcpyAsync", target.data_ptr(), source.data_ptr(), 24, stream)
    assert cu.calls == [("cuStreamCreate", 1), copied]
    driver.copy(stream, target.t(), source.t())
    assert target.tolist() == [[1, 1, 1]] * 2
    assert cu.calls[2:] == []


def test_memory_is_of_the_device_or_pinned(driver: CudaDriver, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", cuda.empty)
    with torch.inference_mode():
        assert not driver.allocate(4).is_inference()
    driver.allocate(5, host=True)
    assert cuda.calls == [
        (0, "empty", 4, {"dtype": torch.uint8, "device": "cuda:0"}),
        (0, "empty", 5, {"dtype": torch.uint8, "pin_memory": True}),
    ]


def test_graph_is_captured_and_replayed_on_its_streams(driver: CudaDriver, cu: Bindings, cuda: Cuda) -> None:
    one = driver.create_stream()
    cu.answers["cuStreamCreate"] = (202,)
    other = driver.create_stream()
    driver.begin_capture(one)
    graph = driver.end_capture(one)
    driver.launch_graph(graph, other)
    driver.destroy_graph(graph)
    assert cuda.calls == [(201, "capture_begin", "thread_local"), (201, "capture_end"), (202, "replay"), (0, "reset")]


def test_capture_that_fails_is_over(driver: CudaDriver, cuda: Cuda) -> None:
    stream = driver.create_stream()
    driver.begin_capture(stream)
    cuda.error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    with pytest.raises(DriverError, match="end_capture failed: CUDA error: operation failed"):
        driver.end_capture(stream)
    cuda.error = None
    driver.begin_capture(stream)
    driver.destroy_graph(driver.end_capture(stream))


def test_torch_ends_an_empty_capture_in_place_of_one_that_failed(
    driver: CudaDriver, cu: Bindings, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, told, ends = driver.create_stream(), cuda.told, count()

    def failing_once(*call: Any) -> None:
        told(*call)
        if call[0] == "capture_end" and not next(ends):
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(cuda, "told", failing_once)
    driver.begin_capture(stream)
    with pytest.raises(DriverError, match="end_capture failed"):
        driver.end_capture(stream)
    assert [name for _, name, *_ in cuda.calls] == ["capture_begin", "capture_end", "capture_end", "reset"]
    assert cu.calls[-1] == ("cuStreamBeginCapture", stream, "thread_local")


def test_results_are_found_by_attribute_since_newer_bindings_have_no_subscripts() -> None:
    results = SimpleNamespace(**{result.name: result for result in CUresult})
    assert cuda_errors.CudaErrors(SimpleNamespace(CUresult=results))


def test_probe_is_loaded_once_and_launched_on_the_stream(driver: CudaDriver, cu: Bindings) -> None:
    stream, seen = driver.create_stream(), torch.zeros(264, dtype=torch.int32)
    driver.probe(stream, seen)
    driver.probe(0, seen)
    names = [name for name, *_ in cu.calls]
    assert [names.count(name) for name in ("cuLibraryLoadData", "cuLibraryGetKernel", "cuLaunchKernel")] == [1, 1, 2]
    launch = ("cuLaunchKernel", 400, 264, 1, 1, 1024, 1, 1, 0, 201, ((seen.data_ptr(),), (ctypes.c_void_p,)), 0)
    assert launch in cu.calls
    assert cuda_driver.PROBE.endswith(b"\0")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_probe_is_a_kernel(arch: str, tmp_path: Path) -> None:
    if (ptxas := shutil.which("ptxas")) is None:
        pytest.skip("ptxas, NVIDIA's assembler, is not on the PATH")
    source = tmp_path / "probe.ptx"
    source.write_bytes(cuda_driver.PROBE.rstrip(b"\0"))
    subprocess.run([ptxas, f"-arch={arch}", "-o", tmp_path / "probe.cubin", source], check=True)
    assert (tmp_path / "probe.cubin").stat().st_size


def test_other_threads_work_in_the_same_context(driver: CudaDriver, cu: Bindings) -> None:
    thread = threading.Thread(target=lambda: [driver.create_event() for _ in range(2)])
    thread.start()
    thread.join()
    driver.create_event()
    assert cu.calls == [("cuCtxSetCurrent", "context"), *[("cuEventCreate", 2)] * 3]


NAMES = [
    "cuDriverGetVersion", "cuDeviceGetAttribute", "cuDevSmResourceSplitByCount", "cuDevResourceGenerateDesc",
    "cuGreenCtxCreate", "cuGreenCtxGetDevResource", "cuGreenCtxStreamCreate", "cuStreamCreate", "cuEventCreate",
    "cuEventRecordWithFlags", "cuStreamWaitEvent", "cuEventQuery", "cuEventSynchronize", "cuEventElapsedTime",
    "cuMemcpyAsync", "cuLibraryLoadData", "cuLibraryGetKernel", "cuLaunchKernel", "cuEventDestroy", "cuStreamDestroy",
    "cuGreenCtxDestroy",
]  # fmt: skip
"""Every function of the bindings that a CudaDriver calls as it works."""


def test_failures_are_tried_at_every_call(driver: CudaDriver, cu: Bindings) -> None:
    use(driver)
    assert {name for name, *_ in cu.calls} == {*NAMES, "cuDeviceGetDevResource"}


@pytest.mark.parametrize("name", NAMES)
def test_failure_names_the_call_and_the_result(driver: CudaDriver, cu: Bindings, name: str) -> None:
    cu.failing[name] = 1
    with pytest.raises(DriverError, match=f"{name} failed: CUDA_ERROR_INVALID_VALUE") as caught:
        use(driver)
    assert (caught.value.call, caught.value.sticky, driver.poisoned) == (name, False, "")


@pytest.mark.parametrize("name", cuda_errors.STICKY)
def test_sticky_failure_poisons_and_destroying_goes_on(driver: CudaDriver, cu: Bindings, cuda: Cuda, name: str) -> None:
    stream, event = driver.create_stream(), driver.create_event()
    driver.begin_capture(stream)
    graph = driver.end_capture(stream)
    for call in (*NAMES, "cuCtxGetCurrent"):
        cu.failing[call] = RESULTS[name]
    cuda.error = RuntimeError("CUDA error: it fails for ever")
    with pytest.raises(DriverError, match=f"cuEventQuery failed: CUDA_ERROR_{name}.*start the process again") as caught:
        driver.happened(event)
    assert caught.value.sticky
    assert driver.poisoned == str(caught.value)
    driver.destroy_graph(graph)
    driver.destroy_event(event)
    driver.destroy_stream(stream)
    driver.destroy_context(100)
    assert [call[0] for call in cu.calls[-3:]] == ["cuEventDestroy", "cuStreamDestroy", "cuGreenCtxDestroy"]


def test_failure_says_what_to_do(driver: CudaDriver, cu: Bindings) -> None:
    for name, advice in cuda_errors.ADVICE.items():
        cu.failing["cuStreamCreate"] = RESULTS[name]
        expected = DeviceMemoryError if name == "OUT_OF_MEMORY" else DriverError
        with pytest.raises(expected, match=f"cuStreamCreate failed: CUDA_ERROR_{name}, .*: {advice}"):
            driver.create_stream()


def test_no_green_contexts_is_no_failure_of_the_driver(
    driver: CudaDriver, cu: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(ask: Callable[[], object], message: str) -> None:
        with pytest.raises(BackendError, match=message) as caught:
            ask()
        assert not isinstance(caught.value, DriverError)

    cu.failing["cuDeviceGetDevResource"] = 801
    for ask in (driver.resource, lambda: driver.split(8)):
        refused(ask, "CUDA 13.0 or later .*CUDA_ERROR_NOT_SUPPORTED")
    cu.failing["cuDeviceGetDevResource"] = 700
    with pytest.raises(DriverError, match="ILLEGAL_ADDRESS"):
        driver.resource()
    cu.failing.clear()
    cu.answers["cuDeviceGetDevResource"] = (sms(132, alignment=0),)
    refused(driver.resource, "does not say")

    def missing(*arguments: object) -> None:
        raise RuntimeError('Function "cuDeviceGetDevResource" not found')

    monkeypatch.setattr(cu, "cuDeviceGetDevResource", missing, raising=False)
    refused(driver.resource, "not found: install a newer driver")


@pytest.mark.parametrize(
    ("error", "expected", "sticky"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), DeviceMemoryError, False),
        (RuntimeError("CUDA error: out of memory\nmore"), DeviceMemoryError, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), DriverError, True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), DriverError, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling"), DriverError, False),
    ],
)
def test_errors_of_torch_become_ours(
    driver: CudaDriver, cuda: Cuda, error: RuntimeError, expected: type[Exception], sticky: bool
) -> None:
    cuda.error = error
    with pytest.raises(expected, match=str(error).splitlines()[0].replace("[", r"\[")) as caught:
        driver.launch(0, lambda: cuda.told("work"))
    assert caught.value.__cause__ is error
    assert bool(driver.poisoned) == sticky == getattr(caught.value, "sticky", False)


def test_error_code_of_torch_is_believed_before_its_text(driver: CudaDriver, cuda: Cuda) -> None:
    cuda.error = RuntimeError("CUDA error: in other words")
    cuda.error.error_code = 719  # type: ignore[attr-defined]  # as torch.AcceleratorError has it
    with pytest.raises(DriverError, match="launch failed: CUDA error: in other words"):
        driver.launch(0, lambda: cuda.told("work"))
    assert driver.poisoned


@pytest.mark.parametrize("error", [RuntimeError("shapes differ on cuda:0"), DriverError("CUDA error: ours")])
def test_other_errors_stay_what_they_are(driver: CudaDriver, cuda: Cuda, error: RuntimeError) -> None:
    cuda.error = error
    with pytest.raises(RuntimeError) as caught:
        driver.launch(0, lambda: cuda.told("work"))
    assert caught.value is error


def test_current_is_made_once(cu: Bindings, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    drivers._driver.cache_clear()
    try:
        assert isinstance(drivers.current(), CudaDriver)
        assert drivers.current() is drivers.current()
    finally:
        drivers._driver.cache_clear()


def test_current_says_what_is_missing(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match="built without CUDA: install a CUDA build"):
        drivers.current()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="torch sees no GPU"):
        drivers.current()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"pip install 'nanort\[cuda\]'"):
        drivers.current()


class Nvml:
    """Stands in for NVML; a memory clock is not told."""

    def nvmlInit_v2(self) -> int:  # noqa: N802  # NVML's name
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:  # noqa: N802  # NVML's name
        text.value = b"580.65.06"
        return 0 if size >= 80 else 7

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802  # NVML's name
        return 0 if uuid == b"GPU-1" else 6

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, mhz: Any) -> int:  # noqa: N802  # NVML's name
        mhz._obj.value = 1980
        return 0 if kind == 1 else 3


def test_version_and_clocks_come_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Nvml:
        raise OSError(name)

    for library, version, clocks in ((lambda name: Nvml(), "580.65.06", {"sm": 1980.0}), (absent, "", {})):
        monkeypatch.setattr(ctypes, "CDLL", library)
        gpu._nvml.cache_clear()
        try:
            assert (gpu.driver_version(), gpu.clocks("GPU-1"), gpu.clocks("GPU-2")) == (version, clocks, {})
        finally:
            gpu._nvml.cache_clear()
