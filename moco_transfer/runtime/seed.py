"""Random numbers as a function of a position in the run, not of what was drawn before.

So nothing has to be saved to resume exactly, and the number of data workers changes nothing.
"""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator

import numpy as np
import torch

from .distributed import all_gather_object
from .errors import InputError


def derive_seed(seed: int, *position: int | str) -> int:
    """Return a seed in [0, 2^63) for a purpose and place, such as ``("views", epoch, index)``.

    Strings enter by their CRC-32, so the result is the same on every machine.

    Raises:
        InputError: If ``seed`` is negative.
    """
    if seed < 0:
        raise InputError(f"SEED is {seed}: expected an integer >= 0.")
    words = [seed, *(zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in position)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_at(seed: int, *position: int | str) -> np.random.Generator:
    """Return a NumPy generator for one position in a run (see :func:`derive_seed`)."""
    return np.random.default_rng(derive_seed(seed, *position))


def seed_everything(seed: int, *position: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) for one position: at the
    start of each iteration, so that a resumed run finds them as the uninterrupted one did.
    """
    value = derive_seed(seed, *position)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the global generators as they were before the block, for a program of others."""
    python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)


def check_equal_draws() -> None:
    """Check that torch's generator of the CPU stands at the same place on all processes, so that
    what each drew for all of them was the same. Collective.

    Raises:
        RuntimeError: On all processes, if it does not.
    """
    places = all_gather_object(zlib.crc32(torch.get_rng_state().numpy().tobytes()))
    if len(set(places)) > 1:
        raise RuntimeError(
            "The processes drew different random numbers in this iteration, so images were not"
            " shuffled equally: something in the model draws on some processes alone."
        )
