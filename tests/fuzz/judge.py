"""What a reader may do with a file, and a judge of whether it did no more."""

from __future__ import annotations

import codecs
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from fuzz.mutations import Mutation

SECONDS = 2.0
"""Of processor time, so that nobody else's work counts."""
SPARE_BYTES = 48 << 20
"""What a reader may take besides four times the file."""

DEEDS = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "pickle.find_class", "marshal.loads"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.kill"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "sqlite3.enable_load_extension", "sqlite3.load_extension"),
    *("compile", "exec", "import", "ctypes.dlopen"),
}
"""Audit events of Python that no reader of a file has a reason for; see :pep:`578`."""


os.environ["RUST_BACKTRACE"] = "0"  # reading symbols for one takes 50 MiB
for _name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
    codecs.lookup(_name)  # imports it now: JSON may come in each, and a reader that imports is suspicious


class BreachError(AssertionError):
    """A reader did with a file what it must not do."""


class Hang(BaseException):
    """Out of time; no ``except Exception`` holds it up."""


@dataclass(frozen=True)
class Target:
    """A format: sound files of it, how they are damaged, and what reads them.

    Attributes:
        file: its name, below the folder of a case.
        seeds: sound files.
        read: reads the file at a path, and uses what it found as nanort would.
        errors: what it may raise, with the case's folder in the message.
        beside: other files that the folder holds.
        named: whether what refuses a file has to name it; the body of a request has no name.
        does: audit events that are its work after all.
    """

    name: str
    file: str
    seeds: tuple[bytes, ...]
    mutate: Mutation
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...]
    beside: tuple[tuple[str, bytes], ...] = ()
    does: frozenset[str] = frozenset()
    named: bool = True

    def case(self, seed: int, number: int) -> bytes:
        """The file of a case, which follows from both numbers alone."""
        random = Random(f"{self.name} {seed} {number}")
        data = random.choice(self.seeds)
        for _ in range(random.choice((1, 1, 1, 2))):
            data = self.mutate(random, data)
        return data


def accept(target: Target, folder: Path) -> None:
    """Reads the sound files, unwatched: what readers import late is there from now on."""
    for data in target.seeds:
        _lay(target, data, folder)
        target.read(folder / target.file)


def _lay(target: Target, data: bytes, folder: Path) -> None:
    for name, content in target.beside:
        if name != target.file and not (folder / name).exists():  # readers write nothing, so once is enough
            (folder / name).write_bytes(content)
    (folder / target.file).write_bytes(data)


def judge(target: Target, data: bytes, folder: Path) -> str:
    """What came of reading ``data``: "read", or the name of the error that refused it.

    Raises:
        BreachError: the reader raised something else, named no file, took too much time or memory, or did other things.
    """
    _lay(target, data, folder)
    path = folder / target.file
    before = _peak_bytes(anew=True)
    outcome = "read"
    try:
        with _watched(folder, target.does), _time_limit():
            target.read(path)
    except target.errors as error:
        outcome = type(error).__name__
        if target.named and str(folder) not in str(error):
            raise BreachError(f"{outcome} does not name the file: {error}") from error
    except Hang as error:
        raise BreachError(f"more than {SECONDS} s for {len(data)} bytes") from error
    except BaseException as error:  # a panic of a Rust library is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        raise BreachError(f"{type(error).__name__}: {str(error)[:300]}") from error
    if (taken := _peak_bytes() - before) > 4 * len(data) + SPARE_BYTES:
        raise BreachError(f"{taken >> 20} MiB for a file of {len(data)} bytes")
    return outcome


def _peak_bytes(*, anew: bool = False) -> int:
    """The most memory that was held at once, of late: ``anew`` forgets what was held before."""
    if anew:
        _FORGET.write(b"5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_FORGET = Path("/proc/self/clear_refs").open("wb", buffering=0)  # noqa: SIM115  # as long as the process lives


@contextmanager
def _time_limit() -> Iterator[None]:
    def end(*_: object) -> NoReturn:
        raise Hang

    old = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


_allowed: list[tuple[str, frozenset[str]]] = []
"""Where files may be written now, and what else may be done; empty while nothing is read."""


@contextmanager
def _watched(folder: Path, does: frozenset[str]) -> Iterator[None]:
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    _allowed.append((str(folder), does))
    try:
        yield
    finally:
        _allowed.pop()


_hooked: list[bool] = []
"""An audit hook stays for ever, so there is one."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    folder, does = _allowed[-1]
    if event == "open":
        path, _, flags = arguments
        if flags & 3 and not str(path).startswith(folder):
            raise BreachError(f"it writes to {path!r}")
    elif event in DEEDS and event not in does:
        raise BreachError(f"it does {event} {arguments!r:.200}")
