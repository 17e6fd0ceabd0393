"""The check before a run: all problems at once, counts, and the exit status.

Seen red under: only the first problem; crowd regions counted as boxes; sizes compared without EXIF;
status 0 whatever was found; headers only; crowd or class ignored in repeats; shared images not
named; masks not checked; the user's NUM_CLASSES overruled; area of VOC boxes not counted; no view
drawn; a batch of one image planned.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from moco_transfer.cli import main
from moco_transfer.config import load_pretrain_config
from moco_transfer.config.pretrain_schema import PRETRAIN_DEFAULTS
from moco_transfer.data import register_dataset
from moco_transfer.data.annotations import catalog
from moco_transfer.data.annotations.check import PRETRAINING_BATCH, check_dataset
from moco_transfer.data.views import view_batch
from moco_transfer.pretrain.plan import plan_pretrain
from moco_transfer.runtime.errors import InputError


def test_check_dataset__counts_a_good_voc_set(make_voc):
    root = make_voc(
        {"a": (40, 30, [("dog", (2, 2, 9, 9), 0), ("dog", (2, 3, 9, 9), 1)]), "b": (41, 30, [])}
    )
    register_dataset("mine", "voc", root=root, split="train", class_names=("dog", "cat"))
    report = check_dataset("mine")
    assert report.is_usable
    assert (report.num_images, report.num_boxes, report.boxes_of_class) == (
        2,
        2,
        {"dog": 2, "cat": 0},
    )
    absent, difficult = report.remarks
    assert "1 (cat)" in absent and "difficult boxes: 1" in difficult
    assert report.metric == "VOC AP by the area under the curve"
    assert report.left_out["images_without_boxes"] == 1
    text = report.text()
    assert text.startswith("mine: images: 2, boxes: 2, classes: 2, scored by VOC AP")
    assert "images without a box" in text
    last = text.splitlines()[-1]
    assert last.startswith("  usable ") and "DATA.BATCH_SIZE_TOTAL at most 2" in last
    assert "no image was opened" in check_dataset("mine", open_images=False).text()


def test_check_dataset__usable_is_so_for_pre_training(make_voc, tmp_path):
    assert PRETRAIN_DEFAULTS["DATA"]["BATCH_SIZE_TOTAL"] == PRETRAINING_BATCH
    root = make_voc({name: (40, 30, [("dog", (2, 2, 9, 9), 0)]) for name in "abc"})
    register_dataset("mine", "voc", root=root, split="train", class_names=("dog",))
    assert "at most 3" in check_dataset("mine").text()
    settings = ["DATA.ROOT", "mine", "OUTPUT_DIR", str(tmp_path), "TRAIN.DEVICE", "cpu"]
    for batch in ("1", "2", "3", "4"):
        cfg = load_pretrain_config("demo_moco", [*settings, "DATA.BATCH_SIZE_TOTAL", batch])
        if batch in ("2", "3"):
            assert len(plan_pretrain(cfg).source) == 3
            continue
        with pytest.raises(InputError, match="DATA.BATCH_SIZE_TOTAL"):
            plan_pretrain(cfg)


def test_check_dataset__tries_what_pre_training_does(make_voc, monkeypatch):
    root = make_voc({name: (40, 30, [("dog", (2, 2, 9, 9), 0)]) for name in "abc"})
    register_dataset("mine", "voc", root=root, split="train", class_names=("dog",))

    def refuse(pixels, parameters, out):
        raise ValueError("as pre-training would")

    monkeypatch.setattr(view_batch, "resized_crop", refuse)
    problems = check_dataset("mine").problems
    assert len(problems) == 3 and "as pre-training would" in problems[0] and "a.jpg" in problems[0]


def test_check_dataset__collects_every_problem(make_voc):
    root = make_voc(
        {
            "a": (40, 30, [("hourse", (2, 2, 9, 9), 0), ("dog", (41, 2, 49, 9), 0)]),
            "b": (40, 30, []),
            "c": (40, 30, []),
            "d": (9, 9, []),
        }
    )
    (root / "JPEGImages" / "b.jpg").unlink()
    (root / "JPEGImages" / "c.jpg").write_bytes(b"no image")
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(root / "JPEGImages" / "d.jpg")
    register_dataset("mine", "voc", root=root, split="train", class_names=("dog",))
    report = check_dataset("mine")
    assert not report.is_usable
    message = [
        "class 'hourse' is not one of",
        "does not lie in",
        "1 of the 4 images",
        "c.jpg cannot be decoded",
        "d.jpg is 12 x 9 px, but its annotation says 9 x 9",
    ]
    assert len(report.problems) == len(message)
    assert all(words in problem for words, problem in zip(message, report.problems, strict=True))
    assert "... and 3 more\n" in report.text(2)
    assert "NOT usable: 5 " in report.text()
    assert len(check_dataset("mine", open_images=False).problems) == 3


def test_check_dataset__coco_counts_and_remarks(make_coco):
    annotation = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 200}
    json_file, images = make_coco(
        [{"id": 5, "file_name": "b.jpg", "width": 40, "height": 30}],
        [
            annotation,
            {**annotation, "id": 2, "iscrowd": 1},
            {**annotation, "id": 3, "bbox": [1, 1, 0, 2]},
        ],
    )
    register_dataset("mine", "coco", json_file=json_file, image_root=images)
    report = check_dataset("mine")
    assert (report.num_boxes, report.boxes_of_class) == (2, {"cat": 0, "dog": 2})
    assert any("category ids 3 to 7 become indices 0 to 1" in text for text in report.remarks)
    assert (report.left_out["crowd_regions"], report.left_out["boxes_without_area"]) == (1, 1)
    assert "crowd regions" in report.text() and "boxes without area" in report.text()


def test_check_dataset__coco_names_every_fault_of_a_file_that_was_written_by_hand(make_coco):
    good = {
        "image_id": 5,
        "category_id": 7,
        "bbox": [1, 2, 10, 20],
        "area": 200,
        "segmentation": [[1, 2, 11, 2, 11, 22]],
    }
    faults = {
        "'text'": None,
        "id is [1]": {"id": [1]},
        "category_id [7]": {"category_id": [7]},
        "iscrowd is 'no'": {"iscrowd": "no"},
        "keypoints is ['a', 'b', 'c']": {"keypoints": ["a", "b", "c"]},
        "[['1', 2, 11, 2, 11, 22]]": {"segmentation": [["1", 2, 11, 2, 11, 22]]},
        "40 x 30 image": {"segmentation": [[101, 2, 111, 2, 111, 22]]},
        "[3, 4]": {"segmentation": {"size": [3, 4], "counts": [0, 12]}},
        "'counts' and 'size'": {"segmentation": {"counts": [0, 12]}},
        "'PPYo1'": {"segmentation": {"size": [30, 40], "counts": "PPYo1"}},
    }
    annotations = [
        {**good, "id": number, **change} if change else "text"
        for number, change in enumerate(faults.values(), start=10)
    ]
    json_file, images = make_coco(
        [{"id": 5, "file_name": "b.jpg", "width": 40, "height": 30}],
        [{**good, "id": 1}, *annotations],
    )
    register_dataset("mine", "coco", json_file=json_file, image_root=images)
    report = check_dataset("mine")
    assert not report.is_usable and report.num_boxes == report.num_masks == 1
    assert len(report.problems) == len(faults)
    assert all(words in problem for words, problem in zip(faults, report.problems, strict=True)), (
        report.problems
    )


def test_check_dataset__an_image_turned_by_exif(make_coco):
    box = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 200}
    image = {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30}
    json_file, images = make_coco([image], [box])
    image = Image.open(images / "b.jpg")
    exif = image.getexif()
    exif[274] = 6
    image.save(images / "b.jpg", exif=exif)
    register_dataset("mine", "coco", json_file=json_file, image_root=images)
    (problem,) = check_dataset("mine").problems
    assert "is 30 x 40 px, but its annotation says 40 x 30" in problem and "EXIF" in problem


def test_check_dataset__a_missing_folder_is_a_problem_not_a_crash(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    report = check_dataset("voc_2007_test")
    assert not report.is_usable
    assert "Set it to the folder that holds VOC2007." in report.problems[0]


def test_check_data__command_line(make_voc, make_coco, capsys):
    root = make_voc({"a": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    flag = ["--dataset", f"mine=voc:{root}:train:dog"]
    assert main.main(["check-data", *flag]) == 0
    assert "mine: images: 1, boxes: 1, classes: 1," in capsys.readouterr().out
    box = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 200}
    image = {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30}
    json_file, images = make_coco([image], [box])
    assert main.main(["check-data", *flag, "--dataset", f"other=coco:{json_file}:{images}"]) == 2
    assert "index 0 is 'dog' in the first and 'cat' in the second" in capsys.readouterr().err
    (root / "JPEGImages" / "a.jpg").unlink()
    assert main.main(["check-data", "mine", "--fast"]) == 2
    assert "PROBLEM: 1 of the 1 images" in capsys.readouterr().out
    assert main.main(["check-data"]) == 2
    assert "No data set is named" in capsys.readouterr().err
    assert json.loads(json_file.read_text())["images"], "nothing is written"


def test_check_dataset__an_image_whose_header_is_whole_and_whose_pixels_are_cut_off(make_voc):
    root = make_voc({"a": (400, 300, []), "b": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    image = root / "JPEGImages" / "a.jpg"
    image.write_bytes(image.read_bytes()[:-2000])
    assert Image.open(image).size == (400, 300)  # a look at the header finds nothing
    register_dataset("mine", "voc", root=root, split="train", class_names=("dog",))
    (problem,) = check_dataset("mine").problems
    assert "a.jpg cannot be decoded (image file is truncated" in problem


def test_check_dataset__repetitions_are_counted(make_coco, tmp_path):
    dog = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 200}
    images = [
        {"id": i, "file_name": name, "width": 40, "height": 30}
        for i, name in ((1, "a.jpg"), (2, "a.jpg"), (3, "b.jpg"), (4, "c.jpg"))
    ]
    annotations = [
        {**dog, "id": 1},
        {**dog, "id": 2},
        {**dog, "id": 3},
        {**dog, "id": 4, "category_id": 3},
        {**dog, "id": 5, "image_id": 3},
    ]
    json_file, folder = make_coco(images, annotations)
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes())
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "c.jpg")
    register_dataset("mine", "coco", json_file=json_file, image_root=folder)
    report = check_dataset("mine")
    assert report.is_usable
    message = "\n".join(report.remarks)
    a, b = folder / "a.jpg", folder / "b.jpg"
    assert f"same image: 2, for example in {a}." in message
    assert f"listed more than once: 1, for example {a}." in message
    assert f"byte for byte: 1, for example {b} of {a}." in message


def test_check_dataset__voc_counted_from_0_may_have_boxes_without_area(make_voc):
    root = make_voc({"a": (40, 30, [("dog", (2, 2, 2, 9), 0), ("dog", (0, 0, 40, 30), 0)])})
    register_dataset("mine", "voc", root=root, split="train", class_names=("dog",), first_pixel=0)
    assert check_dataset("mine").left_out["boxes_without_area"] == 1


def test_check_data__images_that_two_sets_share_are_named(make_voc, capsys):
    root = make_voc(
        {"a": (40, 30, [("dog", (2, 2, 9, 9), 0)]), "b": (41, 30, [("dog", (2, 2, 9, 9), 0)])}
    )
    make_voc(
        {"c": (50, 30, [("dog", (2, 2, 9, 9), 0)]), "d": (51, 30, [("dog", (2, 2, 9, 9), 0)])},
        split="test",
    )
    (root / "JPEGImages" / "d.jpg").write_bytes((root / "JPEGImages" / "b.jpg").read_bytes())
    xml = root / "Annotations" / "d.xml"
    xml.write_text(xml.read_text().replace("<width>51", "<width>41"))
    flags = [
        word
        for split in ("train", "test")
        for word in ("--dataset", f"my_{split}=voc:{root}:{split}:dog")
    ]
    assert main.main(["check-data", *flags]) == 0
    message = capsys.readouterr().out
    assert (
        "my_train and my_test have 1 image" in message and str(root / "JPEGImages/b.jpg") in message
    )


def test_check_data__holds_the_data_to_a_config(make_coco, make_voc, capsys):
    image = {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30}
    box = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 200}
    json_file, images = make_coco([image], [box])
    names = ["DATASETS.TRAIN", "mine", "DATASETS.TEST", "mine"]
    coco = ["--dataset", f"mine=coco:{json_file}:{images}"]
    assert main.main(["check-data", "--config-file", "own_R_18_FPN_small", *coco, *names]) == 0
    assert "own_R_18_FPN_small: fits, with 2 classes from the data" in capsys.readouterr().out
    assert (
        main.main(
            [
                "check-data",
                "--config-file",
                "own_R_18_FPN_small",
                *coco,
                *names,
                "MODEL.ROI_HEADS.NUM_CLASSES",
                "3",
            ]
        )
        == 2
    )
    assert (
        "MODEL.ROI_HEADS.NUM_CLASSES is 3, but data set 'mine' has 2 categories (cat, dog)"
        in capsys.readouterr().err
    )
    assert (
        main.main(
            [
                "check-data",
                "--config-file",
                "own_R_18_FPN_small",
                *coco,
                *names,
                "MODEL.MASK_ON",
                "True",
            ]
        )
        == 2
    )
    assert "1 of the 1 objects of data set 'mine' have no 'segmentation'" in capsys.readouterr().err
    masks = [*coco, *names, "MODEL.MASK_ON", "True"]
    for segmentation, mask_format in (
        ([[1, 2, 11, 2, 11, 22]], ""),
        ({"size": [30, 40], "counts": [0, 600, 600]}, "INPUT.MASK_FORMAT is bitmask"),
    ):
        json_file.write_text(
            json_file.read_text().replace(
                '"bbox"', f'"segmentation": {json.dumps(segmentation)}, "bbox"'
            )
        )
        catalog._LOADED.clear()
        assert main.main(["check-data", "--config-file", "own_R_18_FPN_small", *masks]) == 0
        assert mask_format in capsys.readouterr().out
    root = make_voc({"a": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    voc, names = (
        ["--dataset", f"mine_voc=voc:{root}:train:dog"],
        ["DATASETS.TRAIN", "mine_voc", "DATASETS.TEST", "mine_voc"],
    )
    assert (
        main.main(
            [
                "check-data",
                "--config-file",
                "own_R_18_FPN_small",
                *voc,
                *names,
                "MODEL.MASK_ON",
                "True",
            ]
        )
        == 2
    )
    assert "'mine_voc' have no 'segmentation'" in capsys.readouterr().err
    assert main.main(["check-data", "--config-file", "pascal_voc_R_18_FPN_small", *voc]) == 2
    assert "--dataset mine_voc is named neither in DATASETS.TRAIN" in capsys.readouterr().err


def test_check_dataset__real_data(shared_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    for name, num_images in (("voc_2007_test", 100), ("coco_2017_val", 128)):
        report = check_dataset(name)
        assert report.is_usable and report.num_images == num_images
        assert "results do not compare with published ones" in report.remarks[0]


def test_check_dataset__keypoints_and_the_pairs_that_change_places(make_coco):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2)]
    box = {"category_id": 7, "bbox": [1, 2, 10, 20], "iscrowd": 0}
    points = {"id": 1, "image_id": 1, "keypoints": [4, 4, 2, 9, 9, 0, 0, 0, 0]}
    annotations = [box | points, box | {"id": 2, "image_id": 2}]
    names = ["tail", "left_ear", "right_ear"]
    files = make_coco(images, annotations, [{"id": 7, "name": "dog", "keypoints": names}])
    register_dataset("dogs", "coco", json_file=files[0], image_root=files[1])
    report = check_dataset("dogs")
    assert (report.is_usable, report.num_with_keypoints) == (True, 1)
    assert report.left_out["images_without_keypoints"] == 1
    assert "left_ear/right_ear" in report.text() and "keypoints: 1, 3 each" in report.text()
