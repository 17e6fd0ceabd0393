"""Twenty images of COCO learned by heart, with masks and with keypoints, and the checkpoints
carried to Detectron2 and back.

The run of masks takes about a quarter of an hour on two idle cores, that of keypoints five minutes.
``MOCO_TRANSFER_TEST_RUN=FOLDER`` keeps them there, and uses them if they are done.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import real_run

from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.run import finetune

pytestmark = pytest.mark.slow
# What is compared between engines is computed in float32: bfloat16 would round the same detector
# differently in each.
FLOAT32 = ("SOLVER.AMP.ENABLED", "False")
# The metrics that the run learns by heart.
LEARNED = {"segm": [("bbox", "AP50"), ("segm", "AP50")], "keypoints": [("keypoints", "AP")]}


@dataclass(frozen=True)
class Trained:
    """A run that is done, in its folder, with the folder of COCO that it was trained on."""

    run: real_run.RealRun
    coco: Path
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run" / (self.folder / "run" / "last_checkpoint").read_text().strip()

    @property
    def tasks(self) -> tuple[str, str]:
        return "bbox", self.run.head

    def metrics(self) -> dict[str, dict[str, float]]:
        return json.loads((self.folder / "run" / "results.json").read_text())["metrics"]

    def evaluate(self, checkpoint: Path, target: str) -> dict[str, dict[str, float]]:
        """The metrics of a checkpoint on the embedded engine."""
        more = (*FLOAT32, "MODEL.WEIGHTS", str(checkpoint), "OUTPUT_DIR", str(self.folder / target))
        words = self.run.words(self.coco, self.folder, *more)
        request = Request(self.run.config, words, engine="torchvision", eval_only=True)
        return finetune(plan_finetuning(request))["metrics"]

    def config(self, *more: str):
        return self.run.run_config(self.coco, self.folder, *more)


@pytest.fixture(scope="module", params=[real_run.MASKS, real_run.KEYPOINTS], ids=lambda r: r.head)
def trained(request, shared_data, tmp_path_factory) -> Trained:
    run, kept = request.param, os.environ.get("MOCO_TRANSFER_TEST_RUN")
    folder = Path(kept) / run.head if kept else tmp_path_factory.mktemp(run.head)
    folder.mkdir(parents=True, exist_ok=True)
    words = run.words(shared_data / "coco", folder)
    if not (folder / "run" / "results.json").exists():
        # By hand is the learning rate: --force overrules the linter.
        finetune(plan_finetuning(Request(run.config, words, engine="torchvision", force=True)))
    return Trained(run, shared_data / "coco", folder)


def test_twenty_images__are_learned_by_heart(trained):
    metrics = trained.metrics()
    for task, name in LEARNED[trained.run.head]:
        assert metrics[task][name] > 90, (task, name)


@pytest.mark.detectron2
def test_checkpoint__evaluates_in_detectron2_to_the_same_ap(trained, tmp_path):
    ours = trained.evaluate(trained.checkpoint, "ours")
    theirs = detectron2_metrics(trained, detectron2_model(trained), tmp_path)
    check_same(trained, ours, theirs)


@pytest.mark.detectron2
def test_detectron2s_checkpoint__evaluates_here_to_the_same_ap(trained, tmp_path):
    """Detectron2 trains a few iterations on, so that the weights are its own, and saves in its own
    format.
    """
    import numpy as np
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.utils.events import EventStorage
    from make_detectron2_fixtures import as_detectron2

    from moco_transfer.data.annotations.catalog import get_dataset
    from moco_transfer.finetune.datasets import training_records
    from moco_transfer.finetune.torchvision_engine.build import _train_mapper

    model, cfg = detectron2_model(trained)
    dataset = get_dataset(trained.run.name)
    mapper = _train_mapper(trained.config(), dataset.keypoint_mirror)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    model.train()
    with EventStorage():
        for record in training_records([dataset], filter_empty=True)[:6]:
            losses = model(as_detectron2([mapper(record, np.random.default_rng(0))]))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    DetectionCheckpointer(model, str(trained.folder)).save("from_detectron2")
    theirs = detectron2_metrics(trained, (model, cfg), tmp_path)
    ours = trained.evaluate(trained.folder / "from_detectron2.pth", "theirs")
    check_same(trained, ours, theirs)
    before = trained.metrics()
    assert ours["bbox"]["AP"] != pytest.approx(before["bbox"]["AP"], abs=1e-6), (
        "the six iterations changed nothing"
    )


def check_same(trained: Trained, ours: dict, theirs: dict) -> None:
    for task in trained.tasks:
        for name in ("AP", "AP50", "AP75"):
            assert ours[task][name] == pytest.approx(theirs[task][name], abs=0.05), (task, name)
        assert ours[task]["AP"] > 10


def detectron2_model(trained: Trained):
    """Detectron2's model with the checkpoint, through Detectron2's own loader, and its config."""
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    # One process: synchronised BN is BN, and Detectron2's SyncBN does not run on a CPU.
    ours = trained.config("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN").clone()
    ours.defrost()
    cfg = get_cfg()
    cfg.merge_from_other_cfg(ours)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(trained.checkpoint))
    loaded = torch.load(trained.checkpoint, weights_only=True)["model"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in loaded.items())
    return model, cfg


def detectron2_metrics(trained: Trained, model_and_cfg: tuple, output: Path) -> dict:
    """Detectron2's numbers by its own data set, loader, loop and evaluator."""
    from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator, inference_on_dataset

    (model, cfg), name = model_and_cfg, trained.run.name
    if name not in DatasetCatalog.list():
        people = MetadataCatalog.get("keypoints_coco_2017_val")
        keys = ("keypoint_names", "keypoint_flip_map")
        of_head = {key: people.get(key) for key in keys if trained.run.head == "keypoints"}
        file = trained.folder / "twenty.json"
        register_coco_instances(name, of_head, str(file), str(trained.coco))
    evaluator = COCOEvaluator(name, trained.tasks, False, str(output), use_fast_impl=False)
    return inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)
