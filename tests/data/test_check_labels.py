"""check-data of semantic segmentation: what it counts, names and refuses; and that a run refuses
the same before it begins.

Seen red under: ignored pixels counted as a class; sizes not compared; a repeated fault as many
lines; masks of 0 and 255 let through; sparse sets refused by their sample.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.data.annotations.catalog import get_dataset, parse_dataset_flag
from moco_transfer.data.annotations.check import check_dataset, shared_images
from moco_transfer.data.annotations.label_subset import LabelDraw, take_label_subset
from moco_transfer.data.annotations.semantic.check import label_faults
from moco_transfer.data.annotations.semantic.labels import voc_palette

SHAPE = (24, 32)


def make_set(folder, name, labels, *, classes="sky,tree,road"):
    """Write label images (a dict by file name without suffix) and their images; register them."""
    root = folder / name
    for place in ("images", "labels"):
        (root / place).mkdir(parents=True)
    for seed, (stem, ids) in enumerate(labels.items()):
        rng = np.random.default_rng([len(name), seed])
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(coarse).save(root / "images" / f"{stem}.png")
        image = ids if isinstance(ids, Image.Image) else Image.fromarray(ids)
        image.save(root / "labels" / f"{stem}.png")
    return parse_dataset_flag(f"{name}=semantic:{root}/images:{root}/labels:{classes}")


def _labels(*values):
    ids = np.zeros(SHAPE, np.uint8)
    for column, value in enumerate(values):
        ids[:, 4 * column : 4 * column + 4] = value
    return ids


def test_check__counts_pixels_by_class(tmp_path):
    name = make_set(tmp_path, "mine", {"a": _labels(1, 255), "b": _labels(1, 1, 1)})
    report = check_dataset(name)
    assert report.is_usable and report.num_images == 2
    column, total = 4 * SHAPE[0], 2 * SHAPE[0] * SHAPE[1]
    assert report.labels.pixels == {"sky": total - 5 * column, "tree": 4 * column, "road": 0}
    assert report.labels.ignored == column
    assert report.labels.classes_of_images == [2, 2]
    text = report.text()
    assert "scored by mIoU" in text and f"tree {4 * column / (total - column):.2%}" in text
    assert "classes without a pixel: 1 (road)" in text


def _other_size(folder):
    Image.new("L", (30, 24)).save(folder / "labels" / "a.png")


def _colours(folder):
    for stem in "abc":
        pixels = np.full((*SHAPE, 3), (10, 20, 30), np.uint8)
        pixels[0, 0] = (1, 2, 3)
        Image.fromarray(pixels).save(folder / "labels" / f"{stem}.png")


def _unknown(folder):
    for stem in "ab":
        Image.fromarray(_labels(1, 3)).save(folder / "labels" / f"{stem}.png")


FAULTS = {
    "another size": (_other_size, ["32 x 24", "30 x 24", "labels/a.png"]),
    "colours": (_colours, ["2 colours", "(10, 20, 30)", "0 to 2", "3 label images"]),
    "unknown id": (_unknown, ["labels/a.png has the id 3", "0 to 2", "2 label images"]),
    "no label image": (lambda f: (f / "images" / "b.png").unlink(), ["1 of the 3", "labels/b.png"]),
    "damaged": (lambda f: (f / "labels" / "c.png").write_bytes(b"\x89PNG"), ["labels/c.png"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check__names_what_cannot_be_used(tmp_path, capsys, fault):
    make_set(tmp_path, "mine", {stem: _labels(1, 2) for stem in "abc"})
    FAULTS[fault][0](tmp_path / "mine")
    root = tmp_path / "mine"
    flag = f"mine=semantic:{root}/images:{root}/labels:sky,tree,road"
    assert main(["check-data", "--dataset", flag]) == 2
    shown = capsys.readouterr().out
    assert all(fact in shown for fact in FAULTS[fault][1]), shown
    assert shown.count("PROBLEM") == 1 and "NOT usable" in shown


def test_check__knows_masks_of_0_and_255(tmp_path):
    labels = {str(i): _labels(255, 0) for i in range(3)}
    name = make_set(tmp_path, "binary", labels, classes="background,cell")
    (problem,) = check_dataset(name).problems
    assert "255" in problem and "'background'" in problem
    dataset = get_dataset(name)
    (fault,) = label_faults(dataset.records, dataset.class_names)
    assert fault in problem
    Image.fromarray(_labels(1)).save(tmp_path / "binary" / "labels" / "2.png")
    assert check_dataset(name).is_usable
    # A run looks at some images alone, and at all of them before it refuses a set.
    sparse = [dataset.records[0]] * 50 + [dataset.records[2]] + [dataset.records[0]] * 50
    assert list(label_faults(sparse, dataset.class_names)) == []


def test_check__ignored_images_and_other_palettes(tmp_path):
    palette = Image.fromarray(_labels(1), "P")
    palette.putpalette(voc_palette()[[0, 15, 1]].tobytes())
    own = Image.fromarray(_labels(1, 2), "P")
    own.putpalette(bytes(range(9)))
    name = make_set(tmp_path, "mine", {"a": np.full(SHAPE, 255, np.uint8), "b": palette, "c": own})
    report = check_dataset(name)
    assert report.is_usable
    remarks = "\n".join(report.remarks)
    assert "is ignored: 1, for example" in remarks and "labels/a.png" in remarks
    assert "at other indices: 1, for example" in remarks and "labels/b.png" in remarks


def test_check__compares_two_sets(tmp_path):
    one = make_set(tmp_path, "first", {"a": _labels(1), "b": _labels(2)})
    two = make_set(tmp_path, "other", {"a": _labels(1)})
    image = (tmp_path / "first" / "images" / "b.png").read_bytes()
    (tmp_path / "other" / "images" / "a.png").write_bytes(image)
    found = "\n".join(shared_images([check_dataset(one), check_dataset(two)]))
    assert "first and other have 1 image(s) in common" in found
    assert "pixels in first and none in other: road." in found


def test_check__draws_sheet_and_histograms(tmp_path, capsys):
    make_set(tmp_path, "mine", {"a": _labels(1, 2)})
    root = tmp_path / "mine"
    flag = f"mine=semantic:{root}/images:{root}/labels:sky,tree,road"
    out = tmp_path / "sheets"
    assert main(["check-data", "--fast", "--dataset", flag, "--sheet", str(out)]) == 0
    names = sorted(file.name for file in out.iterdir())
    assert names == ["mine.png", "mine.svg", "mine_histograms.png"]


def test_subset__of_label_images(tmp_path):
    labels = {f"{i:02d}": _labels(1) for i in range(20)}
    dataset = get_dataset(make_set(tmp_path, "mine", labels))
    small, large = (LabelDraw(share).draw([dataset]) for share in (0.1, 0.5))
    assert (small.count(), large.count()) == (2, 10)
    assert set(small.images["mine"]) < set(large.images["mine"])
    (part,) = take_label_subset([dataset], small, "file")
    assert [record["image_id"] for record in part.records] == small.images["mine"]


def test_missing_files__say_how_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (problem,) = check_dataset("voc_2012_sem_seg_trainaug").problems
    assert "make-labels voc-aug" in problem
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / "cityscapes" / folder / "val" / "town").mkdir(parents=True)
    town = tmp_path / "cityscapes" / "leftImg8bit" / "val" / "town"
    Image.new("RGB", SHAPE).save(town / "town_000000_000019_leftImg8bit.png")
    (problem,) = check_dataset("cityscapes_fine_sem_seg_val").problems
    assert "make-labels cityscapes" in problem


def test_suggest__has_no_rules_for_label_images(tmp_path, capsys):
    make_set(tmp_path, "mine", {"a": _labels(1)})
    root = tmp_path / "mine"
    flag = f"mine=semantic:{root}/images:{root}/labels:sky,tree,road"
    assert main(["suggest", str(root / "images"), "--dataset", flag]) == 2
    assert "'mine'" in capsys.readouterr().err
