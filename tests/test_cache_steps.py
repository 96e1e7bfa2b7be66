"""PagedKVCache under pipelined steps, against a model of memory: what each page and slot really holds, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import pytest

from nanort.errors import CacheFullError
from nanort.serving.kv_cache import Loads, PagedKVCache, Saves

GARBAGE = -1
"""What stands where nothing was written, or a step failed."""


@dataclass(eq=False)
class Work:
    """A request as an engine keeps it: ``known`` tokens on the host, ``launched`` of them computed or about to be."""

    prompt: list[int]
    total: int
    salt: int
    known: int = 0
    launched: int = 0
    state: str = "waiting"  # "running", "done" when all is known, "cancelled", "failed"
    starts: int = 0

    def token(self, position: int) -> int:
        """Its text: the prompt, and what it will generate."""
        if position < len(self.prompt):
            return self.prompt[position]
        return (self.salt * 31 + position * 7) % 3

    def text(self, stop: int) -> list[int]:
        return [self.token(position) for position in range(stop)]

    def content(self, position: int) -> int:
        """What keys and values of a position hold: something of all tokens up to it."""
        return hash(tuple(self.text(position + 1))) | 1


@dataclass
class Row:
    """Consecutive tokens of one request in a step, with the slots that were given to all of its tokens so far."""

    work: Work
    start: int
    stop: int
    slots: list[int]
    turn: int


@dataclass
class Step:
    """One batch in flight; ``carried`` is what the host had in the slots when it was launched."""

    rows: list[Row]
    loads: Loads
    saves: Saves
    carried: dict[int, list[int]] = field(default_factory=dict)


class Pipeline:
    """A small engine with random habits, and a device that does what it is told, as late as it may."""

    def __init__(self, random: Random, works: list[Work], pages: int, size: int, host: int) -> None:
        self.random, self.size = random, size
        self.cache = PagedKVCache(pages, size, host_pages=host)
        self.device = {page: [GARBAGE] * size for page in range(pages)}
        self.host = {slot: [GARBAGE] * size for slot in range(host)}
        self.waiting = deque(works)
        self.running: list[Work] = []
        self.flight: deque[Step] = deque()
        self.hits = self.loads = self.saves = self.preempted = self.failed = 0

    def turn(self, calm: bool = False) -> None:
        """Launches a step, then collects the one before; some turns cancel, preempt, or see a step fail."""
        random = self.random
        if not calm and self.running and random.random() < 0.1:
            self.leave(random.choice(self.running), "cancelled")
        while self.waiting and random.random() < 0.7 and self.admit(self.waiting[0]):
            self.running.append(self.waiting.popleft())
        rows = list(self.rows())
        rows = [row for row in rows if row.work in self.running]  # a later one may have preempted an earlier one
        step = Step(rows, self.cache.next_loads(random.randint(1, 3)), self.cache.next_saves(random.randint(1, 3)))
        launched = bool(step.rows or step.loads or step.saves)
        if launched:
            step.carried = {slot: list(self.host[slot]) for slot, _ in step.loads}
            self.flight.append(step)
            for row in step.rows:
                row.work.launched = row.stop
        if self.flight and (len(self.flight) > 1 or not launched or random.random() < 0.2):
            self.collect(failing=not calm and random.random() < 0.05)
        self.judge()

    def admit(self, work: Work) -> bool:
        if any(row.work is work for step in self.flight for row in step.rows):
            return False  # what is in flight would be published in its new pages
        length = work.known or len(work.prompt)
        try:
            work.launched = self.cache.admit(work, work.text(length), length + 1)
        except CacheFullError:
            return False
        assert work.launched < length, "a token is left to compute"
        work.known = max(length, work.known)
        work.state, work.starts = "running", work.starts + 1
        self.hits += work.launched
        return True

    def rows(self) -> Iterator[Row]:
        """What the running requests can do now; the first of them always may, at the cost of the last."""
        for work in list(self.running):
            if work not in self.running or not self.cache.ready(work):
                continue
            pending = any(row.work is work and row.stop >= work.known for step in self.flight for row in step.rows)
            most = min(work.known + pending, work.total)
            if work.launched >= most or self.random.random() < 0.1:
                continue
            stop = self.random.randint(work.launched + 1, most)
            while not self.reserve(work, stop):
                if self.running[-1] is work:
                    break
                self.leave(self.running[-1], "waiting", save=self.random.random() < 0.6)
            else:
                yield Row(work, work.launched, stop, self.cache.slots(work, 0, stop), work.starts)

    def reserve(self, work: Work, tokens: int) -> bool:
        try:
            self.cache.reserve(work, tokens)
        except CacheFullError:
            return False
        return True

    def leave(self, work: Work, state: str, save: bool = False) -> None:
        self.cache.release(work, save=save)
        self.running.remove(work)
        work.state = state
        if state == "waiting":
            self.waiting.appendleft(work)
            self.preempted += 1

    def collect(self, failing: bool) -> None:
        """The oldest step is carried out and seen by the host, or fails with garbage in all that it touched."""
        step = self.flight.popleft()
        self.refuse_races(step)
        self.execute(step, failing)
        if failing:
            self.failed += 1
            struck = {row.work for row in step.rows} | set(self.cache.lost(step.loads, step.saves))
            for work in [work for work in self.running if work in struck]:
                self.leave(work, "failed")
            for work in [work for work in self.waiting if work in struck]:  # preempted since
                self.waiting.remove(work)
                work.state = "failed"
            return
        self.cache.collected(step.loads, step.saves)
        self.loads, self.saves = self.loads + len(step.loads), self.saves + len(step.saves)
        for row in step.rows:
            work = row.work
            if row.stop >= work.known and work.state in ("running", "waiting"):
                work.known = min(row.stop + 1, work.total)
            if work.state != "running" or row.turn != work.starts:
                continue
            self.cache.publish(work, work.text(row.stop))
            if row.stop == work.total:
                self.leave(work, "done", save=self.random.random() < 0.5)

    def refuse_races(self, step: Step) -> None:
        """Inside a step nothing is ordered: what it moves, no row may write, and what it loads, none may read."""
        written = [slot for row in step.rows for slot in row.slots[row.start :]]
        read = {slot // self.size for row in step.rows for slot in row.slots}
        loaded, saved = [page for _, page in step.loads], [page for page, _ in step.saves]
        assert len(set(written)) == len(written), "two rows write one slot"
        assert len({*loaded, *saved}) == len(loaded) + len(saved), "a page moves twice"
        assert read.isdisjoint(loaded), "rows touch a page that is being loaded"
        assert {slot // self.size for slot in written}.isdisjoint(saved), "rows write a page that is being saved"
        assert 0 not in {*loaded, *saved, *read}, "the scratch page belongs to nobody"

    def execute(self, step: Step, failing: bool) -> None:
        for slot, page in step.loads:
            assert self.host[slot] == step.carried[slot], "a slot changed before it was read"
            self.device[page] = [GARBAGE] * self.size if failing else list(self.host[slot])
        for page, slot in step.saves:
            self.host[slot] = [GARBAGE] * self.size if failing else list(self.device[page])
        for row in step.rows:
            for position, slot in enumerate(row.slots):
                page, offset = divmod(slot, self.size)
                if position >= row.start:
                    self.device[page][offset] = GARBAGE if failing else row.work.content(position)
                elif row.work.state != "failed":
                    assert self.device[page][offset] == row.work.content(position), "a row reads what is not its text"

    def judge(self) -> None:
        cache = self.cache
        cache.check()
        assert cache.free + cache.used == cache.pages - 1
        held = {page for work in self.running for page in cache.table([work], 99)[0].tolist()} - {0}
        coming = {page for step in self.flight for _, page in step.loads}
        assert cache.used == len(held | coming) + cache.leaving


def pipeline(seed: int) -> Pipeline:
    """Texts of three tokens that often begin alike, in a cache that holds some of them."""
    random = Random(seed)
    size, stems = random.randint(1, 4), [[random.randrange(3) for _ in range(14)] for _ in range(3)]
    works = []
    for salt in range(random.randint(4, 14)):
        stem = random.choice(stems)[: random.randint(1, 14)]
        prompt = stem + [random.randrange(3) for _ in range(random.randint(0, 3))]
        works.append(Work(prompt, len(prompt) + random.randint(0, 10), salt % 3))
    longest = max(-(-(work.total + 1) // size) for work in works)
    return Pipeline(random, works, 1 + longest + random.randint(0, 12), size, random.choice([0, 2, 8, 30]))


def drained(line: Pipeline) -> Pipeline:
    for _ in range(40):
        line.turn()
    for _ in range(4000):
        if not (line.waiting or line.running or line.flight or line.cache.used):
            return line
        line.turn(calm=True)
    raise AssertionError(f"not at an end: {len(line.waiting)} wait, {len(line.running)} run, {line.cache!r}")


@pytest.mark.parametrize("seed", range(0, 1000, 50))
def test_every_row_reads_its_own_text_and_nothing_leaks(seed: int) -> None:
    for i in range(seed, seed + 50):
        line = drained(pipeline(i))
        assert line.cache.used == 0, "whatever happened"
        line.cache.reserve("all", line.cache.free * line.size)
        assert line.cache.free == 0, "and all of it can be had"


def test_these_runs_share_preempt_move_and_fail() -> None:
    lines = [drained(pipeline(seed)) for seed in range(60)]
    for what in ("hits", "loads", "saves", "preempted", "failed"):
        assert sum(getattr(line, what) for line in lines) > 20, what


@pytest.mark.parametrize("seed", range(20))
def test_a_request_finds_all_that_was_published(seed: int) -> None:
    """With room for everything: by brute force over the texts that went before."""
    random = Random(seed)
    size = random.randint(1, 5)
    cache = PagedKVCache(2000, size)
    published: set[tuple[int, ...]] = set()
    for number in range(60):
        text = [random.randrange(2) for _ in range(random.randint(1, 25))]
        whole = [tuple(text[:stop]) for stop in range(size, len(text), size)]  # up to the last but one token
        hits = next((i for i, block in enumerate(whole) if block not in published), len(whole))
        assert cache.admit(number, text, len(text)) == hits * size
        seen = random.randint(0, len(text))
        cache.publish(number, text[: max(seen, hits * size)])
        published |= {tuple(text[:stop]) for stop in range(size, seen + 1, size)}
        if random.random() < 0.5:
            cache.release(number)
        cache.check()
