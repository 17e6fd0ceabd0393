"""Semantic segmentation on Detectron2, and that it agrees with the embedded engine.

Seen red under: a dilation of 5 in the head; res5 of basic blocks not dilated; the window not passed
on; Detectron2's own mapper; the ignored label not passed on; the random state not restored; logits
given to the evaluator as classes.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from moco_transfer.config import available, flatten_config, load_detection_config
from moco_transfer.data import register_dataset
from moco_transfer.data.annotations.catalog import get_dataset
from moco_transfer.finetune import build_model
from moco_transfer.finetune.engine import engine_class
from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.run import finetune
from moco_transfer.report import build_tables, read_runs
from moco_transfer.runtime.errors import InputError

pytestmark = pytest.mark.detectron2

LEAVES = sorted(
    name.split("/")[1]
    for name in available()
    if name.startswith("segmentation/") and "Base-" not in name
)
SMALL = """
    MODEL.DEVICE cpu SEED 0 DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.002
    SOLVER.REFERENCE_WORLD_SIZE 0 SOLVER.MAX_ITER 3 SOLVER.STEPS (2,) SOLVER.WARMUP_ITERS 0
    SOLVER.CHECKPOINT_PERIOD 100 SOLVER.AMP.ENABLED False INPUT.CROP.SIZE [65,65]
    INPUT.RANDOM_SCALE () INPUT.MIN_SIZE_TRAIN (64,96) INPUT.MIN_SIZE_TRAIN_SAMPLING range
    INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 96 TEST.PRECISE_BN.NUM_ITER 1
    MODEL.SEM_SEG_HEAD.CONVS_DIM 32
