"""A timeline as one HTML file that answers questions, imported as nanort.report.

``report.write(executor.timeline, "run.html")`` writes it; it needs no network, and opens from the disk.
"""

from nanort.report.page import html, write

__all__ = ["html", "write"]
