"""What DATA.ROOT may name, each told by what is there.

Went red under: a list's label split off at the first blank; paths always relative to the list; line
    numbers from 0; any class of a pickle
looked up; labels taken from behind the pixels; COCO's root
searched whole.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from moco_transfer.data.images.cifar10 import CIFAR10_CLASSES, HeldImages, read_cifar10
from moco_transfer.data.images.decode import read_rgb
from moco_transfer.data.images.folder import ImageFolder, read_list_file
from moco_transfer.data.images.sources import open_source
from moco_transfer.runtime.errors import InputError, MissingFileError


def save(path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


def test_list_file__paths_labels_comments_and_blanks(tmp_path):
    names = ["a/1.jpg", "b/two words.JPEG", "b/ümlaut 3.png"]
    for name in names:
        save(tmp_path / name)
    (tmp_path / "train.txt").write_text(
        "\ufeff# all of them\r\n\r\na/1.jpg 2\r\n  b/two words.JPEG   0\nb/ümlaut 3.png\t2\n",
        encoding="utf-8",
    )
    source = read_list_file(tmp_path / "train.txt")
    assert (
        list(source.names) == names
        and source.labels.tolist() == [2, 0, 2]
        and source.class_names == ("0", "1", "2")
    )
    assert read_rgb(source.content(1)).size == (8, 8)
    (tmp_path / "plain.txt").write_text("b/two words.JPEG\n" + str(tmp_path / "a" / "1.jpg") + "\n")
    plain = read_list_file(tmp_path / "plain.txt")
    assert (
        plain.class_names == ()
        and len(plain.labels) == 0
        and plain.path(1) == str(tmp_path / "a" / "1.jpg")
    )
    (tmp_path / "named.txt").write_text("a/1.jpg dog\nb/two words.JPEG cat\n")
    assert read_list_file(tmp_path / "named.txt").labels.tolist() == [1, 0]
    assert "2 images in 2 classes listed in" in read_list_file(tmp_path / "named.txt").describe()


def test_list_file__relative_to_data_root(tmp_path):
    save(tmp_path / "images" / "1.jpg")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("1.jpg\n")
    source = open_source(str(tmp_path / "images"), list_file=str(tmp_path / "lists" / "train.txt"))
    assert source.path(0) == str(tmp_path / "images" / "1.jpg")
    with pytest.raises(MissingFileError, match="line 1"):
        open_source(str(tmp_path / "lists" / "train.txt"))
    with pytest.raises(MissingFileError, match="none.txt"):
        open_source("", list_file=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "a.jpg\n\nmissing.jpg\nalso.jpg\n",
            r"list.txt, line 3: there is no image .*missing.jpg \(2 of 3 lines name none\)",
        ),
        ("a.jpg 1\nb.jpg\n", r"list.txt, line 2: b.jpg has no label, unlike line 1"),
        ("a.jpg\n# x\nb.jpg 1\n", r"list.txt, line 3: b.jpg has the label '1', unlike line 1"),
        ("a.jpg 1 extra\n", r"list.txt, line 1: there is no image"),
        (
            "a.jpg 0\nb.jpg 306000000\n",
            r"list.txt, line 2: label 306000000 is not the number of a class",
        ),
        ("# nothing\n\n", "lists no image"),
        ("a.jpg\n\0\0\1\n", "list.txt is a binary file"),
        (".\n", "line 1: there is no image"),
    ],
)
def test_list_file__bad_lines_are_named(tmp_path, content, sentence):
    save(tmp_path / "a.jpg")
    save(tmp_path / "b.jpg")
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_list_file(tmp_path / "list.txt")


def test_list_file__image_named_twice_counts_twice_and_is_said(tmp_path, caplog):
    save(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\na.jpg\n")
    assert len(read_list_file(tmp_path / "list.txt")) == 2
    assert "1 lines repeat" in caplog.text


def test_open_source__root_of_a_data_set_gives_its_training_images_alone(tmp_path):
    for name in (
        "coco/train2017/1.jpg",
        "coco/train2017/2.jpg",
        "coco/val2017/3.jpg",
        "coco/annotations/x.png",
    ):
        save(tmp_path / name)
    for name in (
        "VOC2007/JPEGImages/1.jpg",
        "VOC2007/SegmentationClass/1.png",
        "VOC2007/Annotations/x.png",
    ):
        save(tmp_path / name)
    for name in ("imagenet/train/a/1.jpg", "imagenet/train/b/1.jpg", "imagenet/val/a/2.jpg"):
        save(tmp_path / name)
    coco = open_source(str(tmp_path / "coco"))
    assert list(coco.names) == ["1.jpg", "2.jpg"] and coco.root.name == "train2017"
    assert open_source(str(tmp_path / "VOC2007")).root.name == "JPEGImages"
    assert open_source(str(tmp_path / "imagenet")).class_names == ("a", "b")
    assert open_source(str(tmp_path / "imagenet"), layout="folders").class_names == ("train", "val")


def test_open_source__name_of_a_data_set(make_voc, make_coco, tmp_path, monkeypatch):
    make_voc({"a": (9, 8, []), "b": (9, 8, [])}, "train", tmp_path / "VOC2007")
    make_voc({"b": (9, 8, [])}, "trainval", tmp_path / "VOC2007")
    json_file, images = make_coco([{"id": 1, "file_name": "1.jpg", "width": 9, "height": 8}], [])
    (tmp_path / "coco/annotations").mkdir(parents=True)
    json_file.rename(tmp_path / "coco/annotations/instances_minival2014.json")
    save(images / "of another part.jpg")
    images.rename(tmp_path / "coco/val2014")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    voc, coco = open_source("voc_2007_trainval"), open_source("coco_2014_minival")
    assert list(voc.names) == [str(tmp_path / "VOC2007/JPEGImages/b.jpg")] == [voc.path(0)]
    assert list(coco.names) == [str(tmp_path / "coco/val2014/1.jpg")] and coco.class_names == ()
    assert "1 images listed in coco_2014_minival" in coco.describe()
    with pytest.raises(MissingFileError, match="Set it to the folder that holds coco"):
        open_source("coco_2017_val")


def test_open_source__refuses(tmp_path):
    save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="DATA.ROOT is not set"):
        open_source("")
    with pytest.raises(MissingFileError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is one image"):
        open_source(str(tmp_path / "a.jpg"))
    with pytest.raises(InputError, match="DATA.NUM_IMAGES is 5, but there are 1 images"):
        open_source(str(tmp_path), num_images=5)


# --- CIFAR-10, made from the same 50 images ---


@pytest.fixture(scope="module")
def cifar_pixels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 50)


def python2_pickle(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """Write a batch with the opcodes that Python 2's cPickle wrote (protocol 2, str as
    SHORT_BINSTRING/BINSTRING).
    """

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value
            if len(value) < 256
            else b"T" + struct.pack("<i", len(value)) + value
        )

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + integer(0)
        + integer(1)
        + b"\x87R("
        + integer(3)
        + text(b"|")
        + b"NNN"
    )
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xff" + integer(0) + b"tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + integer(0)
        + b"\x85"
        + text(b"b")
        + b"\x87R("
    )
    array += (
        integer(1)
        + integer(len(pixels))
        + integer(3072)
        + b"\x86"
        + dtype
        + b"\x89"
        + text(pixels.tobytes())
        + b"tb"
    )
    numbers = b"](" + b"".join(integer(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"labels") + numbers + text(b"data") + array + b"u."


def test_python2_pickle__is_what_pickle_reads(cifar_pixels):
    pixels, labels = cifar_pixels
    batch = pickle.loads(python2_pickle(pixels, labels), encoding="bytes")
    assert (
        np.array_equal(batch[b"data"], pixels.reshape(50, 3072))
        and batch[b"labels"] == labels.tolist()
    )


def write_batches(root, pixels, labels):
    """Write five batches of ten."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i in range(5):
        part = slice(10 * i, 10 * i + 10)
        (folder / f"data_batch_{i + 1}").write_bytes(python2_pickle(pixels[part], labels[part]))
    return folder