""".split()
FEW = 4


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory, shared_data):
    """Folder for runs; few_voc and few_cityscapes are a few images of the validation sets."""
    root = tmp_path_factory.mktemp("segmentation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(shared_data))
        for name in ("voc_2012", "cityscapes_fine"):
            val = get_dataset(f"{name}_sem_seg_val")
            for part in ("images", "labels"):
                (root / name / part).mkdir(parents=True)
            for record in val.records[:FEW]:
                for part, key in (("images", "file_name"), ("labels", "sem_seg_file_name")):
                    file = Path(record[key])
                    short = file.name.replace("_leftImg8bit", "").replace(
                        "_gtFine_labelTrainIds", ""
                    )
                    (root / name / part / short).symlink_to(file)
            register_dataset(
                f"few_{name}",
                "semantic",
                image_root=root / name / "images",
                label_root=root / name / "labels",
                class_names=val.class_names,
            )
        yield root


def request(name: str, folder: Path, *words: object, engine: str = "detectron2", **more) -> Request:
    data = "cityscapes_fine" if name.startswith("cityscapes") else "voc_2012"
    names = [*("DATASETS.TRAIN", f"{data}_sem_seg_train"), *("DATASETS.TEST", f"few_{data}")]
    weights = ["MODEL.WEIGHTS", "", "OUTPUT_DIR", folder]
    settings = list(map(str, [*SMALL, *names, *weights, *words]))
    return Request(name, settings, engine=engine, force=True, **more)


@pytest.fixture(scope="module")
def runs(place):
    """A run of each config on Detectron2, and one on the embedded engine."""
    for name in LEAVES:
        finetune(plan_finetuning(request(name, place / "runs" / name)))
    name = "voc_R_18_FCN_small"
    words = request(name, place / "runs" / "embedded", engine="torchvision")
    finetune(plan_finetuning(words))
    return place / "runs"


@pytest.mark.parametrize("name", LEAVES)
def test_config__trains_three_iterations_on_detectron2(runs, name):
    record = json.loads((runs / name / "results.json").read_text())
    assert [record[k] for k in ("engine", "task", "iterations")] == ["detectron2", name, 3]
    assert set(record["last_losses"]) == {"loss_sem_seg"}
    assert 0 < record["last_losses"]["loss_sem_seg"] < 10
    assert {"mIoU", "mACC", "pACC", "fwIoU"} < set(record["metrics"]["sem_seg"])
    assert record["norm"].startswith("BN (SyncBN in one process)")
    (predictions,) = (runs / name).glob("predictions_few_*.json")
    assert len({p["image_id"] for p in json.loads(predictions.read_text())}) == FEW


def test_table__keeps_the_engines_apart(runs):
    tables = build_tables(read_runs([str(runs)])[0])
    of_task = [t for t in tables if t.setting.task == "voc_R_18_FCN_small"]
    assert {t.setting.engine for t in of_task} == {"detectron2", "torchvision"}
    assert len(of_task) == 2 and all(list(table.kinds) == ["sem_seg"] for table in of_task)


@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_checkpoint__has_the_same_numbers_on_the_other_engine(runs, place, engine):
    name = "voc_R_18_FCN_small"
    trained = runs / ("embedded" if engine == "detectron2" else name)
    weights = ("MODEL.WEIGHTS", trained / "checkpoint_0000003.pth")
    again = request(name, place / f"by_{engine}", *weights, engine=engine, eval_only=True)
    found = finetune(plan_finetuning(again))["metrics"]["sem_seg"]
    theirs = json.loads((trained / "results.json").read_text())["metrics"]["sem_seg"]
    assert found.keys() == theirs.keys() and found["mIoU"] > 0
    # A pixel between two classes may fall on either side of float32's rounding.
    assert all(abs(found[key] - theirs[key]) < 0.05 for key in ("mIoU", "mACC", "pACC"))


def pair(name: str, *words: str) -> list[torch.nn.Module]:
    """Return Detectron2's model and the embedded one with the same weights, in float64."""
    cfg = load_detection_config(name, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", *words])
    torch.manual_seed(0)
    theirs, ours = (build_model(cfg, engine=engine) for engine in ("detectron2", "torchvision"))
    state = theirs.state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    ours.load_state_dict(state)
    return [theirs.double(), ours.double()]


def batch_of_two(num_classes: int) -> list[dict]:
    drawn = torch.Generator().manual_seed(1)
    batch = []
    for height, width in ((81, 97), (65, 70)):
        labels = torch.randint(0, num_classes, (height, width), generator=drawn)
        labels[:5] = 255
        image = torch.rand(3, height, width, generator=drawn, dtype=torch.float64) * 255
        batch.append({"image": image, "sem_seg": labels})
    return batch


@pytest.mark.parametrize(
    ("name", "classes"), [("voc_R_18_FCN_small", 21), ("cityscapes_R_50_FCN_d6_90k", 19)]
)
def test_model__loss_and_gradients_equal_the_embedded_engines_in_float64(name, classes):
    models = pair(name, "MODEL.SEM_SEG_HEAD.NORM", "BN")
    losses = []
    for model in models:
        (loss,) = model(batch_of_two(classes)).values()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    theirs, ours = (dict(model.named_parameters()) for model in models)
    for key, parameter in theirs.items():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(parameter.grad, ours[key].grad, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("name", "window"),
    [("voc_R_18_FCN_small", 0), ("voc_R_18_FCN_small", 49), ("voc_R_50_FCN_d6_30k", 0)],
)
def test_inference__logits_and_classes_equal_the_embedded_engines(name, window):
    words = ["TEST.SLIDING_WINDOW.SIZE", str(window), "TEST.SLIDING_WINDOW.STRIDE", "32"]
    theirs, ours = (model.eval() for model in pair(name, *words))
    engine = engine_class("detectron2")(load_detection_config(name, words), torch.device("cpu"))
    (record, _) = batch_of_two(21)
    item = {"image": record["image"], "height": 130, "width": 151}
    with torch.no_grad():
        (found,) = engine.detector(theirs)([item])
        (expected,) = ours([item])
        assert found["sem_seg"].shape == (130, 151) and found["sem_seg"].dtype == torch.int64
        assert (found["sem_seg"] == expected["sem_seg"]).float().mean() > 0.999
        normalised = ((item["image"] - ours.pixel_mean) / ours.pixel_std)[None]
        logits = theirs.sem_seg_head.layers(theirs.backbone(normalised))
        torch.testing.assert_close(logits, ours.logits(normalised), rtol=0, atol=1e-10)
        if not window:  # a train_net.py of somebody's own
            (own,) = theirs([item])
            assert torch.equal(own["sem_seg"].argmax(dim=0), found["sem_seg"])


def test_batches__crops_filled_with_the_ignored_label(place):
    plan = plan_finetuning(request("voc_R_18_FCN_small", place / "other"))
    batch = next(iter(plan.engine.training_batches(plan.data.train_sets, 0)))
    assert [tuple(item["image"].shape) for item in batch] == [(3, 65, 65)] * 2
    for item in batch:
        assert item["sem_seg"].shape == (65, 65) and item["sem_seg"].dtype == torch.int64
        assert set(item["sem_seg"].unique().tolist()) <= {*range(21), 255}


def test_resume__ends_with_the_same_bits(runs, place):
    name = "voc_R_18_FCN_small"
    plan = plan_finetuning(request(name, place / "cut"))
    batches = plan.engine.training_batches

    def stopping(*arguments):
        for batch in batches(*arguments):
            yield batch
            signal.raise_signal(signal.SIGTERM)

    plan.engine.training_batches = stopping
    assert finetune(plan) is None
    finetune(plan_finetuning(request(name, place / "cut", resume=True)))
    whole, cut = (
        torch.load(folder / "checkpoint_0000003.pth", weights_only=True)
        for folder in (runs / name, place / "cut")
    )
    assert not [
        key
        for key, tensor in whole["model"].items()
        if not torch.equal(tensor, cut["model"][key]) and not key.endswith("num_batches_tracked")
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "4"),
        ("INPUT.CROP.TYPE", "relative"),
        ("TEST.AUG.ENABLED", "True"),
        ("TEST.SLIDING_WINDOW.SIZE", "33"),
    ],
)
def test_refused__by_key(place, key, value):
    with pytest.raises(InputError, match=key.rsplit(".", 1)[0]):
        plan_finetuning(request("voc_R_18_FCN_small", place / "refused", key, value))
    assert not (place / "refused").exists()


