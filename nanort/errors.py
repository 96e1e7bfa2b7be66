"""The one tree of errors: each says what was asked, what there is, and what to do.

NanortError
├── DemandError               a demand that is negative, NaN, infinite, or asks for no SMs at all
├── LayoutError               a layout that contradicts itself or the graph
├── DeviceError               a device name nobody knows, or figures that cannot be
│   └── CapacityError         more SMs, memory or groups than the device has
├── GraphError                a graph that cannot be built
│   ├── ForeignValueError     a value of another graph
│   ├── DuplicateNameError    a name used twice
│   ├── ShapeError            shapes or dtypes that an operator's reference refuses
│   ├── SealedGraphError      a graph that a verb has already read
│   └── SplitError            a batch that cannot be cut as asked
│       ├── BatchFlowError    an operator through which the batch cannot flow in pieces
│       └── SizesError        piece sizes that do not add up
├── InputError                tensors given to a run that do not fit the graph
│   ├── MissingInputError     an input, constant or state that was not given
│   ├── UnknownInputError     a name that the graph does not have
│   ├── InputShapeError       a tensor of a wrong shape
│   ├── InputDtypeError       a tensor of a wrong dtype
│   └── InputDeviceError      a tensor on a wrong device
├── CostError                 a profile that is broken, stale or of another device
├── ProblemError              a scheduling problem that cannot be solved as it is stated
├── ScheduleError             a schedule that breaks a constraint
│   └── PolicyError           a policy that answered something impossible
├── ProgramError              a program that is malformed or racy
├── ExecutionError            a node that failed at run time (its cause is chained)
│   ├── DeviceMemoryError     no device or pinned memory left for a node
│   ├── HangError             a node that did not end in the time given
│   ├── RecordError           a run that did other than its program says, as debug=True saw it
│   └── BackendError          a backend that is not there, or cannot run this schedule
│       ├── DriverError       a call that the driver refused
│       └── PoisonedError     a device that an earlier failure left unusable in this process
├── SimulationError           a simulation that cannot go on
├── TimelineError             a timeline whose times cannot be
├── InternalError             accounts of nanort's own that do not balance
├── FileError                 a file that cannot be used
│   ├── TruncatedFileError    a file that is cut short or is not what its name says
│   ├── ForeignFileError      a file that belongs to another graph or device
│   └── NewerVersionError     a file written by a newer nanort
└── ModelError                a model that cannot be served
    ├── UnsupportedModelError an architecture that is not supported
    ├── RequestError          a prompt or sampling parameter that cannot be served
    ├── CacheFullError        no pages left in the KV cache
    ├── OverloadedError       a queue that is full: ask again later
    ├── ClosedError           an engine that is closing, or has failed
    └── WeightsError          a checkpoint that does not fit the model
        ├── MissingWeightError  a tensor that is not in the checkpoint
        ├── WeightShapeError    a tensor of a wrong shape
        └── WeightDtypeError    a tensor of a wrong dtype
"""

from __future__ import annotations


class NanortError(Exception):
    """Anything that nanort refuses; catch this to catch them all."""


class DemandError(NanortError, ValueError):
    """A demand that is negative, NaN, infinite, or asks for no SMs at all."""


class LayoutError(NanortError, ValueError):
    """A layout that contradicts itself or the graph."""


class DeviceError(NanortError, ValueError):
    """A device name nobody knows, or figures that cannot be."""


class CapacityError(DeviceError):
    """More SMs, memory or groups than the device has."""


class GraphError(NanortError, ValueError):
    """A graph that cannot be built."""


class ForeignValueError(GraphError):
    """A value of another graph."""


class DuplicateNameError(GraphError):
    """A name used twice."""


class ShapeError(GraphError):
    """Shapes or dtypes that an operator's reference refuses."""


class SealedGraphError(GraphError):
    """A graph that a verb has already read; it can no longer grow."""


class SplitError(GraphError):
    """A batch that cannot be cut as asked."""


class BatchFlowError(SplitError):
    """An operator through which the batch cannot flow in pieces."""


class SizesError(SplitError):
    """Piece sizes that do not add up."""


class InputError(NanortError, ValueError):
    """Tensors given to a run that do not fit the graph."""


class MissingInputError(InputError):
    """An input, constant or state that was not given."""


class UnknownInputError(InputError):
    """A name that the graph does not have."""


class InputShapeError(InputError):
    """A tensor of a wrong shape."""


class InputDtypeError(InputError):
    """A tensor of a wrong dtype."""


class InputDeviceError(InputError):
    """A tensor on a wrong device."""


class CostError(NanortError, ValueError):
    """A profile that is broken, stale or of another device."""


class ProblemError(NanortError, ValueError):
    """A scheduling problem that cannot be solved as it is stated."""


class ScheduleError(NanortError):
    """A schedule that breaks a constraint."""


class PolicyError(ScheduleError):
    """A policy that answered something impossible."""


class ProgramError(NanortError):
    """A program that is malformed or racy."""


class ExecutionError(NanortError, RuntimeError):
    """A node that failed at run time; the cause is chained, ``node`` and ``where`` name it."""

    def __init__(self, message: str, *, node: str = "", where: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.where = where


class BackendError(ExecutionError):
    """A backend that is not there, or cannot run this schedule."""


class DeviceMemoryError(ExecutionError):
    """No device or pinned memory left for a node."""


class HangError(ExecutionError):
    """A node that did not end in the time given."""


class RecordError(ExecutionError):
    """A run that did other than its program says, as debug=True saw it."""


class DriverError(BackendError):
    """A call that the driver refused; ``sticky`` if it left the device unusable in this process."""

    def __init__(self, message: str, *, call: str = "", sticky: bool = False, node: str = "", where: str = "") -> None:
        super().__init__(message, node=node, where=where)
        self.call = call
        self.sticky = sticky


class PoisonedError(BackendError):
    """A device that an earlier failure left unusable in this process: start it again."""


class SimulationError(NanortError, RuntimeError):
    """A simulation that cannot go on."""


class TimelineError(NanortError, ValueError):
    """A timeline whose times cannot be."""


class InternalError(NanortError, AssertionError):
    """Accounts of our own that do not balance: a mistake of nanort's, please report it."""


class FileError(NanortError, ValueError):
    """A file that cannot be used."""


class TruncatedFileError(FileError):
    """A file that is cut short or is not what its name says."""


class ForeignFileError(FileError):
    """A file that belongs to another graph or device."""


class NewerVersionError(FileError):
    """A file written by a newer nanort."""


class ModelError(NanortError, ValueError):
    """A model that cannot be served."""


class UnsupportedModelError(ModelError):
    """An architecture that is not supported."""


class RequestError(ModelError):
    """A prompt or sampling parameter that cannot be served."""


class CacheFullError(ModelError):
    """No pages left in the KV cache."""


class OverloadedError(ModelError):
    """A queue of requests that is full: ask again later."""


class ClosedError(ModelError):
    """An engine that is closing, or has failed: nothing is served any more."""


class WeightsError(ModelError):
    """A checkpoint that does not fit the model."""


class MissingWeightError(WeightsError):
    """A tensor that is not in the checkpoint."""


class WeightShapeError(WeightsError):
    """A tensor of a wrong shape."""


class WeightDtypeError(WeightsError):
    """A tensor of a wrong dtype."""


# What a torch function raises when it refuses its arguments.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
