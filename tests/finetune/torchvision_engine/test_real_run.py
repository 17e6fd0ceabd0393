"""Twenty images of COCO val learned by heart, and the checkpoint carried to Detectron2 and back.

The run takes about a quarter of an hour on two idle cores; ``MOCO_TRANSFER_TEST_RUN=FOLDER`` keeps
it there, and uses it if it is done.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import real_run

from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.run import finetune

pytestmark = pytest.mark.slow
# What is compared between engines is computed in float32: bfloat16 would round the same detector
# differently in each.
FLOAT32 = ("SOLVER.AMP.ENABLED", "False")


@pytest.fixture(scope="module")
def trained(shared_data, tmp_path_factory) -> tuple[Path, Path]:
    """The folder of the run and its last checkpoint."""
    folder = Path(os.environ.get("MOCO_TRANSFER_TEST_RUN") or tmp_path_factory.mktemp("twenty"))
    folder.mkdir(parents=True, exist_ok=True)
    words = real_run.run_words(shared_data / "coco", folder)
    if not (folder / "run" / "results.json").exists():
        finetune(plan_finetuning(Request(real_run.CONFIG, words, engine="torchvision")))
    return folder, folder / "run" / (folder / "run" / "last_checkpoint").read_text().strip()


def evaluate(
    shared_data: Path, folder: Path, checkpoint: Path, target: str
) -> dict[str, dict[str, float]]:
    more = (*FLOAT32, "MODEL.WEIGHTS", str(checkpoint), "OUTPUT_DIR", str(folder / target))
    words = real_run.run_words(shared_data / "coco", folder, *more)
    request = Request(real_run.CONFIG, words, engine="torchvision", eval_only=True)
    return finetune(plan_finetuning(request))["metrics"]


def test_twenty_images__are_learned_by_heart(trained):
    metrics = json.loads((trained[0] / "run" / "results.json").read_text())["metrics"]
    assert metrics["bbox"]["AP50"] > 90 and metrics["segm"]["AP50"] > 90


@pytest.mark.detectron2
def test_checkpoint__evaluates_in_detectron2_to_the_same_ap(trained, shared_data, tmp_path):
    folder, checkpoint = trained
    ours = evaluate(shared_data, folder, checkpoint, "ours")
    theirs = detectron2_metrics(
        shared_data, folder, detectron2_model(shared_data, folder, checkpoint), tmp_path
    )
    check_same(ours, theirs)


@pytest.mark.detectron2
def test_detectron2s_checkpoint__evaluates_here_to_the_same_ap(trained, shared_data, tmp_path):
    """Detectron2 trains a few iterations on, so that the weights are its own, and saves in its own
    format.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.utils.events import EventStorage
    from make_detectron2_fixtures import as_detectron2

    from moco_transfer.data.annotations.catalog import get_dataset
    from moco_transfer.finetune.datasets import training_records
    from moco_transfer.finetune.torchvision_engine.build import _train_mapper

    folder, checkpoint = trained
    model, cfg = detectron2_model(shared_data, folder, checkpoint)
    mapper = _train_mapper(real_run.run_config(shared_data / "coco", folder), ())
    records = training_records([get_dataset(real_run.NAME)], filter_empty=True)
    import numpy as np
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    model.train()
    with EventStorage():
        for record in records[:6]:
            losses = model(as_detectron2([mapper(record, np.random.default_rng(0))]))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    DetectionCheckpointer(model, str(folder)).save("from_detectron2")
    theirs = detectron2_metrics(shared_data, folder, (model, cfg), tmp_path)
    ours = evaluate(shared_data, folder, folder / "from_detectron2.pth", "theirs")
    check_same(ours, theirs)
    before = json.loads((folder / "run" / "results.json").read_text())["metrics"]
    assert ours["bbox"]["AP"] != pytest.approx(before["bbox"]["AP"], abs=1e-6), (
        "the six iterations changed nothing"
    )


def check_same(ours: dict, theirs: dict) -> None:
    for task in ("bbox", "segm"):
        for name in ("AP", "AP50", "AP75"):
            assert ours[task][name] == pytest.approx(theirs[task][name], abs=0.05), (task, name)
        assert ours[task]["AP"] > 10


def detectron2_model(shared_data: Path, folder: Path, checkpoint: Path):
    """Detectron2's model with the checkpoint, through Detectron2's own loader, and its config."""
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    # One process: synchronised BN is BN, and Detectron2's SyncBN does not run on a CPU.
    ours = real_run.run_config(
        shared_data / "coco", folder, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"
    ).clone()
    ours.defrost()
    cfg = get_cfg()
    cfg.merge_from_other_cfg(ours)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(checkpoint))
    loaded = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in loaded.items())
    return model, cfg


def detectron2_metrics(shared_data: Path, folder: Path, model_and_cfg: tuple, output: Path) -> dict:
    """Detectron2's numbers by its own data set, loader, loop and evaluator."""
    from detectron2.data import DatasetCatalog, build_detection_test_loader
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator, inference_on_dataset

    model, cfg = model_and_cfg
    if real_run.NAME not in DatasetCatalog.list():
        register_coco_instances(
            real_run.NAME, {}, str(folder / "twenty.json"), str(shared_data / "coco" / "val2017")
        )
    evaluator = COCOEvaluator(
        real_run.NAME, ("bbox", "segm"), False, str(output), use_fast_impl=False
    )
    return inference_on_dataset(model, build_detection_test_loader(cfg, real_run.NAME), evaluator)
