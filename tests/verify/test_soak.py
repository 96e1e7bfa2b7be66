"""Half a minute of tests/soaking.py, of which twenty are too long for here: as many threads and files at every rest."""

from __future__ import annotations

import soaking


def test_threads_and_files_come_back_to_what_they_were() -> None:
    found = soaking.soak(30)
    print(found)
    assert len(found.held) == 1
    assert {"plans", "random placements", "requests answered 200", "requests left"} <= found.done.keys()
    assert found.growth < 200.0, "caches fill, of plans, of calls and the allocator's, but not like that"
