"""What importing the engine gives a train_net.py of somebody's own: two lines, data sets,
and this project's evaluator.

Seen red under: the head left out of __init__; bottlenecks in res5 of R18 and R34; no norm behind
    res5; a DC5 of 256 channels; boxes without their mode; SyncBN's momentum and eps not taken over;
build_evaluator of Detectron2's own evaluator.
"""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from cityscapes_files import write_split
from detectron2_runs import dataset_flags, run_python

from moco_transfer.config import load_detection_config
from moco_transfer.data import register_dataset
from moco_transfer.finetune import build_model
from moco_transfer.runtime.errors import InputError

pytestmark = pytest.mark.detectron2

# What README shows; the rest of the program is Detectron2's own.
TWO_LINES = """
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
import moco_transfer.finetune.detectron2_engine
cfg.merge_from_file(moco_transfer.config.path("pascal_voc_R_50_C4_24k"))
cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg)
names = [name for name in model.state_dict() if name.startswith("roi_heads.res5.norm.")]
print(type(model.roi_heads).__name__, names)
"""


def test_two_lines__a_train_net_of_ones_own_builds_the_published_detector():
    result = run_python("-c", TWO_LINES)
    assert result.returncode == 0, result.stderr
    names = [
        f"roi_heads.res5.norm.{leaf}"
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    assert result.stdout.splitlines()[-1] == f"Res5ROIHeadsExtraNorm {names}"


# The two lines, add_datasets and build_evaluator in Detectron2's own trainer.
OWN_TRAIN_NET = """
import sys
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
import moco_transfer.finetune.detectron2_engine as plugin
from moco_transfer.data.annotations.catalog import parse_dataset_flag

class Trainer(DefaultTrainer):
    build_evaluator = staticmethod(plugin.build_evaluator)

cfg = get_cfg()
cfg.merge_from_file(plugin.config.path("pascal_voc_R_18_C4_320px"))
for flag in sys.argv[2:]:
    parse_dataset_flag(flag)
plugin.add_datasets()
cfg.merge_from_list('''MODEL.DEVICE cpu DATASETS.TRAIN ('scenes_train',) DATASETS.TEST
    ('scenes_test',) DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
    SOLVER.IMS_PER_BATCH 2 SOLVER.REFERENCE_WORLD_SIZE 0 SOLVER.MAX_ITER 2 SOLVER.STEPS (1,)
    SOLVER.WARMUP_ITERS 1 SOLVER.BASE_LR 0.001 SOLVER.AMP.ENABLED False TEST.PRECISE_BN.NUM_ITER 1
    MODEL.RPN.POST_NMS_TOPK_TEST 8 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8'''.split())
cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get("scenes_train").thing_classes)
cfg.OUTPUT_DIR = sys.argv[1]
Trainer(cfg).train()
"""


def test_two_lines__with_data_sets_of_ones_own_in_detectron2s_trainer(scenes, tmp_path):
    result = run_python("-c", OWN_TRAIN_NET, tmp_path / "run", *dataset_flags(scenes))
    assert result.returncode == 0, result.stderr
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()
    ]
    assert {"loss_cls", "loss_rpn_loc", "bbox/AP", "bbox/AP50", "bbox/AP75"} <= set().union(*rows)


