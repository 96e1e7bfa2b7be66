"""Bodies of requests as JSON, read strictly, and what is refused in them, in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from nanort.errors import RequestError

DEEPEST = 8
"""Arrays and objects in each other that a body may have: what is understood needs five."""
DIGITS = 20
"""Of a whole number: Python reads longer ones in quadratic time."""


class ApiError(RequestError):
    """A request that is refused: its status, and the field, kind and code that OpenAI's clients look at."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Fields:
    """The fields of one object of a body, taken one by one with their types; null is as good as absent."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise ApiError(f"{where or 'the body'} is {_kind(value)}: give an object", param=where or None)
        self.left = dict(value)
        self._where = f"{where}." if where else ""

    def take(self, name: str, default: object = ...) -> Any:
        value = self.left.pop(name, None)
        if value is None and default is ...:
            raise ApiError(f"{self._where}{name} is missing: give it", param=self._where + name)
        return default if value is None else value

    def text(self, name: str, default: object = ...) -> str:
        value = self.take(name, default)
        if not isinstance(value, str):
            self._refuse(name, value, "a text")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def whole(self, name: str, least: int, most: int, default: int | None) -> int | None:
        value: int | None = self.take(name, default)
        if value is not default and not (type(value) is int and least <= value <= most):
            self._refuse(name, value, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        value = self.take(name, default)
        if type(value) not in (int, float) or not least <= value <= most:
            self._refuse(name, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def only(self, name: str, harmless: tuple[object, ...]) -> None:
        """Refuses a field that is known and not served, where its value asks for anything."""
        value = self.left.pop(name, None)
        if value is None or any(type(value) is type(known) and value == known for known in harmless):
            return
        allowed = f"give {json.dumps(harmless[0])} or leave it out" if harmless else "leave it out"
        raise ApiError(
            f"{self._where}{name} is not supported, it is {shown(value)}: {allowed}",
            param=self._where + name, code="unsupported_parameter",
        )  # fmt: skip  # what it is about, in one line

    def end(self) -> None:
        for name in self.left:
            raise ApiError(
                f"there is no field {self._where}{name!r:.80}: remove it",
                param=f"{self._where}{name:.80}", code="unknown_parameter",
            )  # fmt: skip  # the same

    def _refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        raise ApiError(f"{self._where}{name} is {shown(value)}: give {wanted}", param=self._where + name)


def decoded(body: bytes) -> object:
    """The JSON in ``body``, which is UTF-8, has no field twice and no NaN, and is not nested more than DEEPEST deep."""
    try:
        value: object = json.loads(
            body.decode(), parse_constant=_no_number, parse_int=_whole, object_pairs_hook=_unique
        )  # fmt: skip  # one call
    except RecursionError:
        raise ApiError(f"the body is nested more than {DEEPEST} deep: flatten it") from None
    except ValueError as error:  # what json and UTF-8 raise, and RequestError not
        raise ApiError(f"the body is no JSON ({error}): correct it") from error
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [item for item in level if isinstance(item, (dict, list))]
        if not inner:
            return value
        level = [each for item in inner for each in (item.values() if isinstance(item, dict) else item)]
    raise ApiError(f"the body is nested more than {DEEPEST} deep: flatten it")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a field twice")
    return found


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def shown(value: object) -> str:
    """A value as an error tells it: short, whatever the client sent."""
    return _kind(value) if value and isinstance(value, (dict, list)) else f"{json.dumps(value):.60}"
