"""Readable, versioned JSON files: written at once or not at all, read strictly."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from nanort.bounded import content
from nanort.drafts import draft
from nanort.errors import FileError, NewerVersionError, TruncatedFileError


def write(path: str | os.PathLike[str], schema: str, version: int, fields: Mapping[str, Any]) -> None:
    """Writes ``fields`` to ``path`` at once, a field a line and the items of a list a line each.

    Raises:
        FileError: a figure is NaN or infinite.
    """
    head: dict[str, Any] = {"schema": schema, "version": version}
    text = (
        "{\n"
        + ",\n".join(f"{_encode(key, path)}: {_lines(value, path)}" for key, value in {**head, **fields}.items())
        + "\n}\n"
    )
    with draft(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _lines(value: Any, path: str | os.PathLike[str]) -> str:
    if not isinstance(value, (list, tuple)) or not value:
        return _encode(value, path)
    return "[\n  " + ",\n  ".join(_encode(item, path) for item in value) + "\n]"


def _encode(value: Any, path: str | os.PathLike[str]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise FileError(f"{path}: a NaN or infinite figure cannot be saved") from error


def read(path: str | os.PathLike[str], schema: str, version: int) -> dict[str, Any]:
    """The fields that :func:`write` wrote for this schema.

    Raises:
        TruncatedFileError: the file is cut short, or is of another kind.
        NewerVersionError: a newer nanort wrote it.
        FileError: it holds a NaN, or a field twice.
    """

    def refuse(constant: str) -> NoReturn:
        raise FileError(f"{path} holds {constant}, which is no number: save it again")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise FileError(f"{path} states a field twice: save it again")
        return found

    try:
        data = json.loads(content(path), parse_constant=refuse, object_pairs_hook=once)
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise TruncatedFileError(f"{path} is cut short, or is not JSON ({error}): save it again") from error
    if not isinstance(data, dict) or data.pop("schema", None) != schema:
        raise TruncatedFileError(f"{path} is no {schema} file: give one that nanort saved")
    found = data.pop("version", None)
    if type(found) is not int or found < 1:
        raise FileError(f"{path}: version is {found!r}, not a whole number from 1 on")
    if found > version:
        raise NewerVersionError(f"{path} has version {found}, this nanort reads up to {version}: update nanort")
    return data


def record(value: Any, where: str, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """``value`` as an object of exactly these fields, each of exactly its type.

    Raises:
        FileError: a field is missing, unknown or of another type; ``where`` says whose.
    """
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        held = sorted(value) if isinstance(value, dict) else reprlib.repr(value)
        raise FileError(f"{where} has the fields {held}, not {sorted(kinds)}")
    return {key: _typed(value[key], f"{where}: {key}", kind) for key, kind in kinds.items()}


def row(value: Any, where: str, kinds: Sequence[type | tuple[type, ...]]) -> list[Any]:
    """``value`` as a list of exactly these types.

    Raises:
        FileError: it is not; ``where`` says whose.
    """
    if not isinstance(value, list) or len(value) != len(kinds):
        raise FileError(f"{where} is {reprlib.repr(value)}, not a list of {len(kinds)}")
    return [_typed(item, where, kind) for item, kind in zip(value, kinds, strict=True)]


def _typed(value: Any, where: str, kind: type | tuple[type, ...]) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) is int and float in kinds and int not in kinds and abs(value) <= 2**1023:
        value = float(value)
    if type(value) not in kinds or (type(value) is float and abs(value) == float("inf")):
        raise FileError(f"{where} is {reprlib.repr(value)}, not of type {' or '.join(k.__name__ for k in kinds)}")
    return value
