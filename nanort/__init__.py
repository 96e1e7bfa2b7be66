"""nanort schedules the inside of one GPU: operators with stated demands overlap on SM partitions and copy engines."""

from nanort.demand import Demand
from nanort.devices import Device, device
from nanort.graph import Graph
from nanort.layout import Layout, Segment
from nanort.nanobatch import nano_batch
from nanort.nodes import Node
from nanort.operators import Op, op
from nanort.values import Value

__version__ = "0.1.0"
__all__ = ["Demand", "Device", "Graph", "Layout", "Node", "Op", "Segment", "Value", "device", "nano_batch", "op"]
