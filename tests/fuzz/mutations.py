"""Files damaged on purpose, by a seed: what each function takes is a whole file, what it gives is a worse one."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

WHOLES = (
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    127,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    10**30,
)
WORDS = (
    "", "\0", "\ud800", "\x1b[2J", "../../x", "/dev/zero", "é" * 40, "a" * 5000, "float32", "h200", "whole", "{{ x }}",
    "__class__", "%s%n", "__proto__", "\u202e",
)  # fmt: skip


class Raw(str):
    """JSON as it is to be written, which need not be JSON."""

    __slots__ = ()


RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e308", "-0.0", "5e-324", "1" + "0" * 400, "9" * 5000, "0.1",
    "1.0", "[" * 300 + "]" * 300, "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 900 + "]" * 900, "", "'a'",
    "tru", "\x00", "\"\\ud800\"", "\"\\u0000\"", "-", "1,1",
)  # fmt: skip


def chars(random: Random, data: bytes) -> bytes:
    """Bytes changed, cut off, doubled, left out or moved, whatever they mean."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at, to = sorted((random.randrange(len(out) + 1), random.randrange(len(out) + 1)))
        to = min(to, at + random.choice((1, 2, 8, 64, 4096)))
        match random.randrange(8):
            case 0 | 1 if out:
                out[min(at, len(out) - 1)] = random.choice((0, 255, 127, random.randrange(256)))
            case 2 if out:
                out[min(at, len(out) - 1)] ^= 1 << random.randrange(8)
            case 3:
                del out[at:to]
            case 4:
                out[at:at] = out[at:to]
            case 5:
                width = random.choice((1, 2, 4, 8))
                out[at : at + width] = (random.choice(WHOLES) % 256**width).to_bytes(width, "little")
            case 6:
                out[at:at] = random.randbytes(random.choice((1, 4, 50)))
            case 7 if random.random() < 0.3:
                del out[at:]
    return bytes(out)


def tree(random: Random, data: bytes) -> bytes:
    """A JSON file with values replaced, moved, doubled or left out, names changed, and fields stated twice."""
    try:
        return _pruned(random, json.loads(data)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return chars(random, data)


def _pruned(random: Random, value: Any) -> str:
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        places = list(_places(value))
        if not places:
            break
        holder, key = random.choice(places)
        holder[key] = _other(random, holder[key], [box[name] for box, name in random.choices(places, k=3)])
        match random.randrange(12):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[random.choice((key + "x", "schema", "version", *WORDS))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 3 if isinstance(holder, dict):
                holder[Raw(json.dumps(key))] = holder[key]
    return _written(value)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key in a tree."""
    stack = [value]
    while stack:
        holder = stack.pop()
        for key in holder if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ():
            yield holder, key
            stack.append(holder[key])


def _other(random: Random, value: Any, others: list[Any]) -> Any:
    """A value for the place of another; small changes of what is there are as likely as none at all."""
    match random.randrange(10):
        case 0:
            return Raw(random.choice(RAW))
        case 1:
            return random.choice(WHOLES)
        case 2:
            return random.choice(WORDS)
        case 3:
            return random.choice((None, True, False, [], {}, 0.5, -1.5, [[]], [None], {"": {}}))
        case 4 | 5:
            return deepcopy(others[0])  # another place with the same value, not the value itself: no tree has circles
        case 6 | 7 if type(value) in (int, float) and abs(value) < 2**64:
            return value * random.choice((-1, 0, 2, 0.5, 1e300)) + random.choice((0, 0, 1, -1))
        case 6 | 7 if isinstance(value, str):
            return chars(random, value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        case 8 if isinstance(value, list):
            return random.sample(value, len(value))[: random.randrange(len(value) + 1)]
    return value


def _written(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        fields = (f"{key if isinstance(key, Raw) else json.dumps(key)}:{_written(value[key])}" for key in value)
        return f"{{{','.join(fields)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return json.dumps(value)


def words(random: Random, data: bytes) -> bytes:
    """A file of lines and numbers with some of them replaced, moved, doubled or left out."""
    lines = [line.split(b" ") for line in data.split(b"\n")]
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(lines))
        line = lines[at] = lines[at] or [b""]
        place = random.choice([p for p, word in enumerate(line) if word] or [0])
        match random.randrange(8):
            case 0 | 1 | 2:
                line[place] = str(random.choice((*WHOLES, random.randrange(12)))).encode()
            case 3:
                line[place] = random.choice(
                    ("1" * 5000, "1.5", "1e3", "NaN", "²", "٣", "_1", "+1", "***", "R 1")
                ).encode()
            case 4:
                del lines[at]
                lines = lines or [[b""]]
            case 5:
                lines.insert(random.randrange(len(lines)), list(line))
            case 6:
                line.insert(place, random.choice(line))
            case 7:
                del line[place]
    return b"\n".join(b" ".join(line) for line in lines)


def safetensors(random: Random, data: bytes) -> bytes:
    """A safetensors file with another header, whose length may be a lie, and tensors that overlap or lie outside."""
    (length,) = struct.unpack_from("<Q", data.ljust(8, b"\0"))
    header, body = data[8 : 8 + length], data[8 + length :]
    try:
        value = json.loads(header)
        held = [tensor["data_offsets"] for name, tensor in value.items() if name != "__metadata__"]
        if held and random.random() < 0.4:
            random.choice(held)[:] = random.choice(
                (random.choice(held), [0, len(body)], [len(body), len(body) + 8], [8, 4])
            )
            header = json.dumps(value).encode()
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        pass
    if random.random() < 0.7:
        header = tree(random, header)
    if random.random() < 0.2:
        body = chars(random, body)
    told = len(header) if random.random() < 0.8 else random.choice((*WHOLES, len(header) + 1, len(header) - 1)) % 2**64
    return struct.pack("<Q", told) + header + body


GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def gguf(random: Random, data: bytes) -> bytes:
    """A GGUF file with other counts, lengths, types, dimensions and offsets in its head."""
    try:
        numbers = list(gguf_numbers(data))
    except (struct.error, KeyError, OverflowError):
        return chars(random, data)
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at, width = random.choice(numbers)
        old = int.from_bytes(out[at : at + width], "little")
        new = random.choice((*WHOLES, random.randrange(42), random.randrange(42), old + 1, old - 1, old * 2, 10**7))
        out[at : at + width] = (new % 256**width).to_bytes(width, "little")
    return chars(random, bytes(out)) if random.random() < 0.2 else bytes(out)


def gguf_numbers(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the numbers in the head of a GGUF file lie, and in how many bytes; strings count by their length."""
    at = 24
    yield from ((4, 4), (8, 8), (16, 8))
    tensors, pairs = struct.unpack_from("<QQ", data, 8)

    def string(at: int) -> int:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])

    for _ in range(min(pairs, 1000)):
        yield at, 8
        at = string(at)
        yield at, 4
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        count = 1
        if kind == ARRAY:
            yield from ((at, 4), (at + 4, 8))
            kind, count = struct.unpack_from("<IQ", data, at)
            at += 12
        for _ in range(min(count, 1000)):
            yield at, 8 if kind == STRING else GGUF_WIDTHS[kind]
            at = string(at) if kind == STRING else at + GGUF_WIDTHS[kind]
    for _ in range(min(tensors, 1000)):
        yield at, 8
        at = string(at)
        yield at, 4
        (dimensions,) = struct.unpack_from("<I", data, at)
        fields = [8] * min(dimensions, 1000) + [4, 8]
        at += 4
        for width in fields:
            yield at, width
            at += width


