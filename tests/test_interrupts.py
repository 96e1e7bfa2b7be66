from __future__ import annotations

import signal
import sys

import pytest

from nanort.interrupts import CtrlC


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_interrupts_and_is_remembered() -> None:
    with CtrlC() as ctrl_c:
        ctrl_c.check()
        with pytest.raises(KeyboardInterrupt):
            press()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_held_it_is_only_noted() -> None:
    with CtrlC(held=True) as ctrl_c:
        press()
        assert ctrl_c.pressed


class _Strikes:
    def __del__(self) -> None:
        press()


class _Fails:
    def __del__(self) -> None:
        raise ValueError("broken")


def test_an_interrupt_that_strikes_a_finalizer_is_found_later(capsys: pytest.CaptureFixture[str]) -> None:
    told, hook = list[str](), sys.unraisablehook
    sys.unraisablehook = lambda what: told.append(repr(what.exc_value))
    try:
        with CtrlC() as ctrl_c:
            _Strikes()
            _Fails()
            with pytest.raises(KeyboardInterrupt):
                ctrl_c.check()
    finally:
        sys.unraisablehook = hook
    assert told == ["ValueError('broken')"], "other errors of finalizers are told as ever"
    assert capsys.readouterr().err == ""
