"""From the command line to a loss a reader follows at most eight calls of this package.

Counted on the real stack, when the innermost function of a loss calls PyTorch. Went red under:
``main`` calling the verb through two functions of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import moco_transfer
from moco_transfer.cli.main import main

from .conftest import TINY_PRETRAIN, words
from .test_bad_input import train_words

PACKAGE = str(Path(moco_transfer.__file__).parent)
OF_A_LOSS = {"logsumexp", "cross_entropy", "cross_entropy_loss", "binary_cross_entropy_with_logits"}


def deepest_stack(run: Callable[[], int]) -> list[str]:
    """Return the functions of this package on the deepest stack of the first step's losses."""
    deepest: list[str] = []

    def look(frame, event: str, argument) -> None:
        name = argument.__name__ if event == "c_call" else frame.f_code.co_name
        if name == "backward":
            sys.setprofile(None)
        if event not in ("call", "c_call") or name not in OF_A_LOSS:
            return
        stack = []
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                stack.append(f"{Path(code.co_filename).stem}.{code.co_name}")
            frame = frame.f_back
        if len(stack) > len(deepest):
            deepest[:] = reversed(stack)

    sys.setprofile(look)
    try:
        assert run() == 0
    finally:
        sys.setprofile(None)
    return deepest


@pytest.mark.parametrize("mechanism", ["moco", "supervised"])
def test_pretrain(pool, tmp_path, mechanism):
    settings = words(TINY_PRETRAIN, DATA__ROOT=pool, OUTPUT_DIR=tmp_path / "out", SOLVER__EPOCHS=1)
    stack = deepest_stack(
        lambda: main(["pretrain", "--config-file", f"demo_{mechanism}", *settings])
    )
    assert stack[0] == "main.main" and 4 < len(stack) <= 8, stack


def test_train(scenes, tmp_path):
    more = {"SOLVER__MAX_ITER": 1, "SOLVER__STEPS": "()"}
    stack = deepest_stack(lambda: main(train_words(scenes, tmp_path, **more)))
    assert stack[0] == "main.main" and 4 < len(stack) <= 8, stack
