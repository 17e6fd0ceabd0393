"""Files as they lie on disks: pages, archives and pointers under another name, links to nothing,
numbers that are none. Each is one sentence with the file and what it is, or is read.

Seen red under: nature_of returns ""; missing_files lists names alone; find_names without NFKC;
the yaml loader takes equal keys; _check_numbers returns at once; json's RecursionError let through;
_is_folder asks the entry alone; a thin image resized to 0 px; all-zero filters converted.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.data.annotations.catalog import own_names
from moco_transfer.models import build_encoder

from .conftest import TINY_DETECTION, TINY_PRETRAIN, words

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98372\n"
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
NATURES = {"html": (HTML, "HTML"), "lfs": (LFS, "git lfs pull"), "empty": (b"", "empty")}
NATURES["gzip"] = gzip.compress(b'{"images": []}'), "unpack it"


@pytest.fixture
def coco(tmp_path):
    """Write four images and their json, changed by ``change``; return the flag of --dataset."""

    def write(change=None, root: Path = tmp_path / "set") -> str:
        (root / "images").mkdir(parents=True, exist_ok=True)
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        for i in range(1, 5):
            Image.linear_gradient("L").resize((40, 30)).rotate(90 * i).save(
                root / "images" / f"{i}.png"
            )
            image = {"id": i, "file_name": f"{i}.png", "width": 40, "height": 30}
            content["images"].append(image)
            box = {"bbox": [2, 3, 10 + i, 12], "area": 120, "iscrowd": 0}
            content["annotations"].append({"id": i, "image_id": i, "category_id": 1, **box})
        if change is not None:
            change(content)
        (root / "a.json").write_text(json.dumps(content))
        return f"a=coco:{root}/a.json:{root}/images"

    return write


def check(capfd, flag: str) -> tuple[int, str]:
    """Return the status of check-data and what it says."""
    capfd.readouterr()
    status = main(["check-data", "--dataset", flag])
    said = "".join(capfd.readouterr())
    assert "0x7f" not in said, "an address in memory"
    return status, said


def refused(capfd, *arguments: object) -> str:
    capfd.readouterr()
    assert main([str(word) for word in arguments]) == 2
    sentence = capfd.readouterr().err.strip()
    assert "\n" not in sentence and "0x7f" not in sentence, sentence
    return sentence


@pytest.mark.parametrize("nature", NATURES)
def test_other_kinds_of_files__are_named(capfd, coco, tmp_path, pool, nature):
    data, fact = NATURES[nature]
    flag, root = coco(), tmp_path / "set"
    (root / "images" / "1.png").write_bytes(data)
    status, said = check(capfd, flag)
    assert status == 2 and "1.png" in said and fact in said
    (root / "a.json").write_bytes(data)
    status, said = check(capfd, flag)
    assert status == 2 and "a.json" in said and fact in said
    weights = tmp_path / "w.pth"
    weights.write_bytes(data)
    for verb in (
        ["convert", weights, tmp_path / "o.pkl"],
        ["knn", weights, "--train", pool, "--test", pool, "--workers", 0, "--device", "cpu"],
        ["predict", weights, pool, "--output", tmp_path / "o"],
    ):
        sentence = refused(capfd, *verb)
        assert str(weights) in sentence and fact in sentence
    config = tmp_path / "c.yaml"
    config.write_bytes(data or b"- a list")
    assert str(config) in refused(capfd, "pretrain", "--config-file", config, "--dry-run")


def test_links__to_nothing_and_to_themselves(capfd, coco, tmp_path, pool):
    flag, images = coco(), tmp_path / "set" / "images"
    (images / "1.png").unlink()
    (images / "1.png").symlink_to("gone.png")
    status, said = check(capfd, flag)
    assert status == 2 and "1.png" in said and "gone.png" in said
    sets = words(TINY_DETECTION, DATASETS__TRAIN="a", DATASETS__TEST="a", OUTPUT_DIR=tmp_path / "o")
    start = ["train", "--config-file", "demo_R_18_FPN", "--dry-run", "--dataset", flag]
    assert "gone.png" in refused(capfd, *start, *sets)
    (images / "1.png").unlink()
    (images / "1.png").symlink_to("1.png")
    status, said = check(capfd, flag)
    assert status == 2 and "1.png" in said
    folder = tmp_path / "pool"
    shutil.copytree(pool, folder)
    first = min(folder.rglob("*.jpg"))
    first.unlink()
    first.symlink_to(first.name)
    (folder / "again").symlink_to(folder)
    settings = words(TINY_PRETRAIN, DATA__ROOT=folder, OUTPUT_DIR=tmp_path / "run")
    assert str(first) in refused(capfd, "pretrain", "--config-file", "demo_moco", *settings)


@pytest.mark.parametrize(
    "name", ["1.png ", "１.png", " 1.PNG", "http://x.org/1.png?"[:-1], "1\u00a0.png"]
)
def test_names__nearly_as_the_files_are_found(capfd, coco, name):
    status, said = check(capfd, coco(lambda c: c["images"][0].update(file_name=name)))
    assert status == 0 and "1.png" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file_name", ""),
        ("file_name", "1\0.png"),
        ("file_name", "\ud800.png"),
        ("bbox", ["2", "3", "4", "5"]),
        ("bbox", [True, True, True, True]),
        ("bbox", [float("nan"), 1, 2, 2]),
        ("bbox", None),
        ("category_id", None),
        ("name", "\ud800"),
        ("name", " "),
    ],
)
def test_json__values_that_are_none(capfd, coco, key, value):
    lists = {"file_name": "images", "name": "categories"}
    status, said = check(
        capfd, coco(lambda c: c[lists.get(key, "annotations")][0].update({key: value}))
    )
    assert status == 2 and "a.json" in said and key in said


def test_json__too_deep(capfd, coco, tmp_path):
    flag = coco()
    (tmp_path / "set" / "a.json").write_text("[" * 100_000)
    status, said = check(capfd, flag)
    assert status == 2 and "a.json" in said


def test_voc__what_is_no_box(capfd, tmp_path, scenes):
    root = tmp_path / "voc"
    for old, new, facts in (
        ("bndbox>", "polygon>", ("<bndbox>", "<polygon>")),
        ("name>", "label>", ("<name>",)),
        ("object>", "item>", ("<page>",)),
    ):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(scenes, root)
        xml = min((root / "Annotations").glob("train_*.xml"))
        text = xml.read_text().replace(old, new)
        xml.write_text(text.replace("annotation>", "page>") if old == "object>" else text)
        with own_names():
            status, said = check(capfd, f"a=voc:{root}:train:{scenes / 'classes.txt'}")
        assert status == 2 and str(xml) in said and all(fact in said for fact in facts)
    one_line = tmp_path / "names.txt"
    one_line.write_text((scenes / "classes.txt").read_text().strip().replace("\n", ", ") + "\n")
    assert check(capfd, f"a=voc:{scenes}:train:{one_line}")[0] == 0


def test_an_archive_in_place_of_a_folder(capfd, tmp_path, scenes):
    file = shutil.make_archive(str(tmp_path / "voc"), "zip", scenes)
    status, said = check(capfd, f"a=voc:{file}:train:cat")
    assert status == 2 and file in said and "unpack" in said and "does not exist" not in said


def test_shards__that_are_none(capfd, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 2048)
    settings = words(TINY_PRETRAIN, DATA__ROOT=tmp_path, OUTPUT_DIR=tmp_path / "run")
    assert "a.tar" in refused(capfd, "pretrain", "--config-file", "demo_moco", *settings)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("SOLVER:\n  EPOCHS: 1\nSOLVER:\n  BASE_LR: 0.3\n", ("SOLVER", "line 3")),
        ("SOLVER:\n  EPOCHS: 1\n  EPOCHS: 2\n", ("EPOCHS", "line 3")),
        ("DATA:\n\tIMAGE_SIZE: 32\n", ("line 2",)),
        ("_BASE_: [a, b]\n", ("_BASE_",)),
        ("_BASE_: .\n", ("_BASE_",)),
        ("DATA:\n  PIXEL_MEAN: [a, b, c]\n", ("DATA.PIXEL_MEAN",)),
        ("DATA:\n  PIXEL_MEAN: [.nan, 1.0, 1.0]\n", ("DATA.PIXEL_MEAN",)),
        ("DATA:\n  CROP_SCALE: [0.1, 0.2, 1.0]\n", ("DATA.CROP_SCALE",)),
        ("SOLVER:\n  BASE_LR: .nan\n", ("SOLVER.BASE_LR",)),
        ("SOLVER:\n  BASE_LR: .inf\n", ("SOLVER.BASE_LR",)),
    ],
)
def test_pretrain__config(capfd, tmp_path, pool, text, facts):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    sentence = refused(capfd, "pretrain", "--config-file", config, "--dry-run", "DATA.ROOT", pool)
    assert str(config) in sentence and all(fact in sentence for fact in facts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.PIXEL_MEAN", "123.0"),
        ("MODEL.PIXEL_MEAN", "nan,1,1"),
        ("MODEL.PIXEL_STD", "0.0,0.0,0.0"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "1"),
        ("SOLVER.BASE_LR", "-1.0"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.WARMUP_ITERS", "-1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("OUTPUT_DIR", "\0"),
    ],
)
def test_train__settings(capfd, tmp_path, coco, key, value):
    settings = words(
        TINY_DETECTION, DATASETS__TRAIN="a", DATASETS__TEST="a", OUTPUT_DIR=tmp_path / "out"
    )
    start = ["train", "--config-file", "demo_R_18_FPN", "--dry-run", "--dataset", coco()]
    assert key in refused(capfd, *start, *settings, key, value)


def test_predict__a_line_of_pixels(tmp_path, coco):
    settings = words(
        TINY_DETECTION | {"SOLVER.MAX_ITER": "1", "SOLVER.STEPS": "()"},
        DATASETS__TRAIN="a",
        DATASETS__TEST="a",
        OUTPUT_DIR=tmp_path / "out",
        TEST__PRECISE_BN__ENABLED=False,
    )
    assert main(["train", "--config-file", "demo_R_18_FPN", "--dataset", coco(), *settings]) == 0
    Image.new("RGB", (5000, 2)).save(tmp_path / "thin.png")
    pair = [str(tmp_path / "out"), str(tmp_path / "thin.png")]
    assert main(["predict", *pair, "--output", str(tmp_path / "drawn")]) == 0
    (tmp_path / "out" / "last_checkpoint").write_bytes(b"\xff\xfe\0")
    assert main(["predict", *pair, "--output", str(tmp_path / "drawn")]) == 2


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda name, t: t * 0, "zeros"),
        (lambda name, t: t.to(torch.complex64), "complex64"),
        (lambda name, t: t.permute(2, 3, 1, 0) if t.ndim == 4 else t, "conv1.weight"),
    ],
)
def test_convert__tensors_that_are_no_weights(capfd, tmp_path, change, fact):
    state = {
        name: change(name, tensor) if tensor.is_floating_point() else tensor
        for name, tensor in build_encoder("resnet18", num_classes=8).state_dict().items()
    }
    torch.save(state, tmp_path / "w.pth")
    assert fact in refused(capfd, "convert", tmp_path / "w.pth", tmp_path / "o.pkl")
    assert not (tmp_path / "o.pkl").exists()


def test_convert__archives(capfd, tmp_path):
    inner = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1)}, inner)
    with tarfile.open(tmp_path / "w.pth.tar", "w") as tar:
        tar.add(inner, "w.pth")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.write(inner, "w.pth")
    for name in ("w.pth.tar", "w.zip"):
        assert name in refused(capfd, "convert", tmp_path / name, tmp_path / "o.pkl")
