"""What HolisticTraceAnalysis says of traces: hta_judge.py TRACE... prints a line of JSON for each, in nanoseconds.

Runs in an environment of its own, in which there is no nanort.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import Any

os.environ["HTA_DISABLE_NS_ROUNDING"] = "1"  # read at every use: times stay as they are written
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

from hta.trace_analysis import TraceAnalysis  # noqa: E402  # after the environment that it reads


def judge(path: str) -> dict[str, Any]:
    """Its breakdown, idle time and critical path."""
    analysis = TraceAnalysis(trace_files={0: path}, trace_dir="")
    frame = analysis.t.get_trace(0)
    (parts,) = analysis.get_temporal_breakdown(visualize=False).to_dict("records")
    kernels, _ = analysis.get_gpu_kernel_breakdown(visualize=False, include_memory_kernels=True)
    idle, _ = analysis.get_idle_time_breakdown(ranks=[0], visualize=False)
    graph, found = analysis.critical_path_analysis(0, "ProfilerStep", 0)
    on_path = frame.loc[sorted(graph.critical_path_events_set)]
    device = on_path[on_path["stream"] > 0]
    return {
        "idle": nanoseconds(parts["idle_time(us)"]),
        "compute": nanoseconds(parts["compute_time(us)"]),
        "whole": nanoseconds(parts["kernel_time(us)"]),
        "kinds": {row["kernel_type"]: nanoseconds(row["sum"]) for row in kernels.to_dict("records") if row["sum"]},
        "idle_of_stream": {
            str(stream): nanoseconds(total) for stream, total in idle.groupby("stream")["idle_time"].sum().items()
        },
        "idle_categories": sorted(set(idle["idle_category"])),
        "found": bool(found),
        "path": sorted(int(correlation) for correlation in device["correlation"]),
        "path_length": nanoseconds(sum(edge.weight for edge in graph.critical_path_edges_set)),
    }


def nanoseconds(microseconds: float) -> int:
    """Whole nanoseconds."""
    return round(microseconds * 1e3)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(json.dumps(judge(path)), flush=True)
