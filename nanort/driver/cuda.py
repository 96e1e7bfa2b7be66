"""CudaDriver: the driver of a real GPU, through cuda.bindings and torch's streams, graphs and memory."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import count
from typing import Any, TypeVar

import torch

from nanort.clock import Clock, WallClock
from nanort.driver import facts as gpu
from nanort.driver.facts import Facts, Resource
from nanort.driver.failures import CudaErrors
from nanort.errors import BackendError, DeviceMemoryError, DriverError, NanortError

NON_BLOCKING = 1  # of a stream: not ordered with the default stream
DISABLE_TIMING = 2  # of an event: a record costs a tenth
EXTERNAL = 1  # of a record: a node of the graph that is captured
DEFAULT_STREAM = 1  # of a green context: required

PROBE = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry nanort_probe(.param .u64 seen)
{
    .reg .pred %p<3>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<8>;
    mov.u32 %r1, %smid;
    mov.u64 %rd1, %globaltimer;
    add.u64 %rd2, %rd1, 20000;
SPIN:
    mov.u64 %rd3, %globaltimer;
    setp.lt.u64 %p1, %rd3, %rd2;
    @%p1 bra SPIN;
    mov.u32 %r2, %tid.x;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra DONE;
    ld.param.u64 %rd4, [seen];
    cvta.to.global.u64 %rd5, %rd4;
    mov.u32 %r3, %ctaid.x;
    mul.wide.u32 %rd6, %r3, 4;
    add.u64 %rd7, %rd5, %rd6;
    st.global.u32 [%rd7], %r1;
DONE:
    ret;
}
\0"""
"""Each block writes the number of its SM, after 20 microseconds: too long for the others to wait for that SM."""
PROBE_THREADS = 1024  # two blocks fill an SM

T = TypeVar("T")


class _Here(threading.local):
    """Whether the device's context is current in this thread."""

    bound = False


