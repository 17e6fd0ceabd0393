"""The images of a run that cannot be read: each process finds its own, the run counts them all."""

from __future__ import annotations

import logging
from typing import Any

from ..runtime.distributed import all_gather_object, get_world_size, is_main_process
from ..runtime.errors import InputError

logger = logging.getLogger(__name__)


class UnreadableImages:
    """Paths of undecodable images.

    Args:
        num_images: Images in the data.
        max_share: Share of them beyond which the run fails.
        known: Paths found before a resume.

    Attributes:
        known: Paths known to this process.
    """

    def __init__(self, num_images: int, max_share: float, known: list[str]) -> None:
        self.num_images, self.max_share = num_images, max_share
        self.known = set(known)
        self._unshared: list[str] = []

    def note(self, batch: dict[str, Any]) -> None:
        """Note and log what of a batch could not be read.

        Args:
            batch: As ``data.views.view_batch.ViewBatch.finished`` returns it.

        Raises:
            InputError: If no readable image was found for a place in the batch, or, in one process,
                more are unreadable than allowed.
        """
        new = [path for path in dict.fromkeys(batch["unreadable"]) if path not in self.known]
        for path in new:
            self._add(path)
        self._unshared += new
        if batch["given_up"]:
            raise self._too_many()
        if get_world_size() == 1:
            self.share()

    def share(self) -> None:
        """Share the paths among the processes; process 0 logs what the others found. Collective.

        Raises:
            InputError: If more are unreadable than allowed; on all processes.
        """
        for path in sum(all_gather_object(self._unshared), []):
            if path not in self.known:
                self._add(path, log=is_main_process())
        self._unshared = []
        if len(self.known) > self.max_share * self.num_images:
            raise self._too_many()

    def _add(self, path: str, *, log: bool = True) -> None:
        self.known.add(path)
        if log:
            logger.warning("skipped unreadable image %s (%d so far)", path, len(self.known))

    def _too_many(self) -> InputError:
        return InputError(
            f"{len(self.known)} of {self.num_images} images cannot be read, more than"
            f" DATA.MAX_UNREADABLE {self.max_share:g} allows; the first is {min(self.known)}."
            " Repair or remove them, or raise DATA.MAX_UNREADABLE."
        )
