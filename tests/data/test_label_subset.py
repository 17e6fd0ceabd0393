"""A part of the labels: fixed, nested, from each set, and refused with other data.

Seen red under: a draw from the process's generator; images without a box counted; the missing
    image not looked for.
"""

from __future__ import annotations

import json

import pytest
from generated_images import CLASSES, write_voc_scenes

from moco_transfer.data.annotations.catalog import get_dataset, register_dataset
from moco_transfer.data.annotations.label_subset import (
    draw_label_subset,
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
    tenth, half = draw_label_subset(datasets, 0.1), draw_label_subset(datasets, 0.5)
    assert [len(ids) for ids in tenth.images.values()] == [4, 1] and [
        len(ids) for ids in half.images.values()
    ] == [20, 5]
    assert all(set(tenth.images[name]) < set(half.images[name]) for name in half.images)
    assert (
        draw_label_subset(datasets, 0.1) == tenth
        and draw_label_subset(datasets, 0.1, seed=1).images != tenth.images
    )
    whole = draw_label_subset(datasets, 1)
    assert (
        whole.count() == 49
        and str(datasets[0].records[0]["image_id"]) not in whole.images[datasets[0].name]
    )
    assert draw_label_subset(datasets, 0.001).count() == 2


def test_take__leaves_the_subsets_images_alone(datasets, tmp_path):
    subset = draw_label_subset(datasets, 0.1)
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
    subset = draw_label_subset(datasets, 0.1)
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
