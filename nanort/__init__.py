"""nanort schedules the inside of one GPU: operators with stated demands overlap on SM partitions and copy engines."""

from nanort.costs.profile import Profile
from nanort.costs.table import demand_table
from nanort.demand import Demand
from nanort.devices import Device, device
from nanort.errors import NanortError
from nanort.graph import Graph
from nanort.layout import Layout, Segment
from nanort.nanobatch import nano_batch
from nanort.nodes import Node
from nanort.operators import Op, op
from nanort.programs.lower import lower
from nanort.programs.program import Program
from nanort.runtime.executor import Executor
from nanort.runtime.profiler import profile
from nanort.runtime.stopwatch import Stopwatch
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.timeline.events import Timeline
from nanort.values import Value

__version__ = "0.1.0"
__all__ = [
    "Demand",
    "Device",
    "Executor",
    "Graph",
    "Layout",
    "NanortError",
    "Node",
    "Op",
    "Profile",
    "Program",
    "Schedule",
    "Segment",
    "Stopwatch",
    "Timeline",
    "Value",
    "co_schedule",
    "demand_table",
    "device",
    "lower",
    "nano_batch",
    "op",
    "profile",
]
