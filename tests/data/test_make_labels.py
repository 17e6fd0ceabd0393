"""make-labels: VOC's trainaug against torchvision's reader of SBD, Cityscapes' trainIds against
cityscapesscripts and the files that it made.

Seen red under: VOC's val left in; SBD's mask in place of VOC's own; a list written although a mask
is missing; trainIds by the order of all ids; files made again on a second call.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.data.annotations.catalog import get_dataset
from moco_transfer.data.annotations.semantic.labels import read_labels, voc_palette
from moco_transfer.data.annotations.semantic.make import TRAIN_IDS

SIZE = (8, 6)  # width, height


@pytest.fixture
def voc_and_sbd(tmp_path):
    """VOC 2012 with a train image v1, a val image v2 and other images; SBD of v1, v2, s1 and s2."""
    io = pytest.importorskip("scipy.io", reason="scipy is not installed (extra sbd)")
    voc, sbd = tmp_path / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", sbd / "cls", sbd / "img"):
        folder.mkdir(parents=True)
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("v1\nv3\n")
    (lists / "val.txt").write_text("v2\n")
    (sbd / "train.txt").write_text("s1\nv2")
    (sbd / "val.txt").write_text("s2\nv1\n")
    rng = np.random.default_rng(0)
    for name in ("v1", "v2", "v3", "s1", "s2"):
        Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8)).save(
            voc / "JPEGImages" / f"{name}.jpg"
        )
        if name[0] == "v":
            own = Image.fromarray(rng.integers(0, 21, SIZE[::-1], np.uint8))
            own.putpalette(voc_palette().tobytes())
            own.save(voc / "SegmentationClass" / f"{name}.png")
        if name != "v3":
            ids = rng.integers(0, 21, SIZE[::-1], np.uint8)
            content = {"Segmentation": ids, "CategoriesPresent": np.unique(ids)[1:]}
            io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
    return voc, sbd


def _make(voc, sbd):
    return main(["make-labels", "voc-aug", "--root", str(voc), "--sbd", str(sbd)])


def test_voc_aug__is_sbd_and_train_without_val(voc_and_sbd, monkeypatch):
    from torchvision.datasets import SBDataset

    voc, sbd = voc_and_sbd
    assert _make(voc, sbd.parent) == 0
    monkeypatch.setenv("DETECTRON2_DATASETS", str(voc.parent))
    records = {r["image_id"]: r for r in get_dataset("voc_2012_sem_seg_trainaug").records}
    assert list(records) == ["s1", "s2", "v1", "v3"]
    own = np.asarray(Image.open(voc / "SegmentationClass" / "v1.png"))
    assert np.array_equal(read_labels(records["v1"]), own)
    theirs = {}
    for split in ("train", "val"):
        reader = SBDataset(str(sbd), split, mode="segmentation")
        names = (sbd / f"{split}.txt").read_text().split()
        masks = [reader._get_segmentation_target(str(mask)) for mask in reader.masks]
        theirs |= dict(zip(names, masks, strict=True))
    for name in ("s1", "s2"):
        file = records[name]["sem_seg_file_name"]
        assert np.array_equal(read_labels(records[name]), np.asarray(theirs[name]))
        with Image.open(file) as image:
            assert np.array_equal(np.reshape(image.getpalette(), (-1, 3)), voc_palette())


def test_voc_aug__continues_and_keeps_what_is_there(voc_and_sbd, capsys):
    voc, sbd = voc_and_sbd
    lost, labels = sbd / "cls" / "s2.mat", voc / "SegmentationClassAug"
    content = lost.read_bytes()
    lost.write_bytes(content[:200])
    assert _make(voc, sbd) == 2
    assert str(lost) in capsys.readouterr().out
    assert sorted(f.name for f in labels.iterdir()) == ["s1.png", "v1.png", "v3.png"]
    assert not (voc / "ImageSets" / "Segmentation" / "trainaug.txt").exists()
    lost.write_bytes(content)
    before = {file: file.stat().st_mtime_ns for file in labels.iterdir()}
    assert _make(voc, sbd) == 0
    assert "1 written, 3 were there" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert (voc / "ImageSets" / "Segmentation" / "trainaug.txt").read_text() == "s1\ns2\nv1\nv3\n"


@pytest.mark.parametrize("fault", ["other list", "other size", "no sbd", "no option"])
def test_voc_aug__refuses_what_does_not_fit(voc_and_sbd, capsys, fault):
    voc, sbd = voc_and_sbd
    target = voc / "ImageSets" / "Segmentation" / "trainaug.txt"
    if fault == "other list":
        target.write_text("s1\n")
    elif fault == "other size":
        shutil.copy(voc / "JPEGImages" / "s1.jpg", voc / "JPEGImages" / "s2.jpg")
        Image.new("RGB", (9, 9)).save(voc / "JPEGImages" / "s1.jpg")
    elif fault == "no sbd":
        shutil.rmtree(sbd / "cls")
    if fault == "no option":
        assert main(["make-labels", "cityscapes", "--sbd", str(sbd)]) == 2
    else:
        assert _make(voc, sbd) == 2
    shown = capsys.readouterr()
    facts = {"other list": "trainaug.txt", "other size": "s1.mat", "no sbd": "cls"}
    assert facts.get(fault, "--sbd") in shown.out + shown.err
    assert fault != "other list" or target.read_text() == "s1\n"


@pytest.mark.parametrize("source", ["_gtFine_polygons.json", "_gtFine_labelIds.png"])
def test_train_ids__equal_the_real_files(shared_data, tmp_path, source, capsys):
    pytest.importorskip("cityscapesscripts", reason="cityscapesscripts is not installed")
    theirs = sorted((shared_data / "cityscapes" / "gtFine").rglob(f"*{source}"))
    for file in theirs:
        target = tmp_path / file.parent.name / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    assert main(["make-labels", "cityscapes", "--root", str(tmp_path)]) == 0
    assert f"{len(theirs)} written" in capsys.readouterr().out
    for file in theirs:
        name = file.name.replace(source, "_gtFine_labelTrainIds.png")
        ours = np.asarray(Image.open(tmp_path / file.parent.name / name))
        assert np.array_equal(ours, np.asarray(Image.open(file.with_name(name))))
    assert main(["make-labels", "cityscapes", "--root", str(tmp_path)]) == 0
    assert f"0 written, {len(theirs)} were there" in capsys.readouterr().out


def test_train_ids__are_those_of_cityscapesscripts():
    table = pytest.importorskip(
        "cityscapesscripts.helpers.labels", reason="cityscapesscripts is not installed"
    )
    trained = sorted((x for x in table.labels if 0 <= x.trainId < 255), key=lambda x: x.trainId)
    assert [label.id for label in trained] == list(TRAIN_IDS)
    assert [label.name for label in trained] == list(
        get_dataset("cityscapes_fine_sem_seg_val").class_names
    )


def test_train_ids__name_a_file_that_cannot_be_drawn(tmp_path, capsys):
    pytest.importorskip("cityscapesscripts", reason="cityscapesscripts is not installed")
    (tmp_path / "town").mkdir()
    file = tmp_path / "town" / "town_000000_000019_gtFine_polygons.json"
    file.write_text(
        '{"imgHeight": 4, "imgWidth": 5, "objects": [{"label": "tree", "polygon": []}]}'
    )
    assert main(["make-labels", "cityscapes", "--root", str(tmp_path)]) == 2
    assert str(file) in capsys.readouterr().out
    assert main(["make-labels", "cityscapes", "--root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
