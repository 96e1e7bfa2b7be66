"""Small random scheduling problems, and their optima by trying everything."""

from __future__ import annotations

import math
import random

from nanort.scheduling.problem import Mode, Problem, Task


def random_problem(rng: random.Random, tasks: int, *, integral: bool, modes: int = 2, resources: int = 2) -> Problem:
    """A problem in which some modes take no time, some need nothing, some do not fit, and most tasks compete."""

    def figure(most: int) -> float:
        return rng.randint(0, most) if integral else rng.choice((0.0, rng.uniform(0, most), rng.randint(0, most) / 10))

    names = [f"t{at}" for at in range(tasks)]
    capacities = {f"r{at}": rng.randint(3, 6) for at in range(resources)}

    def mode(most: int) -> Mode:
        return Mode(figure(6), {name: figure(most) for name in capacities if rng.random() < 0.8})

    made = [Task(name, [*(mode(8) for _ in range(rng.randrange(modes))), mode(3)]) for name in names]
    pairs = [(a, b) for at, b in enumerate(names) for a in names[:at] if rng.random() < 0.25]
    rng.shuffle(made)
    return Problem(made, capacities, pairs)


def optimum(problem: Problem) -> float:
    """The least makespan: every order, every mode, each task as early as it fits; one of these is optimal."""
    tasks = {task.name: task for task in problem.tasks}
    preds = {name: [a for a, b in problem.precedence if b == name] for name in tasks}
    best = math.inf

    def fits(done: dict[str, tuple[float, float, Mode]], mode: Mode, start: float) -> bool:
        end = start + mode.duration
        for instant in {start, *(begin for begin, _, _ in done.values() if start <= begin < end)}:
            there = [m for begin, stop, m in done.values() if begin <= instant < stop]
            for name, capacity in problem.capacities.items():
                used = sum(m.usage.get(name, 0) for m in (*there, mode))
                if mode.usage.get(name, 0) > capacity or (start < end and used > capacity * (1 + 1e-9)):
                    return False
        return True

    def place(done: dict[str, tuple[float, float, Mode]]) -> None:
        nonlocal best
        so_far = max((end for _, end, _ in done.values()), default=0.0)
        if so_far >= best:
            return
        if len(done) == len(tasks):
            best = so_far
        for name in tasks.keys() - done.keys():
            if all(pred in done for pred in preds[name]):
                ready = max((done[pred][1] for pred in preds[name]), default=0.0)
                times = sorted({ready, *(end for _, end, _ in done.values() if end > ready)})
                for mode in tasks[name].modes:
                    start = next((time for time in times if fits(done, mode, time)), None)
                    if start is not None:
                        place({**done, name: (start, start + mode.duration, mode)})

    place({})
    return best
