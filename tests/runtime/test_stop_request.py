"""SIGTERM sets a flag while the block runs, and the handler of before is there again afterwards.

Went red under: the handler not restored; the flag set for a request that was not sent.
"""

from __future__ import annotations

import os
import signal
import threading

from moco_transfer.runtime.stop import StopRequest


def test_sigterm__sets_the_flag_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested and not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and stop.agreed()
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread__works_without_signals():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.agreed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGTERM) == before