ARCHITECTURES = {
    "pascal_voc_R_18_C4_320px": (),
    "pascal_voc_R_50_C4_24k": (),
    "coco_R_50_C4_1x": (),
    "pascal_voc_R_50_DC5_24k": (),
    "coco_R_18_FPN_320px": (),
    "R_34_C4": ("MODEL.RESNETS.DEPTH", "34"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_dict__keys_and_shapes_equal_the_embedded_engines(name):
    cfg = load_detection_config(
        "pascal_voc_R_18_C4_320px" if name == "R_34_C4" else name, ARCHITECTURES[name]
    )
    theirs, ours = (
        build_model(cfg, engine=engine).state_dict() for engine in ("detectron2", "torchvision")
    )
    assert {key: tuple(value.shape) for key, value in theirs.items()} == {
        key: tuple(value.shape) for key, value in ours.items()
    }


def test_engine__trains_on_the_label_subset_alone(tmp_path):
    from generated_images import CLASSES, write_voc_scenes

    from moco_transfer.data.annotations.catalog import get_dataset
    from moco_transfer.data.annotations.label_subset import LabelDraw, take_label_subset
    from moco_transfer.finetune.detectron2_engine.build import Detectron2Engine

    write_voc_scenes(tmp_path, splits={"train": 8}, size=48, seed=0)
    register_dataset(
        "subset_of_scenes", "voc", root=str(tmp_path), split="train", class_names=CLASSES
    )
    whole = [get_dataset("subset_of_scenes")]
    part = take_label_subset(whole, LabelDraw(0.25).draw(whole), "subset.json")
    names = ["DATASETS.TRAIN", "('subset_of_scenes',)", "DATASETS.TEST", "('subset_of_scenes',)"]
    engine = Detectron2Engine(load_detection_config("demo_R_18_FPN", names), torch.device("cpu"))
    images, _, _ = engine._training_data(tuple(part))
    assert [str(image["image_id"]) for image in images] == sorted(part[0].image_ids) and len(
        images
    ) == 2
    assert len(engine._training_data(tuple(whole))[0]) == 8


@pytest.mark.parametrize("labels", [{"fraction": None, "shots": 2}, {"fraction": 0.5}])
def test_engines__train_on_the_same_part_of_the_labels(tmp_path, labels):
    from generated_images import CLASSES, write_voc_scenes

    from moco_transfer.data.annotations.label_subset import LabelDraw
    from moco_transfer.finetune.plan import Request, plan_finetuning

    write_voc_scenes(tmp_path / "scenes", splits={"train": 12, "test": 2}, size=48, seed=0)
    scenes, classes = tmp_path / "scenes", ",".join(CLASSES)
    name = f"part_{len(labels)}"  # a data set's name stays registered
    flags = [f"{name}_{split}=voc:{scenes}:{split}:{classes}" for split in ("train", "test")]
    words = ["DATASETS.TRAIN", f"{name}_train", "DATASETS.TEST", f"{name}_test"]
    words += ["MODEL.DEVICE", "cpu"]
    words += ["MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path / "run")]
    plans = [
        plan_finetuning(
            Request("demo_R_18_FPN", words, flags, engine=engine, label_subset=LabelDraw(**labels)),
            device=torch.device("cpu"),
        )
        for engine in ("torchvision", "detectron2")
    ]
    digests = [plan.header["label_subset_sha256"] for plan in plans]
    assert digests[0] == digests[1] and len(digests[0]) == 64
    images, _, _ = plans[1].engine._training_data(tuple(plans[1].data.train_sets))
    used = sorted(str(image["image_id"]) for image in images)
    batches = plans[0].engine.training_batches(plans[0].data.train_sets, 0)
    assert used == sorted(plans[0].data.subset.images[f"{name}_train"]) and len(used) < 12
    seen = {str(image["image_id"]) for batch in itertools.islice(batches, 20) for image in batch}
    assert seen == set(used)


def test_pth__moves_between_the_engines_with_the_same_features():
    cfg = load_detection_config(
        "pascal_voc_R_50_DC5_24k", ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.DEVICE", "cpu"]
    )
    theirs, ours = build_model(cfg, engine="detectron2"), build_model(cfg, engine="torchvision")
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        ours.eval(), theirs.eval()
        mean, std = ours.pixel_mean, ours.pixel_std
        features = [model.backbone(((image - mean) / std)[None])["dc5"] for model in (theirs, ours)]
    assert features[0].shape == (1, 512, 6, 8)
    torch.testing.assert_close(
        features[0], features[1], rtol=0, atol=1e-5 * float(features[0].abs().max())
    )


def test_registry__basic_blocks_in_res5_of_r18():
    model = build_model(load_detection_config("pascal_voc_R_18_C4_320px"), engine="detectron2")
    assert [type(block).__name__ for block in model.roi_heads.res5] == [
        "BasicBlock",
        "BasicBlock",
        "SyncBatchNorm",
    ]


def test_datasets__ours_are_in_detectron2s_catalogues(scenes):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    from moco_transfer.data.annotations.catalog import get_dataset
    from moco_transfer.finetune.detectron2_engine import add_datasets

    names = tuple((scenes / "classes.txt").read_text().split())
    # "coco" in the name: the official train_net.py would take COCO's evaluator for it.
    register_dataset(
        "not_coco_but_scenes", "voc", root=str(scenes), split="test", class_names=names, year=2007
    )
    add_datasets(["not_coco_but_scenes"])
    add_datasets(["not_coco_but_scenes"])  # again changes nothing
    metadata = MetadataCatalog.get("not_coco_but_scenes")
    assert (metadata.thing_classes, metadata.split, metadata.year, metadata.evaluator_type) == (
        list(names),
        "test",
        2007,
        "pascal_voc",
    )
    theirs, ours = (
        DatasetCatalog.get("not_coco_but_scenes"),
        get_dataset("not_coco_but_scenes").records,
    )
    assert [record["file_name"] for record in theirs] == [record["file_name"] for record in ours]
    assert all(
        a["bbox_mode"] == BoxMode.XYXY_ABS for record in theirs for a in record["annotations"]
    )
    assert "bbox_mode" not in ours[0]["annotations"][0]


def test_datasets__coco_with_its_categories(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from moco_transfer.finetune.detectron2_engine import add_datasets

    image = {"id": 5, "file_name": "a.jpg", "height": 20, "width": 30}
    annotation = {
        "id": 1,
        "image_id": 5,
        "category_id": 7,
        "bbox": [2, 3, 10, 5],
        "area": 50,
        "iscrowd": 0,
        "segmentation": [[2, 3, 12, 3, 12, 8]],
    }
    content = {
        "images": [image],
        "annotations": [annotation],
        "categories": [{"id": 7, "name": "screw"}, {"id": 3, "name": "nut"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a.jpg").write_bytes(b"")
    register_dataset(
        "parts_of_a_voc", "coco", json_file=str(tmp_path / "a.json"), image_root=str(tmp_path)
    )
    add_datasets(["parts_of_a_voc"])
    metadata = MetadataCatalog.get("parts_of_a_voc")
    assert metadata.thing_classes == [
        "nut",
        "screw",
    ] and metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    (record,) = DatasetCatalog.get("parts_of_a_voc")
    assert (
        record["annotations"][0]["bbox"] == [2, 3, 12, 8]
        and record["annotations"][0]["category_id"] == 1
    )


def test_datasets__lvis_is_read_without_the_package_lvis(shared_data, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets.lvis import get_lvis_instances_meta

    from moco_transfer.finetune.detectron2_engine import add_datasets

    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    theirs = get_lvis_instances_meta("lvis_v0.5_val")["thing_classes"]
    add_datasets(["lvis_v0.5_val"])
    metadata, records = MetadataCatalog.get("lvis_v0.5_val"), DatasetCatalog.get("lvis_v0.5_val")
    assert (metadata.evaluator_type, len(records)) == ("lvis", 128)
    assert metadata.thing_classes == theirs and metadata.json_file.startswith(str(shared_data))
    assert {"neg_category_ids", "not_exhaustive_category_ids"} <= records[0].keys()


def test_datasets__refuse_a_built_in_name_that_lies_elsewhere(tmp_path, monkeypatch):
    from moco_transfer.finetune.detectron2_engine import add_datasets

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(
        InputError,
        match=(
            r"'voc_2007_test' is .* in Detectron2's catalogue and .*VOC2007.*Set"
            r" DETECTRON2_DATASETS before"
        ),
    ):
        add_datasets(["voc_2007_test"])


CITYSCAPES = """
from detectron2.data import DatasetCatalog, MetadataCatalog
import moco_transfer.finetune.detectron2_engine as plugin
plugin.add_datasets()
plugin.add_datasets()
name = "cityscapes_fine_instance_seg_val"
records, about = DatasetCatalog.get(name), MetadataCatalog.get(name)
print(len(records), len(records[0]["annotations"]), about.thing_classes[2], about.evaluator_type)
"""


def test_datasets__cityscapes_is_read_by_us_under_detectron2s_names(tmp_path):
    """Detectron2's own reader imports a package that is not public (issue 5436)."""
    for folder in write_split(tmp_path / "files", count=2):
        (tmp_path / "cityscapes" / folder.name).mkdir(parents=True)
        folder.rename(tmp_path / "cityscapes" / folder.name / "val")
    result = run_python("-c", CITYSCAPES, DETECTRON2_DATASETS=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "2 4 car cityscapes_instance"


@pytest.mark.parametrize("first_pixel", [0, 1])
def test_evaluator__is_ours_with_detectron2s_interface(scenes, tmp_path, first_pixel):
    """The ground truth as detections gives AP 100, also from files without <pose> that count pixels
    from 0, which Detectron2's own evaluator rejects or scores a pixel off.
    """
    from detectron2.evaluation import DatasetEvaluator
    from detectron2.structures import Boxes, Instances

    from moco_transfer.data.annotations.catalog import get_dataset
    from moco_transfer.finetune.detectron2_engine import build_evaluator

    name = f"from_{first_pixel}_{tmp_path.name}"
    shutil.copytree(scenes, tmp_path / "scenes")
    for file in (tmp_path / "scenes" / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("<pose>Unspecified</pose>", ""))
    names = tuple((scenes / "classes.txt").read_text().split())
    register_dataset(
        name,
        "voc",
        root=str(tmp_path / "scenes"),
        split="test",
        class_names=names,
        first_pixel=first_pixel,
    )
    cfg = load_detection_config("demo_R_18_FPN", ["OUTPUT_DIR", str(tmp_path / "out")])
    evaluator = build_evaluator(cfg, name)
    assert isinstance(evaluator, DatasetEvaluator)
    evaluator.reset()
    for record in get_dataset(name).records:
        objects = record["annotations"]
        found = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4)),
            scores=torch.ones(len(objects)),
            pred_classes=torch.tensor([a["category_id"] for a in objects]).long(),
        )
        evaluator.process([record], [{"instances": found}])
    metrics = evaluator.evaluate()["bbox"]
    assert metrics["AP50"] == pytest.approx(100)
    assert (tmp_path / "out" / "inference" / f"predictions_{name}.json").is_file()


def test_sync_on_cpu__keeps_keys_parameters_and_mode():
    from moco_transfer.finetune.sync_norm import SyncBatchNorm2d, sync_on_cpu

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1),
        torch.nn.Sequential(torch.nn.SyncBatchNorm(4, eps=1e-3, momentum=0.2)),
    ).eval()
    model[1][0].running_var.fill_(3.0)
    before, parameters = (
        {key: value.clone() for key, value in model.state_dict().items()},
        list(model.parameters()),
    )
    expected = model(torch.ones(2, 3, 5, 5))
    assert sync_on_cpu(model) is model and isinstance(model[1][0], SyncBatchNorm2d)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert (model[1][0].eps, model[1][0].momentum, model[1][0].training) == (1e-3, 0.2, False)
    torch.testing.assert_close(model(torch.ones(2, 3, 5, 5)), expected)