class CudaDriver:
    """The driver of the GPU that torch works on; its methods are those of nanort.driver.Driver.

    Raises:
        BackendError: cuda-bindings is not installed.
    """

    runs_kernels = True

    def __init__(self) -> None:
        try:
            import cuda.bindings.driver as cu
        except ImportError as error:
            raise BackendError("the GPU is driven through cuda-bindings: pip install 'nanort[cuda]'") from error
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch does not type it
        torch.cuda.synchronize()  # makes the primary context, which green contexts and streams need
        self._index = torch.cuda.current_device()
        self.device = f"cuda:{self._index}"
        self.poisoned = ""
        self.time: Clock = WallClock()
        self._cu: Any = cu
        self._errors = CudaErrors(cu)
        self._not_ready = int(cu.CUresult.CUDA_ERROR_NOT_READY)
        self._sm_type = cu.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        self._here = _Here()
        self._here.bound = True
        self._context = self._do("cuCtxGetCurrent")
        self._gpu = self._do("cuCtxGetDevice")
        self._groups: list[Any] = []
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._captures: dict[int, torch.cuda.CUDAGraph] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._numbers = count(1)
        self._kernel = 0

    def facts(self) -> Facts:
        version = self._do("cuDriverGetVersion")
        engines = self._cu.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT
        about = torch.cuda.get_device_properties(self._index)
        return Facts(
            gpu=about.name,
            driver=gpu.driver_version(),
            cuda=f"{version // 1000}.{version % 1000 // 10}",
            sms=about.multi_processor_count,
            copy_engines=self._do("cuDeviceGetAttribute", engines, self._gpu),
        )

    def clocks(self) -> dict[str, float]:
        return gpu.clocks(f"GPU-{torch.cuda.get_device_properties(self._index).uuid}")

    # SMs and green contexts.

    def resource(self) -> Resource:
        sm = self._whole().sm
        return Resource(sm.smCount, sm.minSmPartitionSize, sm.smCoscheduledAlignment)

    def split(self, sms: int) -> tuple[int, ...]:
        if self._groups:
            raise DriverError("split: the device is split already: use those groups", call="split")
        whole = self._whole()
        groups, number, _ = self._do("cuDevSmResourceSplitByCount", whole.sm.smCount // sms, whole, 0, sms)
        self._groups = groups[:number]
        return tuple(group.sm.smCount for group in self._groups)

    def create_context(self, groups: Sequence[int]) -> int:
        resources = [self._groups[group] for group in groups]
        description = self._do("cuDevResourceGenerateDesc", resources, len(resources))
        return int(self._do("cuGreenCtxCreate", description, self._gpu, DEFAULT_STREAM))

    def granted(self, context: int) -> int:
        return int(self._do("cuGreenCtxGetDevResource", context, self._sm_type).sm.smCount)

    def destroy_context(self, context: int) -> None:
        self._end("cuGreenCtxDestroy", context)

    # Streams and events.

    def create_stream(self, context: int = 0) -> int:
        if context:
            stream = int(self._do("cuGreenCtxStreamCreate", context, NON_BLOCKING, 0))
        else:
            stream = int(self._do("cuStreamCreate", NON_BLOCKING))
        self._streams[stream] = torch.cuda.ExternalStream(  # type: ignore[no-untyped-call]  # torch does not type it
            stream, device=self.device
        )
        return stream

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]
        self._end("cuStreamDestroy", stream)

    def create_event(self, *, timed: bool = False) -> int:
        return int(self._do("cuEventCreate", 0 if timed else DISABLE_TIMING))

    def destroy_event(self, event: int) -> None:
        self._end("cuEventDestroy", event)

    def record(self, event: int, stream: int, *, external: bool = False) -> None:
        self._do("cuEventRecordWithFlags", event, self._raw(stream), EXTERNAL if external else 0)

    def wait(self, stream: int, event: int) -> None:
        self._do("cuStreamWaitEvent", self._raw(stream), event, 0)

    def happened(self, event: int) -> bool:
        return self._do("cuEventQuery", event, besides=self._not_ready) is None

    def synchronize(self, event: int) -> None:
        self._do("cuEventSynchronize", event)

    def seconds(self, first: int, second: int) -> float:
        return float(self._do("cuEventElapsedTime", first, second)) / 1e3

    # Work.

    def launch(self, stream: int, call: Callable[[], object]) -> None:
        self._torch("launch", call, stream)

    def copy(self, stream: int, target: torch.Tensor, source: torch.Tensor) -> None:
        # Not through torch where it can be: with pinned memory torch notes the stream, and asks it when that is freed,
        # which may be after the stream was destroyed.
        if target.is_contiguous() and source.is_contiguous():
            self._do("cuMemcpyAsync", target.data_ptr(), source.data_ptr(), source.nbytes, self._raw(stream))
        else:
            self._torch("copy", lambda: target.copy_(source, non_blocking=True), stream)

    def allocate(self, nbytes: int, *, host: bool = False) -> torch.Tensor:
        place = {"pin_memory": True} if host else {"device": self.device}
        with torch.inference_mode(False):  # a tensor of inference mode could not be written to outside of it
            return self._torch("allocate", lambda: torch.empty(nbytes, dtype=torch.uint8, **place))

    def probe(self, stream: int, seen: torch.Tensor) -> None:
        if not self._kernel:  # of a library, since a module's function would be tied to one context
            library = self._do("cuLibraryLoadData", PROBE, None, None, 0, None, None, 0)
            self._kernel = int(self._do("cuLibraryGetKernel", library, b"nanort_probe"))
        shape = (len(seen), 1, 1, PROBE_THREADS, 1, 1)
        arguments = ((seen.data_ptr(),), (ctypes.c_void_p,))
        self._do("cuLaunchKernel", self._kernel, *shape, 0, self._raw(stream), arguments, 0)

    # Graphs.

    def begin_capture(self, stream: int) -> None:
        graph = torch.cuda.CUDAGraph()
        self._torch("begin_capture", lambda: graph.capture_begin(capture_error_mode="thread_local"), stream)
        self._captures[stream] = graph

    def end_capture(self, stream: int) -> int:
        graph = self._captures.pop(stream)
        try:
            self._torch("end_capture", graph.capture_end, stream)
        except Exception:
            self._abandon(graph, stream)
            raise
        number = next(self._numbers)
        self._graphs[number] = graph
        return number

    def launch_graph(self, graph: int, stream: int) -> None:
        self._torch("launch_graph", self._graphs[graph].replay, stream)

    def destroy_graph(self, graph: int) -> None:
        reset = self._graphs.pop(graph).reset
        try:
            self._torch("destroy_graph", reset)
        except DriverError:
            if not self.poisoned:
                raise

    # How it is called, and how it fails.

    def _abandon(self, graph: torch.cuda.CUDAGraph, stream: int) -> None:
        """Lets torch end an empty capture in place of one that failed.

        Where the end fails, torch 2.11 leaves its random generator and its allocators capturing, for the whole process:
        no random number is drawn on the GPU any more, and memory of the capture is never freed.
        """
        mode = self._cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with suppress(NanortError, RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the graph is empty
            self._do("cuStreamBeginCapture", stream, mode)
            self._torch("end_capture", graph.capture_end, stream)
            graph.reset()

    def _whole(self) -> Any:
        """The resource of all SMs."""
        needed = "SM partitions need a driver of CUDA 13.0 or later (580) and a GPU with green contexts"
        try:
            whole = self._do("cuDeviceGetDevResource", self._gpu, self._sm_type)
        except DriverError as error:
            if error.sticky:
                raise
            raise BackendError(f"{needed}: {error}") from error
        if not whole.sm.smCoscheduledAlignment:
            raise BackendError(f"{needed}: this driver does not say how large groups may be")
        return whole

    def _raw(self, stream: int) -> int:
        return stream or int(torch.cuda.current_stream(self._index).cuda_stream)

    def _do(self, call: str, *arguments: Any, besides: int = 0) -> Any:
        """What a function of the driver answers: nothing, a value, or several; ``besides`` where that is its result."""
        if not self._here.bound:
            self._here.bound = True
            self._do("cuCtxSetCurrent", self._context)
        try:
            result, *values = getattr(self._cu, call)(*arguments)
        except RuntimeError as error:  # cuda-bindings: the installed driver lacks the function
            raise DriverError(f"{call}: {error}: install a newer driver", call=call) from error
        if result == 0:
            return values if len(values) > 1 else values[0] if values else None
        if besides and result == besides:
            return result
        raise self._failed(self._errors.of_result(call, int(result)))

    def _end(self, call: str, handle: int) -> None:
        """Destroys a handle; on a poisoned device a failure says nothing new."""
        try:
            self._do(call, handle)
        except DriverError:
            if not self.poisoned:
                raise

    def _torch(self, call: str, work: Callable[[], T], stream: int = 0) -> T:
        """What torch does with ``stream`` as its current one; its CUDA errors become ours."""
        where: AbstractContextManager[object] = torch.cuda.stream(self._streams[stream]) if stream else nullcontext()
        try:
            with where:
                return work()
        except NanortError:
            raise
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"{call}: {error}") from error
        except RuntimeError as error:
            if (ours := self._errors.of_torch(call, error)) is None:
                raise
            raise self._failed(ours) from error

    def _failed(self, error: NanortError) -> NanortError:
        if isinstance(error, DriverError) and error.sticky:
            self.poisoned = self.poisoned or str(error)
        return error
