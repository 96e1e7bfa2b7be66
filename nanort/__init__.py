"""nanort schedules the inside of one GPU: operators with stated demands overlap on SM partitions and copy engines."""

from nanort.costs.profile import Profile
from nanort.costs.supposed import supposed_pairs
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
from nanort.scheduling.apart import Apart
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.policy import Dispatch, Greedy, Policy
from nanort.scheduling.problem import Mode, Problem, Solution, Task
from nanort.scheduling.replan import replan
from nanort.scheduling.schedule import Schedule
from nanort.scheduling.solving.solve import solve
from nanort.scheduling.structures import Structure
from nanort.scheduling.workload import Workload
from nanort.timeline.events import Timeline
from nanort.values import Value

__version__ = "0.1.0"
__all__ = [
    "Apart",
    "Demand",
    "Device",
    "Dispatch",
    "Executor",
    "Graph",
    "Greedy",
    "Layout",
    "Mode",
    "NanortError",
    "Node",
    "Op",
    "Policy",
    "Problem",
    "Profile",
    "Program",
    "Schedule",
    "Segment",
    "Solution",
    "Stopwatch",
    "Structure",
    "Task",
    "Timeline",
    "Value",
    "Workload",
    "co_schedule",
    "demand_table",
    "device",
    "lower",
    "nano_batch",
    "op",
    "profile",
    "replan",
    "solve",
    "supposed_pairs",
]
