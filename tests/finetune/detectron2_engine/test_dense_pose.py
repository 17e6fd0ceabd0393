"""Dense pose on Detectron2 with its project DensePose, on hand-made points on COCO's people and
with stand-ins for the project's files of a body's surface (dense_pose_files.py).

Seen red under: records without points; images without points trained on; Detectron2's own mapper;
-1 of the project as a number; the files of the evaluation not
looked for.
"""

from __future__ import annotations

import importlib.util
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from dense_pose_files import BANDS, FILES, write_body_files, write_people

from moco_transfer.cli.main import main
from moco_transfer.config import load_detection_config
from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.run import finetune
from moco_transfer.runtime.errors import InputError

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.skipif(
        importlib.util.find_spec("densepose") is None,
        reason="Detectron2's project DensePose is not installed",
    ),
]

NAME = "coco_densepose_R_50_FPN_s1x"
SMALL = """
    MODEL.DEVICE cpu SEED 0 DATALOADER.NUM_WORKERS 0 DATALOADER.ASPECT_RATIO_GROUPING False
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TRAIN 96 INPUT.MAX_SIZE_TEST 96
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TEST 8 SOLVER.IMS_PER_BATCH 2
    SOLVER.REFERENCE_WORLD_SIZE 0 SOLVER.BASE_LR 0.00025 SOLVER.MAX_ITER 3 SOLVER.STEPS (2,)
    SOLVER.WARMUP_ITERS 1 TEST.PRECISE_BN.NUM_ITER 1 MODEL.ROI_DENSEPOSE_HEAD.CONV_HEAD_DIM 32
    MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 32
""".split()


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory, shared_data):
    """Folder of the data sets and of the project's files, which the environment names."""
    root = tmp_path_factory.mktemp("dense_pose")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(write_people(shared_data, root)))
        patch.setenv("FVCORE_CACHE", str(write_body_files(root / "cache")))
        yield root


def request(folder: Path, *words: object, **more) -> Request:
    settings = [*SMALL, "OUTPUT_DIR", folder, *words]
    return Request(NAME, list(map(str, settings)), engine="detectron2", force=True, **more)


@pytest.fixture(scope="module")
def backbone(place):
    from torchvision.models import resnet50

    from moco_transfer.convert import convert_checkpoint

    torch.manual_seed(1)
    torch.save(resnet50().state_dict(), place / "r50.pth")
    convert_checkpoint(place / "r50.pth", place / "r50.pkl")
    return place / "r50.pkl"


@pytest.fixture(scope="module")
def runs(place, backbone):
    """Folder of two runs of three iterations, and of one that was stopped and resumed."""
    for name, words in (("random", ()), ("moco", ("MODEL.WEIGHTS", backbone))):
        finetune(plan_finetuning(request(place / "runs" / name, *words, init=name)))
    words = place / "cut" / "moco", "MODEL.WEIGHTS", backbone
    plan = plan_finetuning(request(*words, init="moco"))
    batches = plan.engine.training_batches

    def stopping(*arguments):
        for batch in batches(*arguments):
            yield batch
            signal.raise_signal(signal.SIGTERM)

    plan.engine.training_batches = stopping
    assert finetune(plan) is None
    finetune(plan_finetuning(request(*words, init="moco", resume=True)))
    return place / "runs"


@pytest.mark.parametrize("name", ["random", "moco"])
def test_config__trains_three_iterations_and_is_evaluated(runs, name):
    record = json.loads((runs / name / "results.json").read_text())
    assert [record[k] for k in ("engine", "task", "iterations")] == ["detectron2", NAME, 3]
    losses = {f"loss_densepose_{part}" for part in "UVIS"}
    assert losses < set(record["last_losses"])
    assert all(0 < record["last_losses"][loss] < math.inf for loss in losses)
    assert set(record["metrics"]) == {"bbox", "densepose"}
    of_pose = record["metrics"]["densepose"]
    assert {"AP", "AP50", "AP75", "APm", "APl", "GPSm-AP"} <= set(of_pose)
    assert all(0 <= value <= 100 for value in of_pose.values())
    assert record["norm"] == "BN (SyncBN in one process) x 61"


def test_resume__ends_with_the_same_bits(runs, place):
    whole, cut = (
        torch.load(folder / "moco" / "checkpoint_0000003.pth", weights_only=True)
        for folder in (runs, place / "cut")
    )
    assert not [
        name
        for name, tensor in whole["model"].items()
        if not torch.equal(tensor, cut["model"][name]) and not name.endswith("num_batches_tracked")
    ]
    for mine, theirs in zip(
        *(run["optimizer"]["state"].values() for run in (whole, cut)), strict=1
    ):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])


def test_table__shows_the_rows_with_the_columns_of_dense_pose(runs, capsys):
    assert main(["report", str(runs)]) == 0
    text = capsys.readouterr().out
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")][-4:]
    assert "AP" in header and {row.split("|")[1].strip() for row in rows} == {"random", "moco"}


