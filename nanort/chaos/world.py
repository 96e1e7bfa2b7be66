"""World: a workload served on a simulated device on which things go wrong, all of it drawn from one seed."""

from __future__ import annotations

import random
import re
import warnings
from collections import deque
from collections.abc import Sequence

from nanort.chaos.device import FaultyDriver
from nanort.chaos.faults import HANGS, KINDS, TIMEOUT, Fault
from nanort.chaos.house import HOUSES
from nanort.chaos.judge import Followed, failures_allowed, judge_accounts, judge_error, judge_timeline
from nanort.chaos.life import Options, life
from nanort.chaos.report import Report
from nanort.chaos.workload import Asked, asked
from nanort.clock import VirtualClock
from nanort.errors import DriverError, InternalError, NanortError, PoisonedError, RequestError
from nanort.serving.engine import Engine, StepRecord
from nanort.serving.requests import ERROR, Request
from nanort.timeline.units import plain

PATIENCE = 12
"""Steps after which a fault that has not struck is taken back, and after a strike until the next one comes."""


class World:
    """One seed's.

    Args:
        seed: of everything.
        requests: how many are asked.
        kinds: the faults that may strike, names of KINDS; () for none.

    Raises:
        RequestError: there is no such fault, or nothing is asked.
    """

    def __init__(self, seed: int, requests: int = 12, kinds: Sequence[str] = tuple(KINDS)) -> None:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise RequestError(f"there is no fault {unknown[0]!r}: give some of {', '.join(KINDS)}")
        if requests < 1:
            raise RequestError(f"requests={requests} leaves nothing to do: give 1 or more")
        chance = self._chance = random.Random(f"world {seed}")
        self.house = chance.choice(HOUSES)
        self.options = Options.drawn(chance, self.house)
        self.report = Report(seed, (str(self.house), str(self.options)))
        self._kinds = tuple(kind for kind in kinds if self.options.timeout or kind not in HANGS)
        self._time = VirtualClock()
        found = asked(chance, self.house, requests, cancels=chance.choice((0.0, 0.2, 0.5)))
        self._coming = deque[tuple[int, Asked]](enumerate(found))
        self._followed: dict[Request, Followed] = {}  # of this life
        self._fault: Fault | None = None
        self._since = self._step = self._failed = 0  # steps since it was armed, of this life, and that failed of it

    def run(self) -> Report:
        """Serves all, process after process, until all have ended or something does not hold."""
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                while self._coming:
                    self._live()
            except Exception as error:  # noqa: BLE001  # whatever it is, a report has to tell of it
                self.report.breach = _said(error)
        for message in dict.fromkeys(str(each.message).partition(" node ")[0] for each in warned):
            self.report.events.append(f"warned: {plain(message)}")
        self.report.seconds = self._time.now()
        return self.report

    def _live(self) -> None:
        """One process, until all is done or the device has failed."""
        self._followed, self._fault, self._step = {}, None, 0
        with life(self.house, self.options, self._chance, self._time) as (gpu, engine):
            engine.observers.append(self._observe)
            try:
                while self._going(engine) and self._turn(gpu, engine):
                    judge_accounts(engine)
                self._take_back(gpu)
                self._time.advance(10 * TIMEOUT)  # until what hangs has ended
            except Exception:
                self.report.latest = tuple(gpu.latest)
                raise
        for each in self._followed.values():
            each.judge(over=True)
            self._end(each)

    def _going(self, engine: Engine) -> bool:
        """Whether there is anything left to do; what comes is submitted when its time has come."""
        while self._coming and (self._coming[0][1].at <= self._time.now() or not engine.busy):
            number, one = self._coming.popleft()
            self._time.wait(one.at)
            request = engine.submit(one.prompt, one.params, id=f"request {number}")
            self._followed[request] = Followed(number, one, request, self._step)
        return engine.busy

    def _turn(self, gpu: FaultyDriver, engine: Engine) -> bool:
        """One step of the engine; false where the process has to be started again."""
        self._arm(gpu)
        for each in self._followed.values():
            if each.asked.leaves is not None and self._step - each.step >= each.asked.leaves and not each.left:
                each.left = True
                engine.cancel(each.request)
        try:
            outputs = engine.step()
        except (PoisonedError, DriverError) as error:
            self._note_strike()
            self._restarted(gpu, engine, error)
            return False
        self._note_strike()
        for output in outputs:
            self._followed[output.request].outputs.append(output)
            self.report.tokens += len(output.tokens)
            if output.finish == ERROR:
                self._note_failure(output.request)
            self._followed[output.request].judge(over=False)
        self._time.advance(self._chance.uniform(1e-6, 2e-5))
        self._step += 1
        return True

    def _observe(self, record: StepRecord) -> None:
        """Takes note of a step that was collected."""
        self.report.steps += 1
        self._since += 1
        if record.result is None:
            self._failed += 1
            if self._fault is None or self._failed > failures_allowed(self._fault):
                raise InternalError(f"{self._failed} steps failed of one fault: the next one does not work again")
            self.report.count(self._fault.kind.name, "steps failed")
        elif record.result.timeline is not None:
            judge_timeline(record.result.timeline)

    # Faults.

    def _arm(self, gpu: FaultyDriver) -> None:
        """Draws the next fault once nothing is left of the one before."""
        fault = self._fault
        if fault is not None and fault.struck is None and self._since >= PATIENCE:
            self._take_back(gpu)
        if fault is not None and fault.struck is not None:
            calm = self._since >= PATIENCE and self._time.now() > fault.struck + fault.seconds + TIMEOUT
            self._fault = gpu.fault = None if calm else fault
        if self._fault is None and self._kinds and self._chance.random() < 0.5:
            self._fault = gpu.fault = Fault.drawn(self._chance, self._kinds, self._time.now())
            self._since = self._failed = 0

    def _take_back(self, gpu: FaultyDriver) -> None:
        if self._fault is not None and self._fault.struck is None:
            self.report.count(self._fault.kind.name, "missed")
            self._fault = gpu.fault = None

    def _note_strike(self) -> None:
        fault = self._fault
        if fault is not None and fault.struck is not None and not fault.noted:
            fault.noted, self._since = True, 0
            took = f" for {1e3 * fault.seconds:.3f} ms" if fault.lasts else ""
            self.report.count(fault.kind.name, "struck")
            self.report.tell(fault.struck, self._step, f"{fault.kind.name}{took}: {fault.hit}")

    def _note_failure(self, request: Request) -> None:
        assert request.error is not None  # which the request's judge sees to
        judge_error(request.error, self._fault)
        assert self._fault is not None  # which the error's judge sees to
        self.report.count(self._fault.kind.name, "requests failed")
        self.report.tell(self._time.now(), self._step, f"{request.id} failed: {_said(request.error)}")
        _forget(request.error)

    def _restarted(self, gpu: FaultyDriver, engine: Engine, error: NanortError) -> None:
        """The device has failed: the engine keeps saying so, and whoever was not answered asks the next process."""
        judge_error(error, self._fault)
        assert self._fault is not None
        if not gpu.poisoned:
            raise InternalError(f"serving ended, and the device is well: {error}")
        try:
            engine.step()
        except (PoisonedError, DriverError) as again:
            if again is not error or "again" not in str(again):
                raise InternalError(f"after {error} the engine says {again}") from again
        else:
            raise InternalError(f"the engine went on after {error}")
        self.report.count(self._fault.kind.name, "restarts")
        self.report.tell(self._time.now(), self._step, f"started again: {_said(error)}")
        _forget(error)
        asking = [each for each in self._followed.values() if each.request.finish is None]
        self._coming.extendleft((each.number, each.asked) for each in reversed(asking))

    def _end(self, each: Followed) -> None:
        """Counts how a request ended, unless it is asked again."""
        if each.number not in {number for number, _ in self._coming}:
            self.report.ends[each.request.finish or ""] += 1


def _said(error: BaseException) -> str:
    """What an error says, without the lines of code that it names: their paths depend on where one stands."""
    return f"{type(error).__name__}: {re.sub(r' [(][^()]*:[0-9]+[)]', '', plain(str(error)))}"


def _forget(error: BaseException | None) -> None:
    """Lets go of the frames that an error and what it came of keep alive."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
