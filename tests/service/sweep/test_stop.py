"""Ctrl-C while Ray starts, which must not interrupt the start."""

from __future__ import annotations

import os
import signal

import pytest

from service.sweep.stop import Interrupts


def test_ctrl_c_while_ray_starts_is_acknowledged_once_and_ends_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    started = []

    def start(interrupts: Interrupts) -> None:
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            started.append("Ray")

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        start(interrupts)
    assert started == ["Ray"]
    assert capsys.readouterr().err == "interrupted; it ends when Ray has started\n"
