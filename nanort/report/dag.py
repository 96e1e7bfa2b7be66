"""The graph behind a timeline, laid out for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanort.errors import GraphError
from nanort.layered import LARGEST, layered

if TYPE_CHECKING:
    from nanort.timeline.events import Timeline


def layout(timeline: Timeline) -> dict[str, Any] | None:
    """Places of the activities as nodes of a DAG, and its edges; None where there is none that a person could read.

    That is so above 2,000 activities, where the needs of one of them are not known, or where they go round in a ring.
    """
    preds = [activity.needs for activity in timeline.activities if activity.needs is not None]
    if not len(timeline) == len(preds) <= LARGEST:
        return None
    try:
        places = layered(preds)
    except GraphError:
        return None
    return {"x": places.x, "y": places.y, "edges": places.edges}
