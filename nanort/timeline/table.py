"""A timeline as a table, one row an activity: for pandas, CSV and Parquet."""

from __future__ import annotations

import csv
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from nanort.drafts import draft
from nanort.errors import BackendError
from nanort.printable import printable
from nanort.timeline.flat import NEVER

if TYPE_CHECKING:
    import pandas as pd

    from nanort.timeline.events import Timeline

Column = tuple[type, list[Any]]
FIELDS: dict[str, type] = {
    **dict.fromkeys(("name", "operator", "stream", "group"), str),
    "sms": int,
    **dict.fromkeys(("flops", "hbm_bytes", "h2d_bytes", "d2h_bytes"), float),
    **dict.fromkeys(("bound", "shapes", "kernel"), str),
    "piece": int,
    "where": str,
}
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that a spreadsheet computes; the wide signs too."""


def columns(timeline: Timeline) -> dict[str, Column]:
    """All that is known of every activity: the type of each column, and its values, None where there is none.

    The fields of :class:`nanort.timeline.activities.Activity`, ``scope``, ``needs`` and ``waits`` as JSON; then
    ``alone_seconds``, and ``start``, ``end`` and ``duration``, each as ``_ns`` and as ``_seconds``.
    """
    activities, flat = timeline.activities, timeline.flat
    table = {name: (kind, [kind(getattr(a, name)) for a in activities]) for name, kind in FIELDS.items()}
    table["scope"] = (str, [json.dumps(dict(a.scope), default=str) for a in activities])
    table["needs"] = (str, [json.dumps(a.needs) for a in activities])
    table["waits"] = (str, [json.dumps(a.waits) for a in activities])
    for name, (kind, values) in table.items():
        if kind is str:
            table[name] = (str, [value.encode("utf-8", "backslashreplace").decode("utf-8") for value in values])
    table["alone_seconds"] = (float, [a.alone for a in activities])
    lasted = np.where(flat.ended, flat.lasted_ns, NEVER)
    for name, nanoseconds in (("start", flat.start), ("end", flat.end), ("duration", lasted)):
        whole = [None if ns == NEVER else ns for ns in nanoseconds.tolist()]
        table[f"{name}_ns"] = (int, whole)
        table[f"{name}_seconds"] = (float, [None if ns is None else ns / 1e9 for ns in whole])
    return table


def to_pandas(timeline: Timeline) -> pd.DataFrame:
    """The table as a DataFrame; its integers are nullable, so that they are whole where one is missing.

    Raises:
        BackendError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise BackendError(f"{error.name} is not installed: pip install 'nanort[tables]', or write CSV") from error
    kinds = {int: "Int64", float: "float64", str: "object"}
    return pd.DataFrame(
        {name: pd.Series(values, dtype=kinds[kind]) for name, (kind, values) in columns(timeline).items()}
    )


def to_parquet(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Writes the table to ``path`` as Parquet.

    Raises:
        BackendError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BackendError(f"{error.name} is not installed: pip install 'nanort[tables]', or write CSV") from error
    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    table = pyarrow.table(
        {name: pyarrow.array(values, kinds[kind]) for name, (kind, values) in columns(timeline).items()}
    )
    with draft(path) as beside:
        parquet.write_table(table, beside)


def to_csv(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Writes the table to ``path`` as CSV in UTF-8.

    Text is of one line, what does not print in words, and never a formula: see :func:`cell`.
    """
    table = columns(timeline)
    shown = [map(cell, values) if kind is str else values for kind, values in table.values()]
    with draft(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*shown, strict=True))


def cell(text: str) -> str:
    """``text`` as a spreadsheet shows it without computing it: an apostrophe stands before what would be a formula.

    >>> cell("=1+1"), cell("layer0.q_proj")
    ("'=1+1", 'layer0.q_proj')
    """
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown
