"""Annotations that can be read and are not what was meant, named by check-data and before training.

Seen red under: normalised boxes called usable; a hash that a second compression changes; the shares
of classes compared as counts.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pycocotools import mask as mask_api

from moco_transfer.cli.main import main
from moco_transfer.data.annotations import catalog
from moco_transfer.data.annotations.catalog import register_dataset
from moco_transfer.data.annotations.check import check_dataset, shared_images
from moco_transfer.data.annotations.plausible import near_pairs, perceptual_hash
from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.runtime.errors import InputError

WIDTH, HEIGHT = 96, 72


def scene(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT)).filter(ImageFilter.GaussianBlur(2))


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """Register a COCO data set of boxes [x, y, w, h] by image; returns its name."""
    monkeypatch.setattr(catalog, "_OWN", {})

    def make(name: str, boxes: list[list], *, images=None, more=None, categories=None) -> str:
        folder = tmp_path / name
        folder.mkdir()
        names = ["a", "b"]
        content: dict = {"images": [], "annotations": []}
        content["categories"] = [{"id": i, "name": n} for i, n in enumerate(names, 1)]
        for number, of_image in enumerate(boxes, 1):
            file = f"{number}.png"
            (images[number - 1] if images else scene(number)).save(folder / file)
            size = {"width": WIDTH, "height": HEIGHT}
            content["images"].append({"id": number, "file_name": file, **size})
            for box in of_image:
                at = len(content["annotations"])
                category = categories[at] if categories else 1 + at % 2
                annotation = {"id": at + 1, "image_id": number, "category_id": category}
                annotation |= {"bbox": box, "area": box[2] * box[3], **(more or {})}
                content["annotations"].append(annotation)
        (folder / "a.json").write_text(json.dumps(content))
        register_dataset(name, "coco", json_file=folder / "a.json", image_root=folder)
        return name

    return make


def test_normalised_boxes__are_a_problem_with_the_cure(data_set):
    name = data_set("unit", [[[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]], [[0, 0, 1, 0.25]]])
    (problem,) = check_dataset(name).problems
    assert "3 boxes look normalised" in problem and "multiply" in problem and "a.json" in problem


def test_normalised_boxes__stop_training_before_it_starts(data_set, tmp_path):
    name = data_set("unit", [[[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]], [[0, 0, 1, 0.25]]])
    sets = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    words = [*sets, "MODEL.ROI_HEADS.NUM_CLASSES", "2", "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"a\.json: all 3 boxes look normalised"):
        plan_finetuning(Request("own_R_18_FPN_small", words, engine="torchvision", force=True))
    assert not (tmp_path / "out").exists()


def test_corners_for_sizes__are_a_problem(data_set):
    corners = [[[30, 30, 60, 60], [40, 20, 90, 70]], [[50, 30, 80, 50], [20, 40, 90, 60]]]
    (problem,) = check_dataset(data_set("corners", corners)).problems
    assert "corners [x0, y0, x1, y1]" in problem and "4 of them" in problem


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [3, 2, 40, 30], [0, 0, WIDTH, HEIGHT]])
def test_plain_boxes__are_no_problem(data_set, box):
    report = check_dataset(data_set("plain", [[[60, 40, 30, 30], box], [box]]))
    assert report.is_usable and not any("normalised" in remark for remark in report.remarks)


def test_boxes_of_another_scale_and_masks_apart__are_remarked(data_set):
    box = [10, 10, 20, 20]
    mask = {"segmentation": [[60, 50, 70, 50, 70, 60]]}
    remarks = check_dataset(data_set("half", [[box] * 10, [box] * 10], more=mask)).remarks
    assert any("upper left 31% x 42%" in remark for remark in remarks)
    assert any("masks that lie outside of their box: 20" in remark for remark in remarks)


def test_versions_of_a_photograph_in_two_sets__are_warned_of(data_set, tmp_path):
    scene(7).resize((48, 36)).resize((WIDTH, HEIGHT)).save(tmp_path / "again.jpg", quality=40)
    again, box = Image.open(tmp_path / "again.jpg"), [[10, 10, 50, 50]]
    one = check_dataset(data_set("one", [box, box], images=[scene(7), scene(8)]))
    other = check_dataset(data_set("other", [box, box], images=[scene(9), again]))
    (sentence,) = shared_images([one, other])
    assert "1 image(s) of one look like" in sentence
    assert "one/1.png" in sentence and "other/2.png" in sentence


def test_near_pairs__scenes_without_structure_are_not_compared():
    plain = perceptual_hash(np.full((40, 40, 3), 90, np.uint8))
    assert plain == 0 and near_pairs([plain], [plain]) == []
    hashes = [perceptual_hash(np.asarray(scene(3).resize(size))) for size in [(90, 80), (45, 40)]]
    assert near_pairs(hashes[:1], hashes[1:]) == [(0, 0)]


def test_class_shares_that_differ_tenfold__are_warned_of(data_set):
    box = [60, 40, 30, 30]
    one = check_dataset(data_set("one", [[box] * 40], categories=[1] * 38 + [2] * 2))
    other = check_dataset(data_set("other", [[box] * 40], categories=[1] * 3 + [2] * 37))
    sentences = [s for s in shared_images([one, other]) if "tenfold" in s]
    assert len(sentences) == 1 and "a (95.0% and 7.5%)" in sentences[0]
    assert "b (5.0% and 92.5%)" in sentences[0]


def test_check_data__draws_what_a_run_would_see(data_set, tmp_path, capsys, monkeypatch):
    name = data_set("seen", [[[10, 10, 50, 40], [5, 5, 20, 20]], [[30, 20, 60, 50]]])
    assert main(["check-data", name, "--sheet", str(tmp_path / "sheets")]) == 0
    sheet = Image.open(tmp_path / "sheets" / "seen.png")
    assert Image.open(tmp_path / "sheets" / "seen_histograms.png").width > 900
    assert sheet.height > 2 * HEIGHT
    printed = capsys.readouterr().out
    # areas 2000, 400 and 3000: square roots 44.7, 20 and 54.8
    assert "median 45" in printed and "boxes in an image: median 2, most 2" in printed


def test_mask_in_run_length_form__apart_from_its_box(data_set):
    there = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    there[50:70, 60:90] = 1
    rle = mask_api.encode(there)
    more = {"segmentation": rle | {"counts": rle["counts"].decode()}}
    box = [10, 10, 20, 20]
    apart = check_dataset(data_set("apart", [[box], [[55, 45, 30, 20]]], more=more)).remarks
    assert [r for r in apart if "masks that lie outside of their box: 1," in r]


@pytest.mark.parametrize("level", [0, 128])
def test_images_of_one_colour__are_remarked(data_set, level):
    plain = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
    plain[::2, ::2] += 2  # what compression leaves
    black, box = Image.fromarray(plain), [[10, 10, 50, 50]]
    remarks = check_dataset(data_set("all", [box, box], images=[black, black])).remarks
    assert any("images of one colour: 2 of 2" in r and "all/1.png" in r for r in remarks)
    remarks = check_dataset(data_set("some", [box, box], images=[black, scene(3)])).remarks
    assert any("images of one colour: 1 of 2" in r for r in remarks)


@pytest.mark.parametrize("crowd", [None, 1])
def test_no_box__is_not_usable(data_set, crowd):
    boxes = [[[10, 10, 50, 50]], []] if crowd else [[], []]
    name = data_set("nothing", boxes, more={"iscrowd": 1})
    assert main(["check-data", name]) == 2