@pytest.mark.parametrize("name", LEAVES)
def test_plugin__detectron2s_config_takes_the_file_with_our_keys(name):
    from detectron2.config import get_cfg

    from moco_transfer.finetune.detectron2_engine import add_segmentation_keys

    theirs = get_cfg()
    add_segmentation_keys(theirs)
    theirs.merge_from_file(str(available()[f"segmentation/{name}"]))
    assert flatten_config(theirs) == flatten_config(load_detection_config(name))


def test_plugin__a_trainer_of_ones_own_as_docs_engines_has_it(place, tmp_path):
    """Detectron2's DefaultTrainer, with the lines that the documentation names."""
    from detectron2.config import get_cfg
    from detectron2.data import build_detection_test_loader, build_detection_train_loader
    from detectron2.engine import DefaultTrainer

    import moco_transfer.finetune.detectron2_engine as plugin

    class Trainer(DefaultTrainer):
        build_evaluator = staticmethod(plugin.build_evaluator)

        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg, mapper=plugin.segmentation_mapper(cfg, True))

        @classmethod
        def build_test_loader(cls, cfg, name):
            mapper = plugin.segmentation_mapper(cfg, False)
            return build_detection_test_loader(cfg, name, mapper=mapper)

    cfg = get_cfg()
    plugin.add_segmentation_keys(cfg)
    cfg.merge_from_file(plugin.config.path("voc_R_18_FCN_small"))
    names = ["DATASETS.TRAIN", "('few_voc_2012',)", "DATASETS.TEST", "('few_voc_2012',)"]
    cfg.merge_from_list([*SMALL, *names, "MODEL.RESNETS.NORM", "BN"])  # SyncBN is CUDA's alone
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NORM", "BN", "OUTPUT_DIR", str(tmp_path / "own")])
    plugin.add_datasets(["few_voc_2012"])  # an earlier test may have imported Detectron2 elsewhere
    Trainer(cfg).train()
    lines = (tmp_path / "own" / "metrics.json").read_text().splitlines()
    logged: dict = {}
    for line in lines:
        logged |= json.loads(line)
    assert 0 < logged["total_loss"] < 10
    assert 0 <= logged["sem_seg/mIoU"] <= 100 and logged["sem_seg/pACC"] > 0
    (predictions,) = (tmp_path / "own" / "inference").glob("predictions_few_voc_2012.json")
    assert len({p["image_id"] for p in json.loads(predictions.read_text())}) == FEW
