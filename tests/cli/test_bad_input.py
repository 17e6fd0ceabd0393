"""Every kind of bad input: one sentence on stderr, exit status 2, and nothing that was there is
overwritten.

Went red under: letting the exception through in cli/main.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from moco_transfer.cli.main import main
from moco_transfer.models import build_encoder
from moco_transfer.pretrain.moco import MoCo

from .conftest import TINY_DETECTION, TINY_PRETRAIN, words


def refused(capsys, *arguments: object) -> str:
    """Run the program in this process and return its one sentence."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and "Traceback" not in message, message
    return message


def pretrain_words(pool, tmp_path, **more) -> list[str]:
    return [
        "pretrain",
        "--config-file",
        "demo_moco",
        *words(TINY_PRETRAIN, **{"DATA__ROOT": pool, "OUTPUT_DIR": tmp_path / "run"} | more),
    ]


def test_pretrain__data_folder(capsys, tmp_path, pool):
    (tmp_path / "empty").mkdir()
    assert "does not exist" in refused(capsys, *pretrain_words(tmp_path / "nowhere", tmp_path))
    assert "holds no image" in refused(capsys, *pretrain_words(tmp_path / "empty", tmp_path))
    assert "less than one batch of 64" in refused(
        capsys, *pretrain_words(pool, tmp_path, DATA__BATCH_SIZE_TOTAL=64)
    )
    assert not (tmp_path / "run").exists()


def test_pretrain__config(capsys, tmp_path, pool):
    assert "Did you mean 'MOCO.TEMPERATURE'?" in refused(
        capsys, *pretrain_words(pool, tmp_path), "MOCO.TEMPRATURE", "0.1"
    )
    assert "must be a whole number" in refused(
        capsys, *pretrain_words(pool, tmp_path), "SOLVER.EPOCHS", "ten"
    )


def test_pretrain__unreadable_images(capsys, tmp_path, pool):
    folder = tmp_path / "images"
    shutil.copytree(pool, folder)
    some = sorted(folder.rglob("*.jpg"))[:4]
    for path in some:
        path.write_bytes(path.read_bytes()[:100])
    message = refused(capsys, *pretrain_words(folder, tmp_path, DATA__MAX_UNREADABLE="0.05"))
    assert "of 24 images cannot be read, more than DATA.MAX_UNREADABLE 0.05 allows" in message
    done = pretrain_words(
        folder, tmp_path, OUTPUT_DIR=tmp_path / "allowed", DATA__MAX_UNREADABLE="0.5"
    )
    assert main(done) == 0
    log = (tmp_path / "allowed" / "log.txt").read_text()
    assert log.count("skipped unreadable image") == 4 and str(some[0]) in log
    assert log.count("so far): ") == 4  # and the reason


def moco_checkpoint(path: Path, arch: str = "resnet18") -> Path:
    model = MoCo(lambda num_classes: build_encoder(arch, num_classes=num_classes), queue_size=8)
    torch.save(
        {
            "epoch": 1,
            "arch": arch,
            "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()},
        },
        path,
    )
    return path


def test_convert__damaged_or_foreign_checkpoint(capsys, tmp_path):
    source = moco_checkpoint(tmp_path / "moco.pth.tar")
    target = tmp_path / "out.pkl"
    target.write_bytes(b"precious")
    (tmp_path / "cut.pth").write_bytes(source.read_bytes()[:5000])
    torch.save({"state_dict": {"head.weight": torch.zeros(3, 3)}}, tmp_path / "foreign.pth")
    incomplete = torch.load(source, weights_only=True)
    del incomplete["state_dict"]["module.encoder_q.layer3.0.bn2.running_var"]
    torch.save(incomplete, tmp_path / "incomplete.pth")
    for name, part in (
        ("cut.pth", "cut.pth"),
        ("foreign.pth", "foreign.pth"),
        ("incomplete.pth", "module.encoder_q.layer3.0.bn2.running_var"),
        ("none.pth", "does not exist"),
    ):
        assert part in refused(capsys, "convert", tmp_path / name, target)
    assert target.read_bytes() == b"precious"


def train_words(scenes, tmp_path, *, xml_root=None, **more) -> list[str]:
    root = xml_root or scenes
    flags = [
        w
        for split in ("train", "test")
        for w in ("--dataset", f"{root.name}_{split}=voc:{root}:{split}:{scenes / 'classes.txt'}")
    ]
    names = {"DATASETS__TRAIN": f"{root.name}_train", "DATASETS__TEST": f"{root.name}_test"}
    settings = words(TINY_DETECTION, OUTPUT_DIR=tmp_path / "det", **(names | more))
    return ["train", "--config-file", "demo_R_18_FPN", "--engine", "torchvision", *flags, *settings]


