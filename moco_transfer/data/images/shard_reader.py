"""The images of one shard, or of a stream's shards one after the other, read through webdataset."""

from __future__ import annotations

import contextlib
import logging
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ...runtime.errors import InputError
from .folder import printable
from .shard_count import image_of, label_of
from .shard_index import ShardSet, is_url
from .shard_order import ShardBatches

logger = logging.getLogger(__name__)

_ATTEMPTS = (
    3  # openings of a shard by URL before a run ends; curl itself waits and tries again for minutes
)
_BROKEN = (OSError, tarfile.TarError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True)
class ShardImage:
    """An image as it lies in a shard, not decoded.

    Attributes:
        shard: Number of the shard.
        position: Number of the image in its shard.
        again: How often the stream has read its shards in this epoch already.
        name: Shard and member.
        data: The encoded image.
        label: Class number from ``.cls``, -1 without.
    """

    shard: int
    position: int
    again: int
    name: str
    data: bytes
    label: int


def read_stream(
    batches: ShardBatches, stream: int, epoch: int, *, skip: int = 0
) -> Iterator[ShardImage]:
    """Yield the images of a stream's shards in an epoch, over and over; shards that lie wholly in
    what is skipped are not opened.

    Args:
        batches: The order of the run.
        stream: Stream of this process.
        epoch: The epoch.
        skip: Images to leave out at the beginning.

    Raises:
        InputError: If a shard cannot be read, or holds more or fewer images than was counted.
    """
    shards, again = batches.shards, 0
    while True:
        found = 0
        for shard in map(int, batches.shards_of(stream, epoch, again)):
            if shards.is_counted and skip >= shards.counts[shard]:
                skip -= int(shards.counts[shard])
                found += int(shards.counts[shard])
                continue
            for position, (name, data, label) in enumerate(_counted(shards, shard)):
                found += 1
                if skip:
                    skip -= 1
                    continue
                yield ShardImage(shard, position, again, name, data, label)
        if not found:
            names = ", ".join(
                shards.urls[int(shard)] for shard in batches.shards_of(stream, epoch)[:3]
            )
            raise InputError(
                f"The shards {names} … hold no image. Name them such as 000017.jpg, or leave"
                " these shards out."
            )
        again += 1


def _counted(shards: ShardSet, shard: int) -> Iterator[tuple[str, bytes, int]]:
    url, read = shards.urls[shard], 0
    expected = int(shards.counts[shard]) if shards.is_counted else None
    for image in read_shard(url):
        read += 1
        if expected is not None and read > expected:
            break
        yield image
    if expected is not None and read != expected:
        more = "more" if read > expected else f"{read}"
        raise InputError(
            f"Shard {url} holds {more} images, the index says {expected}: it has changed or is"
            " cut off. Remove the index file, so that they are counted again, and start a new run."
        )


def read_shard(url: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield (shard and member, encoded image, label or -1) for each image of a shard, in its
    order.

    A shard by URL whose transfer breaks off is opened again, and what came already is left out.

    Raises:
        InputError: If it cannot be read to its end.
    """
    done = 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            for number, sample in enumerate(_images(url)):
                if number >= done:
                    yield sample
                    done = number + 1
            return
        except _BROKEN as error:
            reason = f"{type(error).__name__}: {error.args[0] if error.args else error}"
            if not is_url(url) or attempt == _ATTEMPTS:
                raise InputError(
                    f"Shard {url} cannot be read after {done} images ({reason}). Repair it or"
                    " leave it out, then --resume."
                ) from error
            logger.warning(
                "shard %s broke off after %d images (%s); opening it again", url, done, reason
            )
            time.sleep(attempt)


def _images(url: str) -> Iterator[tuple[str, bytes, int]]:
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander

    stream = gopen(url)
    try:
        # lcase=False keeps a name as it is in the shard, for messages.
        for sample in group_by_keys(
            tar_file_expander([{"url": url, "stream": stream}]), lcase=False
        ):
            extension = image_of(sample)
            if extension is not None:
                label = label_of(sample["cls"]) if "cls" in sample else None
                yield (
                    printable(f"{url}: {sample['__key__']}.{extension}"),
                    sample[extension],
                    -1 if label is None else label,
                )
    except BaseException:
        with contextlib.suppress(
            OSError
        ):  # a transfer that is no longer wanted ends with an error of its own
            stream.close()
        raise
    # raises if the program that fetched the shard failed, when tar itself saw a clean end
    stream.close()
