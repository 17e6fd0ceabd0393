"""Random numbers as a function of where one is, not of what was drawn before.

Every draw of a run comes from a generator seeded by (seed, purpose, position): the order of an
    epoch, the crops of one
image, the sampling inside one iteration. So nothing has to be saved to resume exactly, in the
middle of an epoch too, and the number of data workers changes nothing.
"""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch

from .errors import InputError


def derive_seed(seed: int, *position: int | str) -> int:
    """Return a 63-bit seed for one place in a run.

    Args:
        seed: The run's seed, >= 0.
        position: What the numbers are for and where, such as ``("views", epoch, index)``. Strings
            enter by their CRC-32, so the result is the same on every machine and in every process.

    Returns:
        An integer in [0, 2^63) for ``numpy.random.default_rng`` or ``torch.manual_seed``.

    Raises:
        InputError: If the seed is negative.
    """
    if seed < 0:
        raise InputError(f"SEED is {seed}: expected an integer >= 0.")
    words = [
        seed,
        *[zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in position],
    ]
    # The same numbers either way; an array of words is taken as it is, a list is taken apart number
    # by number, at twice the time.
    entropy = np.array(words, np.uint32) if min(words) >= 0 and max(words) < 2**32 else words
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_at(seed: int, *position: int | str) -> np.random.Generator:
    """Return a NumPy generator for one place in a run (see :func:`derive_seed`)."""
    return np.random.default_rng(derive_seed(seed, *position))


def seed_everything(seed: int, *position: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) for one place in a run.

    Called at the start of each iteration: torch's operators (dropout, randperm in a detector's
        sampling) draw from
    torch's global generator, and a resumed run must find it where the uninterrupted one had it.
    """
    value = derive_seed(seed, *position)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