def test_training__on_images_with_points_alone(place):
    plan = plan_finetuning(request(place / "other"))
    assert sum(len(dataset.records) for dataset in plan.data.train_sets) == 10
    ours = plan.engine._training_data(tuple(plan.data.train_sets))[0]
    files = {record["file_name"] for record in ours}
    assert len(files) == len(ours) == 9 and all(str(place) in file for file in files)
    batch = next(iter(plan.engine.training_batches(plan.data.train_sets, 0)))
    assert {item["instances"].has("gt_densepose") for item in batch} == {True}


def perfect(records: list[dict]) -> list[dict]:
    """Return what a model would give that knows how the files were made."""
    from densepose.structures import DensePoseChartPredictorOutput
    from detectron2.structures import Boxes, Instances

    side = 112
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    outputs = []
    for record in records:
        count = len(record["annotations"])
        parts = torch.full((25, side, side), -9.0)
        u, v = x.expand(25, -1, -1), torch.zeros(25, side, side)
        for band, part in enumerate(BANDS):
            parts[part][(y * len(BANDS)).long() == band] = 9.0
            v[part] = (y * len(BANDS) - band).clamp(0, 1)
        person = torch.stack([torch.full((side, side), value) for value in (-9.0, 9.0)])
        output = Instances((record["height"], record["width"]))
        output.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]))
        output.scores = torch.linspace(0.9, 0.8, count)
        output.pred_classes = torch.zeros(count, dtype=torch.long)
        output.pred_densepose = DensePoseChartPredictorOutput(
            *(t.expand(count, *t.shape) for t in (person, parts, u, v))
        )
        outputs.append(output)
    return outputs


def test_evaluator__numbers_of_perfect_and_of_narrow_detections(place):
    from moco_transfer.finetune.datasets import make_evaluator
    from moco_transfer.finetune.detectron2_engine.datasets import detections

    plan = plan_finetuning(request(place / "other"))
    (dataset,) = plan.data.test_sets
    found = {}
    for share in (0, 0.4):
        ours = make_evaluator(dataset, plan.data.tasks, place)
        evaluator = plan.engine.evaluator(ours, dataset)
        evaluator.reset()
        for record, output in zip(dataset.records, perfect(dataset.records), strict=True):
            boxes = output.pred_boxes.tensor
            boxes[:, 2] -= share * (boxes[:, 2] - boxes[:, 0])
            evaluator.process([record], [detections(output)])
        found[share] = evaluator.evaluate()["densepose"]
    assert found[0]["AP50"] == found[0]["AP75"] == 100 and found[0]["AP"] > 80
    assert found[0.4]["AP"] < found[0]["AP"] / 2
    assert found[0]["GPSm-AP"] < found[0]["AP"]  # the whole box is no person


def test_nothing_found__is_an_ap_of_0(place):
    from moco_transfer.finetune.datasets import make_evaluator

    plan = plan_finetuning(request(place / "other"))
    (dataset,) = plan.data.test_sets
    evaluator = plan.engine.evaluator(make_evaluator(dataset, plan.data.tasks, place), dataset)
    evaluator.reset()
    metrics = evaluator.evaluate()["densepose"]
    assert metrics["AP"] == metrics["AP50"] == metrics["GPSm-AP75"] == 0 and "APm" not in metrics


@pytest.mark.parametrize("name", FILES)
def test_missing_file__is_named_with_its_place_before_training(place, tmp_path, name, monkeypatch):
    cache = write_body_files(tmp_path / "cache")
    (cache / "densepose" / "data" / name).unlink()
    monkeypatch.setenv("FVCORE_CACHE", str(cache))
    with pytest.raises(InputError) as caught:
        plan_finetuning(request(tmp_path / "run"))
    assert f"{cache / 'densepose' / 'data'} lacks {name}," in str(caught.value)
    without_test = request(tmp_path / "run", "DATASETS.TEST", "()")
    if name == FILES[0]:
        with pytest.raises(InputError):
            plan_finetuning(without_test)
    else:
        plan_finetuning(without_test)


@pytest.mark.parametrize(
    ("key", "value"),
    [("INPUT.RANDOM_FLIP", "vertical"), ("INPUT.CROP.ENABLED", True), ("TEST.AUG.ENABLED", True)],
)
def test_points_that_cannot_follow__are_refused(place, tmp_path, key, value):
    with pytest.raises(InputError, match=f"Dense pose needs {key} .*, got {value!r}"):
        plan_finetuning(request(tmp_path / "run", key, value))


def test_without_the_project__is_one_sentence(place, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "densepose", None)
    with pytest.raises(InputError) as caught:
        plan_finetuning(request(tmp_path / "run"))
    assert str(caught.value).count("\n") == 0 and "projects/DensePose" in str(caught.value)


def test_schema__has_the_projects_defaults():
    from densepose import add_densepose_config
    from detectron2.config import get_cfg

    from moco_transfer.config.schema_file import flatten_config, read_schema

    theirs = get_cfg()
    add_densepose_config(theirs)
    flat, ours = flatten_config(theirs), flatten_config(read_schema("densepose_schema"))
    assert {key: (type(v), v) for key, v in ours.items()} == {
        key: (type(flat[key]), flat[key]) for key in ours
    }
    assert "DENSEPOSE_ON" in load_detection_config(NAME).MODEL
    assert "DENSEPOSE_ON" not in load_detection_config("coco_R_50_FPN_1x").MODEL