def as_array(source, i):
    return np.asarray(read_rgb(source.content(i))).transpose(2, 0, 1)


def test_cifar10__batches_in_a_folder_and_in_an_archive(tmp_path, cifar_pixels):
    pixels, labels = cifar_pixels
    folder = write_batches(tmp_path / "py", pixels, labels)
    with tarfile.open(tmp_path / "py.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    for root in (tmp_path / "py", folder, tmp_path / "py.tar.gz"):
        source = open_source(str(root))
        assert isinstance(source, HeldImages)
        assert source.class_names == CIFAR10_CLASSES and "50 images" in source.describe()
        assert source.labels.tolist() == labels.tolist()
        assert np.array_equal([as_array(source, i) for i in range(50)], pixels)


def test_cifar10__class_folders(tmp_path, cifar_pixels):
    pixels, _ = cifar_pixels
    for i in range(50):
        split = "train" if i < 40 else "test"
        path = tmp_path / "c" / split / CIFAR10_CLASSES[i % 10] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i].transpose(1, 2, 0)).save(path)
    source = open_source(str(tmp_path / "c"))
    assert isinstance(source, ImageFolder) and source.class_names == CIFAR10_CLASSES
    assert source.labels.tolist() == np.repeat(range(10), 4).tolist()
    assert np.array_equal(as_array(source, 1), pixels[10])
    assert len(read_cifar10(tmp_path / "c", split="test")) == 10
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(tmp_path / "c", ".")
    with pytest.raises(InputError, match="Unpack it"):
        open_source(str(tmp_path / "c.tar"))


class _Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_cifar10__pickle_runs_nothing(tmp_path, cifar_pixels):
    folder = write_batches(tmp_path, *cifar_pixels)
    batch = folder / "data_batch_3"
    batch.write_bytes(pickle.dumps({b"data": _Bomb(tmp_path / "bomb"), b"labels": [1]}, protocol=2))
    sentence = r"data_batch_3 is a pickle that asks for '\w+.mkdir'.*nothing in it was run"
    with pytest.raises(InputError, match=sentence):
        open_source(str(tmp_path))
    assert not (tmp_path / "bomb").exists()


def test_cifar10__damaged(tmp_path, cifar_pixels):
    pixels, labels = cifar_pixels
    folder = write_batches(tmp_path / "py", pixels, labels)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder)
    (tmp_path / "cut.tar.gz").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match="cut.tar.gz cannot be read"):
        open_source(str(tmp_path / "cut.tar.gz"), layout="cifar10")
    batch = folder / "data_batch_3"
    batch.write_bytes(python2_pickle(pixels[:10], labels[:10] * 0 + 11))
    with pytest.raises(InputError, match="a label is outside 0 to 9"):
        open_source(str(tmp_path / "py"))
    batch.write_bytes(b"\x80\x02}.")
    with pytest.raises(InputError, match="data_batch_3 is not a batch"):
        open_source(str(tmp_path / "py"))
    batch.unlink()
    with pytest.raises(MissingFileError, match="data_batch_3"):
        open_source(str(tmp_path / "py"))
