"""A part of the labels: fixed, nested, from each set, and refused with other data.

Seen red under: a draw from the process's generator; images without a box counted; the missing
    image not looked for; crowd regions counted as objects; each number of shots drawn afresh, so
    that they are not nested; shots of each data set alone; a list of images that was edited taken.
"""

from __future__ import annotations

import hashlib
import json
import random
from types import SimpleNamespace

import pytest
from generated_images import CLASSES, write_voc_scenes

from moco_transfer.data.annotations.catalog import get_dataset, register_dataset
from moco_transfer.data.annotations.label_subset import (
    LabelDraw,
    read_label_subset,
    take_label_subset,
    title_of,
    write_label_subset,
)
from moco_transfer.runtime.errors import InputError, MissingFileError


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    sets = []
    for number, count in enumerate((40, 10)):
        root = tmp_path_factory.mktemp(f"part{number}")
        write_voc_scenes(root, splits={"train": count}, size=48, seed=number)
        name = f"label_subset_{number}"
        register_dataset(name, "voc", root=str(root), split="train", class_names=CLASSES)
        sets.append(get_dataset(name))
    # One image without any box: it is no labelled image.
    sets[0].records[0]["annotations"].clear()
    return sets


def test_draw__shares_are_nested_and_the_same_each_time(datasets):
    tenth, half = LabelDraw(0.1).draw(datasets), LabelDraw(0.5).draw(datasets)
    assert [len(ids) for ids in tenth.images.values()] == [4, 1] and [
        len(ids) for ids in half.images.values()
    ] == [20, 5]
    assert all(set(tenth.images[name]) < set(half.images[name]) for name in half.images)
    assert (
        LabelDraw(0.1).draw(datasets) == tenth
        and LabelDraw(0.1, seed=1).draw(datasets).images != tenth.images
    )
    whole = LabelDraw(1).draw(datasets)
    assert (
        whole.count() == 49
        and str(datasets[0].records[0]["image_id"]) not in whole.images[datasets[0].name]
    )
    assert LabelDraw(0.001).draw(datasets).count() == 2


def test_take__leaves_the_subsets_images_alone(datasets, tmp_path):
    subset = LabelDraw(0.1).draw(datasets)
    write_label_subset(tmp_path / "s.json", subset)
    read = read_label_subset(tmp_path / "s.json")
    assert read.images == subset.images and len(read.sha256) == 64
    parts = take_label_subset(datasets, read, "s.json")
    assert [[str(r["image_id"]) for r in part.records] for part in parts] == list(
        subset.images.values()
    )
    assert parts[0].class_names == datasets[0].class_names and len(datasets[0].records) == 40
    assert (
        title_of(datasets[0].name, read) == f"{datasets[0].name} (10 % of its labelled images: 4)"
    )


def test_take__error(datasets, tmp_path):
    subset = LabelDraw(0.1).draw(datasets)
    with pytest.raises(
        InputError,
        match=(
            "s.json was drawn from label_subset_0, label_subset_1, but DATASETS.TRAIN is"
            " label_subset_1"
        ),
    ):
        take_label_subset(datasets[1:], subset, "s.json")
    subset.images[datasets[0].name][0] = "nobody"
    with pytest.raises(InputError, match="1 of .*'nobody'.*'label_subset_0'"):
        take_label_subset(datasets, subset, "s.json")


def test_read__error(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.json does not exist"):
        read_label_subset(tmp_path / "nowhere.json")
    for text, message in (
        ("{", "is not json"),
        (json.dumps({"format": "x"}), "format is 'x'"),
        ("[]", "format is 'list'"),
    ):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_label_subset(tmp_path / "s.json")


def add_image(number: int, objects: str, crowd: str = "") -> dict:
    """Return a record with objects of the classes ``a``, ``b``, ``c``."""
    boxes = [(name, 0) for name in objects] + [(name, 1) for name in crowd]
    annotations = [
        {"bbox": [0, 0, 9, 9], "category_id": "abc".index(name), "iscrowd": is_crowd}
        for name, is_crowd in boxes
    ]
    return {"image_id": number, "annotations": annotations}


def as_sets(*parts: list[dict], kind: str = "coco") -> list[SimpleNamespace]:
    return [
        SimpleNamespace(name=f"part{i}", kind=kind, class_names=("a", "b", "c"), records=records)
        for i, records in enumerate(parts)
    ]


def count_in(sets, subset) -> dict[str, int]:
    """Count objects of each class in a subset, without the code under test."""
    counts = dict.fromkeys("abc", 0)
    for part in sets:
        for record in part.records:
            if str(record["image_id"]) in subset.images[part.name]:
                for annotation in record["annotations"]:
                    counts["abc"[annotation["category_id"]]] += not annotation["iscrowd"]
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_shots__are_at_least_k_of_each_class_and_nested(seed):
    generator = random.Random(seed)
    parts = [
        [add_image(i, "a" * generator.randint(0, 3) + "b" * generator.randint(0, 1), "c" * (i % 3))
         for i in range(first, first + 60)]
        for first in (0, 100)
    ]  # fmt: skip
    parts[1][0]["annotations"] += add_image(0, "ccc")["annotations"]  # all there are of c
    sets = as_sets(*parts)
    subsets = {k: LabelDraw(None, k, seed).draw(sets) for k in (1, 5, 10)}
    for k, subset in subsets.items():
        assert subset.objects == count_in(sets, subset)
        assert subset.objects["a"] >= k and subset.objects["b"] >= k and subset.objects["c"] == 3
        # No image is superfluous: the last object that is needed of b is in the last image.
        assert subset.count() <= 2 * k + 1
        assert LabelDraw(None, k, seed).draw(sets) == subset
    images = [{(name, i) for name in s.images for i in s.images[name]} for s in subsets.values()]
    assert images[0] < images[1] < images[2]
    assert LabelDraw(None, 5, seed + 1).draw(sets).images != subsets[5].images
    assert not subsets[1].remarks and "c 3" in subsets[10].remarks[0]
    entry = subsets[5].describe()
    assert (entry["shots"], entry["pictures"]) == (5, subsets[5].count())


def test_shots__error():
    with pytest.raises(InputError, match="'part0' has labels of pixels alone"):
        LabelDraw(None, 1).draw(as_sets([add_image(0, "a")], kind="semantic"))
    for amount in ({"fraction": None}, {"shots": 3}, {"fraction": 0.0}):
        with pytest.raises(InputError):
            LabelDraw(**amount)
    with pytest.raises(InputError, match="at least 1, got 0"):
        LabelDraw(None, 0)


def test_read__refuses_another_amount_and_an_edited_list(datasets, tmp_path):
    file, subset = tmp_path / "s.json", LabelDraw(None, 2).draw(datasets)
    write_label_subset(file, subset)
    assert read_label_subset(file, LabelDraw(None, 2)).sha256 == subset.sha256
    assert hashlib.sha256(file.read_bytes()).hexdigest() == subset.sha256
    for other in (LabelDraw(None, 3), LabelDraw(0.5), LabelDraw(None, 2, seed=1)):
        with pytest.raises(InputError, match="s.json holds 2 objects of each class, seed 0"):
            read_label_subset(file, other)
    data = json.loads(file.read_text())
    data["images"][datasets[0].name].pop()
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="s.json: its images are not those"):
        read_label_subset(file)
    del data["sha256_of_images"]  # a list of one's own
    file.write_text(json.dumps(data))
    assert read_label_subset(file).images == data["images"]
    del data["shots"]
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="s.json does not state how much"):
        read_label_subset(file)