def test_train__weights(capsys, tmp_path, scenes):
    source = moco_checkpoint(tmp_path / "moco.pth.tar")
    assert main(["convert", str(source), str(tmp_path / "moco.pkl")]) == 0
    wrong_arch = moco_checkpoint(tmp_path / "r34.pth.tar", "resnet34")
    assert main(["convert", str(wrong_arch), str(tmp_path / "r34.pkl")]) == 0

    def say(weights, **more):
        return refused(capsys, *train_words(scenes, tmp_path, MODEL__WEIGHTS=weights, **more))

    assert "does not exist" in say(tmp_path / "none.pkl")
    assert "expected Detectron2's names; convert it first" in say(source)
    assert "Refusing to start from a partly random backbone" in say(tmp_path / "r34.pkl")
    assert "INPUT.FORMAT BGR" in say(tmp_path / "moco.pkl", INPUT__FORMAT="BGR")
    assert "MODEL.PIXEL_STD" in say(tmp_path / "moco.pkl", MODEL__PIXEL_STD="1.0,1.0,1.0")
    assert not (tmp_path / "det").exists()


def test_train__annotations(capsys, tmp_path, scenes):
    def broken(name: str, before: str, after: str) -> list[str]:
        root = tmp_path / name
        shutil.copytree(scenes, root)
        xml = sorted((root / "Annotations").glob("train_*.xml"))[0]
        text = xml.read_text()
        assert before in text
        xml.write_text(text.replace(before, after, 1))
        return train_words(scenes, tmp_path, xml_root=root)

    first = (sorted((scenes / "Annotations").glob("train_*.xml"))[0]).read_text()
    name = first.split("<name>")[1].split("</name>")[0]
    xmax = first.split("<xmax>")[1].split("</xmax>")[0]
    message = refused(capsys, *broken("unknown", f"<name>{name}<", "<name>striped_hourse<"))
    assert "striped_hourse" in message and ".xml" in message
    message = refused(capsys, *broken("outside", f"<xmax>{xmax}<", "<xmax>4000<"))
    assert "4000" in message and ".xml" in message


def test_train__image_without_boxes_is_left_out_and_counted(tmp_path, scenes):
    root = tmp_path / "empty_one"
    shutil.copytree(scenes, root)
    xml = sorted((root / "Annotations").glob("train_*.xml"))[0]
    text = xml.read_text()
    xml.write_text(text[: text.index("<object>")] + "</annotation>")
    assert (
        main(train_words(scenes, tmp_path, xml_root=root, SOLVER__MAX_ITER=1, SOLVER__STEPS="1"))
        == 0
    )
    assert (
        "1 of 6 training images have no box and are left out"
        in (tmp_path / "det" / "log.txt").read_text()
    )


def test_train__coco_categories_that_the_config_does_not_cover(capsys, tmp_path, scenes):
    content = {
        "images": [{"id": 1, "file_name": "train_0000.jpg", "height": 64, "width": 64}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 7,
                "bbox": [1, 1, 9, 9],
                "area": 81,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": i, "name": f"c{i}"} for i in (5, 7)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    flag = f"own_coco=coco:{tmp_path / 'a.json'}:{scenes / 'JPEGImages'}"
    settings = words(
        TINY_DETECTION,
        DATASETS__TRAIN="own_coco",
        DATASETS__TEST="own_coco",
        OUTPUT_DIR=tmp_path / "det",
        MODEL__ROI_HEADS__NUM_CLASSES=8,
    )
    message = refused(
        capsys, "train", "--config-file", "demo_R_18_FPN", "--dataset", flag, *settings
    )
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 8, but data set 'own_coco' has 2 categories" in message
    content["annotations"][0]["category_id"] = 6  # a category that the file itself does not list
    (tmp_path / "b.json").write_text(json.dumps(content))
    flag = f"own_coco_b=coco:{tmp_path / 'b.json'}:{scenes / 'JPEGImages'}"
    settings = words(
        TINY_DETECTION,
        DATASETS__TRAIN="own_coco_b",
        DATASETS__TEST="own_coco_b",
        OUTPUT_DIR=tmp_path / "det",
    )
    assert "6" in refused(
        capsys, "train", "--config-file", "demo_R_18_FPN", "--dataset", flag, *settings
    )


def test_train__lvis_without_frequencies(capsys, tmp_path, scenes):
    content = {
        "images": [{"id": 1, "file_name": "train_0000.jpg", "height": 64, "width": 64}],
        "annotations": [],
        "categories": [{"id": 5, "name": "acorn"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    flag = f"own_lvis=lvis:{tmp_path / 'a.json'}:{scenes / 'JPEGImages'}"
    sets = {"DATASETS__TRAIN": "own_lvis", "DATASETS__TEST": "own_lvis"}
    settings = words(TINY_DETECTION, **sets, OUTPUT_DIR=tmp_path / "det")
    message = refused(
        capsys, "train", "--config-file", "demo_R_18_FPN", "--dataset", flag, *settings
    )
    assert str(tmp_path / "a.json") in message and "frequency is None" in message
    assert not (tmp_path / "det").exists()


def test_resume__checkpoint_of_another_run(capsys, tmp_path, pool):
    assert main(pretrain_words(pool, tmp_path, SOLVER__EPOCHS=1)) == 0
    resume = pretrain_words(pool, tmp_path, SOLVER__EPOCHS=1, MOCO__DIM=64)
    assert "was made with MOCO.DIM 128, the run to resume has 64" in refused(
        capsys, *resume[:3], "--resume", *resume[3:]
    )
    checkpoint = tmp_path / "run" / "checkpoint_0001.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:20000])
    resume = pretrain_words(pool, tmp_path, SOLVER__EPOCHS=1)
    assert "truncated or damaged" in refused(capsys, *resume[:3], "--resume", *resume[3:])