STATEMENTS = (
    "DROP TABLE samples", "DROP TABLE calls", "DROP TABLE places", "DELETE FROM calls", "PRAGMA application_id = 7",
    "PRAGMA user_version = 1", "PRAGMA user_version = 3", "PRAGMA user_version = -1",
    "ALTER TABLE calls DROP COLUMN tiles", "DROP TABLE calls; CREATE VIEW calls AS SELECT 1",
    "ALTER TABLE samples ADD COLUMN more TEXT",
    "PRAGMA encoding = 'UTF-16'",
    "DROP TABLE samples; CREATE VIEW samples AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT i AS call, i AS beside, i AS seconds, i AS low, i AS high, i AS runs, '' AS clocks, 1 AS place FROM n",
    "CREATE TRIGGER t AFTER INSERT ON places BEGIN DELETE FROM calls; END",
    "ALTER TABLE calls RENAME TO others; "
    "CREATE TABLE calls (id, operator, kernel, shapes, dtype, flops, hbm_bytes, sms, tiles)",
)  # fmt: skip
CELLS = (
    *WHOLES[:15], 0.5, -1.0, 1e999, None, b"\xff\xfe", "[[1,2],[3]]", "[" * 100_000, '{"sm": NaN}', "{}",
    '{"sm": 1e999}', "[[1e999]]", '{"sm": 1e400, "sm": 2}', "[[-1]]", "9" * 5000, f"[[{'9' * 5000}]]", *WORDS,
)  # fmt: skip
COLUMNS = {
    "calls": ("id", "operator", "kernel", "shapes", "dtype", "flops", "hbm_bytes", "sms", "tiles"),
    "samples": ("place", "call", "beside", "seconds", "low", "high", "runs", "clocks"),
    "places": ("id", "device", "sms", "gpu", "driver", "versions"),
}


def database(random: Random, data: bytes, path: Path) -> bytes:
    """An SQLite file in which values, tables or the schema are others; ``path`` is where it is changed."""
    path.write_bytes(data)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        for _ in range(random.choice((1, 1, 2, 4))):
            if random.random() < 0.2:
                connection.executescript(random.choice(STATEMENTS))
                continue
            table = random.choice(list(COLUMNS))
            cell = random.choice(CELLS)
            cell = cell % 2**63 if isinstance(cell, int) else cell
            connection.execute(f"UPDATE OR IGNORE {table} SET {random.choice(COLUMNS[table])} = ?", (cell,))
    except (sqlite3.Error, UnicodeError):
        pass  # what was changed before stays
    finally:
        connection.close()
    return path.read_bytes()


def either(*mutations: Mutation, weight: float = 0.7) -> Mutation:
    """The first of some mutations mostly, else one that knows nothing of the format."""

    def mutate(random: Random, data: bytes) -> bytes:
        return (random.choice(mutations) if random.random() < weight else chars)(random, data)

    return mutate
