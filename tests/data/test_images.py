"""Images of every mode and files of every name.

Went red under: 16-bit values left to PIL; TypeError and others of PIL's own code let through; names
    that start with a dot listed; no check for
links that lead round; extensions in upper case left out; palettes converted directly; names pickled
whole for each worker that is started afresh.
"""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import default_loader

from moco_transfer.data.images.decode import UNREADABLE, read_rgb
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.images.image_source import Table, name_table
from moco_transfer.data.views.view_batch import ViewMaker, Views
from moco_transfer.runtime.errors import InputError


def gradient(height: int = 12, width: int = 20) -> np.ndarray:
    return (np.arange(height * width * 3).reshape(height, width, 3) * 5 % 256).astype(np.uint8)


_MODES = [
    ("RGB", "png"),
    ("L", "png"),
    ("1", "png"),
    ("CMYK", "jpg"),
    ("P", "gif"),
    ("LA", "png"),
    ("RGBA", "webp"),
]


@pytest.mark.parametrize(("mode", "extension"), _MODES)
def test_read_rgb__equals_torchvisions_loader(tmp_path, mode, extension):
    path = tmp_path / f"image.{extension}"
    Image.fromarray(gradient()).convert(mode).save(path)
    got = read_rgb(path)
    assert got.mode == "RGB" and np.array_equal(
        np.asarray(got), np.asarray(default_loader(str(path)))
    )


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_read_rgb__16_bits_keep_their_upper_8(tmp_path, extension):
    values = (np.arange(12 * 20, dtype=np.uint16) * 273).reshape(12, 20)
    path = tmp_path / f"grey.{extension}"
    if extension == "pgm":
        path.write_bytes(b"P5 20 12 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    expected = (values // 256).astype(np.uint8)
    assert np.array_equal(np.asarray(read_rgb(path)), np.stack([expected] * 3, axis=2))


def test_read_rgb__palette_with_transparency_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(gradient()).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes(range(256)))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "p.png")), expected)
    assert not recwarn.list


def test_read_rgb__exif_orientation_is_not_applied_as_in_the_official_code(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    Image.fromarray(gradient(12, 20)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_rgb(tmp_path / "phone.jpg").size == (20, 12)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0" + bytes(50)])
def test_read_rgb__damaged(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UNREADABLE):
        read_rgb(tmp_path / "x.jpg")


def test_read_rgb__float_pixels_have_no_range(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match="mode 'F' have no known range"):
        read_rgb(tmp_path / "depth.tif")


@pytest.mark.filterwarnings("ignore")
def test_read_rgb__whatever_damage_is_one_of_unreadable():
    """Random bytes changed in files of eight formats; nothing but UNREADABLE may come out
    (TypeError did, from a TIFF).
    """
    rng = np.random.default_rng(0)
    image, files = Image.fromarray(gradient(16, 16)), []
    for form, options in [
        ("JPEG", {}),
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("PPM", {}),
    ]:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        files.append(buffer.getvalue())
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1500):
        data = bytearray(files[rng.integers(len(files))])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(min(len(data), 120))] = rng.integers(256)
        try:
            read_rgb(io.BytesIO(bytes(data)))
            outcomes["read"] += 1
        except UNREADABLE:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes


@pytest.mark.parametrize(
    "error",
    [
        TypeError("'float' object cannot be interpreted as an integer"),
        KeyError(5),
        EOFError(),
        struct.error("unpack"),
    ],
)
def test_read_rgb__what_pil_lets_through_counts_as_damage(tmp_path, monkeypatch, error):
    """The TypeError came from a TIFF with changed bytes, once in 40,000; too seldom for the test
    above.
    """
    (tmp_path / "x.tif").write_bytes(b"")

    def leak(_):
        raise error

    monkeypatch.setattr(Image, "open", leak)
    with pytest.raises(ValueError, match=f"damaged image \\({type(error).__name__}"):
        read_rgb(tmp_path / "x.tif")


def save(path, shade: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


def test_find_images__names_of_every_kind(tmp_path):
    names = [
        "b/deep/er/x.JPG",
        "b/Bild mit Ümläut und 漢字.png",
        "a/new\nline.jpeg",
        "a/x.Tiff",
        "c/x.webp",
    ]
    for name in names:
        save(tmp_path / name)
    odd = os.fsencode(tmp_path / "c") + b"/latin1-\xfc.png"  # a name that is no UTF-8
    with open(odd, "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    for other in ("c/notes.txt", "c/._x.jpg", "c/.ipynb_checkpoints/x.jpg"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"no")
    folder = find_images(tmp_path)
    assert (
        sorted(folder.names)
        == sorted([*names, os.fsdecode(b"c/latin1-\xfc.png")])
        == list(folder.names)
    )
    assert folder.class_names == ("a", "b", "c") and folder.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [read_rgb(folder.path(i)).size for i in range(6)] == [(8, 8)] * 6
    assert folder.name(4).endswith("latin1-\\xfc.png") and folder.name(4).encode("utf-8")


def test_find_images__links_are_followed_but_not_round(tmp_path, caplog):
    save(tmp_path / "elsewhere" / "x.png")
    save(tmp_path / "root" / "a" / "y.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "z.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    assert list(find_images(tmp_path / "root").names) == ["a/y.png", "a/z.png", "b/x.png"]
    assert "a/up links to a folder that contains it" in caplog.text


def test_find_images__folder_that_cannot_be_listed__error(tmp_path, monkeypatch):
    save(tmp_path / "a" / "x.png")
    scandir = os.scandir

    def refuse(folder):  # permissions would not do: root may list everything
        if str(folder).endswith("a"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="Cannot list .*a"):
        find_images(tmp_path)


def test_views__zero_bytes_and_broken_links_are_replaced_and_named(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", shade=200)
    (tmp_path / "6.jpg").write_bytes(b"")
    (tmp_path / "7.jpg").symlink_to(tmp_path / "nowhere.jpg")
    views = Views(find_images(tmp_path), ViewMaker("supervised", 8, (0.2, 1.0)), seed=0)
    batch = views[[(0, i) for i in range(8)]]
    assert (
        set(batch["unreadable"]) == {str(tmp_path / "6.jpg"), str(tmp_path / "7.jpg")}
        and batch["given_up"] == 0
    )
    assert torch.equal(batch["views"][:, :, 0], torch.full((2, 8, 8, 8), 200, dtype=torch.uint8))
    assert batch["index"].tolist()[:6] == list(range(6)) and max(batch["index"].tolist()) < 6


def test_table__is_the_list_it_was_made_of():
    names = ["a", "", "ü/漢", os.fsdecode(b"\xff")]
    paths = name_table(names)
    assert (
        list(paths) == names
        and paths[-1] == names[-1]
        and paths[1:3] == names[1:3]
        and len(paths) == 4
    )
    with pytest.raises(IndexError):
        paths[4]


def test_table__survives_pickling():
    paths = name_table([f"n{i // 10:08d}/{i}.jpg" for i in range(100)])
    assert list(pickle.loads(pickle.dumps(paths))) == list(paths) and len(paths) == 100
    assert list(name_table([])) == []
    assert list(Table([b"a", b""], bytes)) == [b"a", b""]
