"""The fault matrix as a table: what is raised in every case, what is left, and what the next run does."""

from __future__ import annotations

from dataclasses import dataclass, field

from tree import ROOT

PHASES = ("plan", "allocate", "stage", "launch", "run", "copy", "finish")
FAULTS = ("exception", "out of memory", "hang", "lost event", "driver error", "sticky fault", "wrong SM grant")
EXCEPTION, MEMORY, HANG, LOST, DRIVER, STICKY, GRANT = FAULTS

NOTHING = "nothing"
RIGHT = "gives the right values"
CALL_BY_CALL = "gives the right values, from now on call by call"
RESTART = "PoisonedError: start the process again"
ANEW = "a new executor gives the right values"
KEPT = "what the node may still touch, until it ends"


@dataclass(frozen=True, slots=True)
class Told:
    """What was raised, without the frames that a raised error keeps alive."""

    kind: str
    text: str
    node: str
    call: str


@dataclass(slots=True)
class Row:
    """What all cases of one fault in one phase had in common, and how many there were by backend."""

    said: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    then: set[str] = field(default_factory=set)
    cases: dict[str, int] = field(default_factory=dict)


Rows = dict[tuple[str, str], Row]

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGINS = "<!-- written by tests/verify/test_fault_matrix.py -->\n"


def document() -> str:
    """The table as docs/reliability.md has it."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGINS)
    table, end, _ = rest.partition("\n\n")
    return table + end[:1]


def write(table: str) -> None:
    """Puts a table in the place of the one in docs/reliability.md."""
    whole = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(whole.replace(BEGINS + document(), BEGINS + table), encoding="utf-8")


def text(rows: Rows) -> str:
    """The table in Markdown."""
    lines = ["| phase | fault | what is raised | what is left | the next run | eager | captured | cpu |"]
    lines.append("|---|---|---|---|---|--:|--:|--:|")
    for phase, fault in sorted(rows, key=lambda key: (PHASES.index(key[0]), FAULTS.index(key[1]))):
        row = rows[phase, fault]
        words = ("; ".join(sorted(cell)) for cell in (row.said, row.left, row.then))
        counts = (str(row.cases.get(backend, "")) for backend in ("eager", "captured", "cpu"))
        lines.append(f"| {' | '.join((phase, fault, *words, *counts))} |")
    return "\n".join(lines) + "\n"


def words(table: str) -> dict[tuple[str, str], list[set[str]]]:
    """What a table says of every phase and fault, without the counts."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {(cell[0], cell[1]): [set(part.split("; ")) for part in cell[2:5]] for cell in cells}


class Matrix:
    """What was seen of all cases."""

    def __init__(self) -> None:
        self.rows: Rows = {}

    def note(self, backend: str, phase: str, fault: str, said: str, then: str, left: str = NOTHING) -> None:
        """One case was as it must be."""
        row = self.rows.setdefault((phase, fault), Row())
        row.said.add(said)
        row.left.add(left)
        row.then.add(then)
        row.cases[backend] = row.cases.get(backend, 0) + 1
