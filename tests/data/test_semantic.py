"""The reader of semantic segmentation: which label image belongs to which image, and what the
pixels of a label image mean.

Seen red under: ids of 2-bit grey as PIL scales them; grey values for VOC's colours; an ending that
names share left on; classes in the file's order after :classes=; unknown ids let through.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from moco_transfer.data.annotations.catalog import align_classes, get_dataset, parse_dataset_flag
from moco_transfer.data.annotations.semantic.labels import read_ids, read_labels, voc_palette
from moco_transfer.data.annotations.semantic.reader import read_semantic
from moco_transfer.runtime.errors import InputError, MissingFileError

IDS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)


def write_pairs(folder, names, *, image="{}.jpg", label="{}.png", ids=IDS):
    """Write an image and a label image of each name; return their folders."""
    for name in names:
        for kind, pattern, pixels in (("images", image, 0), ("labels", label, ids)):
            file = folder / kind / pattern.format(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                pixels = np.random.default_rng(len(name)).integers(0, 256, (*ids.shape, 3))
            Image.fromarray(np.asarray(pixels, np.uint8)).save(file)
    return folder / "images", folder / "labels"


def _palette(ids):
    image = Image.fromarray(ids, "P")
    image.putpalette(voc_palette().tobytes())
    return image


FORMS = {
    "grey": Image.fromarray,
    "palette": _palette,
    "16 bits": lambda ids: Image.fromarray(ids.astype(np.uint16)),
    "equal channels": lambda ids: Image.fromarray(np.repeat(ids[..., None], 3, axis=2)),
    "VOC's colours": lambda ids: Image.fromarray(voc_palette()[ids]),
    "grey and alpha": lambda ids: Image.merge("LA", [Image.fromarray(ids)] * 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids__of_each_form_with_one_meaning(tmp_path, form):
    FORMS[form](IDS).save(tmp_path / "a.png")
    ids = read_ids(tmp_path / "a.png", 3, voc_colours=True)
    assert ids.dtype == np.uint8 and np.array_equal(ids, IDS)


def test_ids__of_vocs_colours_only_if_the_classes_are_vocs(tmp_path):
    images, labels = write_pairs(tmp_path, "a")
    Image.fromarray(voc_palette()[IDS]).save(labels / "a.png")
    names = get_dataset("voc_2012_sem_seg_val").class_names
    (record,) = read_semantic(images, labels, names).records
    assert np.array_equal(read_labels(record), IDS)
    (record,) = read_semantic(images, labels, ("x", "y", "z")).records
    with pytest.raises(InputError, match=r"4 colours.*\(128, 0, 0\)"):
        read_labels(record)


def test_ids__of_packed_bits_are_the_values_of_the_file(tmp_path):
    ids = np.array([[0, 1, 2, 3]], np.uint8)
    image = Image.fromarray(ids, "P")
    image.putpalette(voc_palette().tobytes())
    image.save(tmp_path / "palette.png", bits=2)
    assert np.array_equal(read_ids(tmp_path / "palette.png", 4), ids)
    data = bytearray((tmp_path / "palette.png").read_bytes())
    data[25] = 0  # the same bits as grey; the sum of the header follows
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "grey.png").write_bytes(data)
    assert np.array_equal(read_ids(tmp_path / "grey.png", 4), ids)
    Image.fromarray(np.array([[0, 1]], bool)).save(tmp_path / "bits.png")
    assert read_ids(tmp_path / "bits.png", 2).tolist() == [[0, 1]]


WRONG = {
    "unknown id": (lambda f: Image.fromarray(IDS + np.uint8(1)).save(f), ["the id 3", "0 to 2"]),
    "16 bits": (lambda f: Image.fromarray(IDS.astype(np.uint16) * 300).save(f), ["id 300"]),
    "colours": (
        lambda f: Image.fromarray(np.full((2, 3, 3), (9, 8, 7), np.uint8)).save(f),
        ["(9, 8, 7)", "0 to 2"],
    ),
    "jpeg": (lambda f: Image.fromarray(IDS).save(f, format="JPEG"), ["JPEG", "PNG"]),
    "damaged": (lambda f: f.write_bytes(b"\x89PNG\r\n\x1a\n123"), ["decoded"]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_ids__names_what_is_no_label_image(tmp_path, fault):
    write, facts = WRONG[fault]
    write(tmp_path / "a.png")
    with pytest.raises(InputError) as refusal:
        read_ids(tmp_path / "a.png", 3)
    assert all(fact in str(refusal.value) for fact in [str(tmp_path / "a.png"), *facts])


def test_voc_palette__is_that_of_the_real_masks(shared_data):
    for file in (shared_data / "VOC2012" / "SegmentationClass").glob("*.png"):
        with Image.open(file) as image:
            theirs = np.reshape(image.getpalette(), (-1, 3))
        assert np.array_equal(voc_palette()[: len(theirs)], theirs)


REAL = {
    "voc_2012_sem_seg_train": (43, 21),
    "voc_2012_sem_seg_val": (20, 21),
    "cityscapes_fine_sem_seg_train": (24, 19),
    "cityscapes_fine_sem_seg_val": (14, 19),
}


@pytest.mark.parametrize("name", REAL)
def test_real_images__have_labels_of_their_size(shared_data, monkeypatch, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    dataset = get_dataset(name)
    assert (len(dataset.records), len(dataset.class_names)) == REAL[name]
    for record in dataset.records:
        labels, theirs = read_labels(record), np.asarray(Image.open(record["sem_seg_file_name"]))
        assert labels.dtype == np.int64 and np.array_equal(labels, theirs)
        with Image.open(record["file_name"]) as image:
            assert image.size == labels.shape[::-1]


LAYOUTS = {
    "same name": ("{}.jpg", "{}.png"),
    "an ending of the labels": ("{}.jpg", "{}_mask.png"),
    "an ending of both": ("{}_sat.jpg", "{}_mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs__are_found_by_name(tmp_path, layout):
    names = ["cam1/a1", "cam1/a2", "cam2/a1"]
    roots = write_pairs(tmp_path, names, image=LAYOUTS[layout][0], label=LAYOUTS[layout][1])
    contents = read_semantic(*roots, ("x", "y", "z"))
    assert [r["image_id"] for r in contents.records] == names
    for record in contents.records:
        assert record["image_id"] in record["file_name"]
        assert record["image_id"] in record["sem_seg_file_name"]
        assert (record["height"], record["width"]) == IDS.shape


def test_pairs__of_a_list_in_its_order(tmp_path):
    images, labels = write_pairs(tmp_path, "abc")
    (tmp_path / "some.txt").write_text("c\na\n")
    flag = f"own=semantic:{images}:{labels}:x,y,z:list_file={tmp_path}/some.txt"
    assert [r["image_id"] for r in get_dataset(parse_dataset_flag(flag)).records] == ["c", "a"]
    (labels / "a.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of the 2 images.*a\.png"):
        read_semantic(images, labels, ("x", "y", "z"), tmp_path / "some.txt")


def test_pairs__missing_ones_are_named(tmp_path):
    images, labels = write_pairs(tmp_path, ["a", "b", "c"])
    (labels / "a.png").unlink()
    contents = read_semantic(images, labels, ("x", "y", "z"))
    assert len(contents.records) == 2 and "a.jpg" in contents.remarks[0]
    (images / "b.jpg").unlink()
    with pytest.raises(MissingFileError, match=r"1 of the 2 label images .*b\.png"):
        read_semantic(images, labels, ("x", "y", "z"))


def test_classes__chosen_merged_and_aligned_by_name(tmp_path):
    roots = ":".join(map(str, write_pairs(tmp_path, "a")))
    one = parse_dataset_flag(f"one=semantic:{roots}:x,y,z:classes=z,rest=x+y")
    (record,) = get_dataset(one).records
    assert get_dataset(one).class_names == ("z", "rest")
    assert read_labels(record).tolist() == [[1, 1, 0], [0, 1, 255]]
    some = get_dataset(parse_dataset_flag(f"some=semantic:{roots}:x,y,z:classes=y,z"))
    assert read_labels(some.records[0]).tolist() == [[255, 0, 1], [1, 0, 255]]
    other = parse_dataset_flag(f"other=semantic:{roots}:x,y,z:classes=rest=x+y,z")
    _, aligned = align_classes([get_dataset(one), get_dataset(other)])
    assert read_labels(aligned.records[0]).tolist() == [[1, 1, 0], [0, 1, 255]]
    first = parse_dataset_flag(f"first=semantic:{roots}:x,y,z")
    second = parse_dataset_flag(f"second=semantic:{roots}:z,x,y")
    _, aligned = align_classes([get_dataset(first), get_dataset(second)])
    assert aligned.class_names == ("x", "y", "z")
    assert read_labels(aligned.records[0]).tolist() == [[2, 0, 1], [1, 0, 255]]


def test_classes__are_two_or_more_different_names(tmp_path):
    for classes in ("x", "x,x", ",".join(f"c{i}" for i in range(256))):
        with pytest.raises(InputError, match="class_names"):
            parse_dataset_flag(f"own=semantic:{tmp_path}:{tmp_path}:{classes}")
