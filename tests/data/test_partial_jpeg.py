"""A part of a JPEG: PIL's pixels inside it, or "not by me"; the same views, random numbers and
unreadable files with it and without.

Went red under: no margin beside the cut; the rest of the file not searched for its end; warnings
    passed over; the generator not set back
after a picture that cannot be read; a value's sign turned round; codes longer than the table's
refused; too few columns read.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.data.images.decode import UNREADABLE, decode_pixels, read_rgb
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.views import native
from moco_transfer.data.views.two_views import Views
from moco_transfer.data.views.view_batch import ViewMaker
from moco_transfer.runtime.seed import generator_at

needs_it = pytest.mark.skipif(
    not native.decodes_parts(),
    reason="the decoder of parts was not built: libjpeg-turbo's headers are missing",
)


def picture(rng, height, width, noise):
    """A soft picture with noise: small and large coefficients."""
    small = Image.fromarray(
        rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8)
    )
    pixels = np.asarray(small.resize((width, height), Image.BICUBIC), np.int16) + rng.integers(
        -noise, noise + 1, (height, width, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image, **settings):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def random_region(rng, height, width):
    (top, bottom), (left, right) = (
        np.sort(rng.choice(side + 1, 2, replace=False)).tolist() for side in (height, width)
    )
    return top, left, bottom - top, right - left


def decoded(data, region, buffer=None):
    """Return the pixels of a part, and whether it was decoded as one."""
    asked = []
    pixels = decode_pixels(
        data, buffer, lambda height, width: asked.append((height, width)) or region
    )
    top, left, height, width = region
    return pixels[top : top + height, left : left + width], bool(asked)


SETTINGS = [{"subsampling": s} for s in (0, 1, 2)] + [
    {"subsampling": 2, "optimize": True},
    {"subsampling": 1, "restart_marker_blocks": 3},
]
SETTINGS += [
    {"subsampling": 0, "restart_marker_rows": 1},
    {"subsampling": 2, "restart_marker_rows": 2},
]


@needs_it
@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items())
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decode_region__pils_pixels(settings, mode):
    rng = np.random.default_rng(3)
    if mode == "L":
        settings = {key: value for key, value in settings.items() if key != "subsampling"}
    for trial in range(24):
        height, width = (int(v) for v in rng.integers(1, 260, 2))
        data = encoded(
            picture(rng, height, width, (2, 20, 90)[trial % 3]).convert(mode),
            quality=int(rng.integers(2, 101)),
            **settings,
        )
        whole = np.asarray(read_rgb(io.BytesIO(data)))
        for region in [random_region(rng, height, width) for _ in range(6)] + [
            (0, 0, height, width),
            (height - 1, width - 1, 1, 1),
            (0, 0, 1, 1),
        ]:
            out = np.full((height, width, 3), 77, np.uint8)
            assert native.decode_region(data, region, out=out)
            top, left, rows, columns = region
            inside = np.s_[top : top + rows, left : left + columns]
            assert np.array_equal(out[inside], whole[inside]), (height, width, region)


@needs_it
def test_decode_region__other_kinds_are_left_to_others_with_their_pixels():
    rng = np.random.default_rng(4)
    image = picture(rng, 150, 170, 20)
    for data in (
        encoded(image, progressive=True),
        encoded(image.convert("CMYK")),
        encoded(image, keep_rgb=True),
    ):
        assert not native.decode_region(
            data, (20, 30, 50, 40), out=np.zeros((150, 170, 3), np.uint8)
        )
        assert np.array_equal(
            decoded(data, (20, 30, 50, 40))[0], np.asarray(read_rgb(io.BytesIO(data)))[20:70, 30:70]
        )
    plain = encoded(image)
    for region in (
        (-1, 0, 5, 5),
        (0, -1, 5, 5),
        (0, 0, 0, 5),
        (0, 0, 151, 5),
        (0, 166, 5, 5),
        (2**31 - 1, 0, 2**31 - 1, 1),
    ):
        assert not native.decode_region(plain, region, out=np.zeros((150, 170, 3), np.uint8))
    assert not native.decode_region(
        plain, (0, 0, 5, 5), out=np.zeros((149, 170, 3), np.uint8)
    )  # not the header's size
    with pytest.raises(ValueError, match="without gaps"):
        native.decode_region(plain, (0, 0, 5, 5), out=np.zeros((150, 170, 4), np.uint8)[:, :, :3])


@needs_it
@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "restarts", "grey"])
def test_decode_pixels__damaged_files_are_read_as_before_or_not_at_all(kind):
    """Bytes changed, and files cut off, at random: what one decodes the other does, to the same
    pixels; most where nothing but the end is missing.
    """
    rng = np.random.default_rng(5)
    image = picture(rng, 100, 120, 30)
    settings = {"4:4:4": {"subsampling": 0}, "restarts": {"restart_marker_blocks": 2}}.get(
        kind, {"subsampling": 2}
    )
    data = encoded(image.convert("L") if kind == "grey" else image, **settings)
    scan, parts, unreadable = data.index(b"\xff\xda") + 14, 0, 0
    for trial in range(150):
        damaged = bytearray(data)
        for place in rng.integers(scan if trial % 3 else 0, len(data), trial % 4):
            damaged[place] = (0xFF, int(rng.integers(256)))[trial % 2]
        damaged = bytes(
            damaged[: int(rng.integers(scan, len(data)))] if trial % 5 == 0 else damaged
        )
        region = (2, 3, int(rng.integers(1, 60)), 60)
        try:
            expected = np.asarray(read_rgb(io.BytesIO(damaged)))
        except UNREADABLE:
            unreadable += 1
            with pytest.raises(UNREADABLE):
                decoded(damaged, region)
            continue
        if expected.shape != (100, 120, 3):
            continue
        pixels, asked = decoded(damaged, region)
        assert np.array_equal(pixels, expected[2 : 2 + region[2], 3:63])
        parts += asked
    assert parts > 20 and unreadable > 20


@needs_it
@pytest.mark.parametrize("settings", [{}, {"restart_marker_rows": 2}], ids=["plain", "restarts"])
def test_decode_pixels__a_file_without_its_end_is_unreadable_also_where_only_its_first_rows_are_needed(
    settings,
):
    data = encoded(picture(np.random.default_rng(6), 200, 200, 30), **settings)
    assert decoded(data + b"\0" * 100, (0, 0, 20, 20))[1] and data.endswith(b"\xff\xd9")
    for end in (
        data[:-2],
        data[:-1],
        data[: len(data) // 2],
        data[:-2] + b"\xff",
        data[:-2] + b"\xff\xc4\x00\x01\xff\xd9",
    ):
        with pytest.raises(UNREADABLE):
            read_rgb(io.BytesIO(end))
        with pytest.raises(UNREADABLE):
            decoded(end, (0, 0, 20, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(7)
    for i in range(6):
        picture(rng, 150 + 7 * i, 220 - 9 * i, 20).save(
            root / f"{i}.jpg", quality=90, subsampling=i % 3
        )
    (root / "2.jpg").write_bytes((root / "2.jpg").read_bytes()[:-2])
    return root


@needs_it
def test_views__the_same_with_parts_and_without(folder, monkeypatch):
    """Also where a picture is unreadable after its views were drawn: the replacement's number comes
    from the same generator.
    """
    settings = {"recipe": "v2", "size": 48, "crop_scale": (0.2, 1.0), "seed": 0}
    places = [(epoch, index) for epoch in range(3) for index in range(6)]
    fast = Views(find_images(folder), pipeline="fast", **settings)
    with_parts = fast.__getitems__(places)
    reference = Views(find_images(folder), pipeline="reference", **settings).__getitems__(places)
    monkeypatch.setattr(native, "decodes_parts", lambda: False)
    without = fast.__getitems__(places)
    assert (
        with_parts["unreadable"] == without["unreadable"] == reference["unreadable"]
        and len(without["unreadable"]) >= 3
    )
    for name in ("views", "colours", "label", "index"):
        assert torch.equal(with_parts[name], without[name]), name
    assert torch.equal(with_parts["index"], reference["index"])


def test_view_maker__draws_anew_where_the_header_was_wrong(monkeypatch):
    """The generator goes back: the views are those of the pixels' size, whatever was asked before."""

    class Source:
        def decode(self, index, buffer, region):
            region(500, 400)
            return np.zeros((60, 70, 3), np.uint8)

    maker = ViewMaker("v2", 8, (0.2, 1.0), 2, "fast")
    drawn = maker.read(Source(), 0, generator_at(0, "x"))
    monkeypatch.setattr(Source, "decode", lambda *_: np.zeros((60, 70, 3), np.uint8))
    assert drawn.parameters == maker.read(Source(), 0, generator_at(0, "x")).parameters


def test_decode_pixels__without_the_decoder_of_parts(monkeypatch):
    monkeypatch.setattr(native, "_decoder", lambda: None)
    data = encoded(picture(np.random.default_rng(8), 90, 90, 20))
    pixels, asked = decoded(data, (5, 5, 20, 20))
    assert not asked and np.array_equal(pixels, np.asarray(read_rgb(io.BytesIO(data)))[5:25, 5:25])
