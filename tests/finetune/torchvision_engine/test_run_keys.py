"""Keys outside MODEL on the embedded engine: each has its effect or is refused by name, before
anything is written.

Seen red under: any row of the engine's list of refusals taken out; the sizes first looked at by the
    loader; CUDNN_BENCHMARK or
FLOAT32_PRECISION not passed on; a shorter edge of 0 scaled to nothing; a key of the schema that
nothing reads.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.config import available, load_detection_config
from moco_transfer.config.schema_file import DETECTION_DEFAULTS
from moco_transfer.data.batches.transforms import TestMapper
from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.torchvision_engine.build import TorchvisionEngine
from moco_transfer.runtime.errors import InputError

# Read where a key that is refused has another value, or by no engine at all.
WITHOUT_EFFECT = {
    "VERSION",  # of the format of the file
    "GLOBAL.HACK",  # nothing reads it in Detectron2 either
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",  # of PROPOSAL_FILES
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "INPUT.CROP.TYPE",  # of CROP.ENABLED
    "INPUT.CROP.SIZE",
    "SOLVER.NUM_DECAYS",  # of LR_SCHEDULER_NAME WarmupStepWithFixedGammaLR
    "TEST.AUG.MIN_SIZES",  # of AUG.ENABLED
    "TEST.AUG.MAX_SIZE",
    "TEST.AUG.FLIP",
    "TEST.KEYPOINT_OKS_SIGMAS",  # of KEYPOINT_ON
}


def all_words(tmp_path: Path, *words: str) -> list[str]:
    return ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run"), "SEED", "0", *words]


def config(tmp_path: Path, *words: str):
    return load_detection_config("demo_R_18_FPN", all_words(tmp_path, *words))


def plan(tmp_path: Path, *words: str):
    request = Request("demo_R_18_FPN", all_words(tmp_path, *words), engine="torchvision")
    return plan_finetuning(request)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATASETS.PROPOSAL_FILES_TRAIN", "('proposals.pkl',)"),
        ("DATASETS.PROPOSAL_FILES_TEST", "('proposals.pkl',)"),
        ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"),
        ("INPUT.CROP.ENABLED", "True"),
        ("INPUT.FORMAT", "L"),
        ("INPUT.MASK_FORMAT", "rle"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "middle"),
        ("INPUT.RANDOM_FLIP", "both"),
        ("TEST.AUG.ENABLED", "True"),
        ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 38.5, 0.2]]"),
        ("FLOAT32_PRECISION", "extreme"),
        ("VIS_PERIOD", "20"),
    ],
)
def test_key_that_is_not_implemented__is_refused_before_anything_is_written(tmp_path, key, value):
    with pytest.raises(
        InputError,
        match=(
            rf"(?m)engine does not implement {re.escape(key)} .* \(only .*\)\. Use --engine"
            r" detectron2\.$"
        ),
    ):
        plan(tmp_path, key, value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MIN_SIZE_TRAIN", "(0,)"),
        ("MIN_SIZE_TRAIN", "()"),
        ("MAX_SIZE_TRAIN", "0"),
        ("MIN_SIZE_TEST", "-1"),
        ("MAX_SIZE_TEST", "0"),
    ],
)
def test_size_that_is_none__is_refused_before_anything_is_written(tmp_path, key, value):
    with pytest.raises(InputError, match=key):
        plan(tmp_path, f"INPUT.{key}", value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    sorted(
        name.split("/")[1]
        for name in available()
        if name.startswith("detection/") and "Base" not in name and "densepose" not in name
    ),
)
def test_shipped_configs__pass(name):
    TorchvisionEngine.check(load_detection_config(name))


def test_cudnn_benchmark_and_float32_precision__have_their_effect(tmp_path, monkeypatch):
    for name, value in (
        ("benchmark", torch.backends.cudnn.benchmark),
        ("allow_tf32", torch.backends.cudnn.allow_tf32),
    ):
        monkeypatch.setattr(torch.backends.cudnn, name, value)  # put back at the end
    before = torch.get_float32_matmul_precision()
    try:
        for benchmark, precision, tf32 in (("True", "highest", False), ("False", "high", True)):
            cfg = config(tmp_path, "CUDNN_BENCHMARK", benchmark, "FLOAT32_PRECISION", precision)
            TorchvisionEngine(cfg, torch.device("cpu")).build_model()
            assert str(torch.backends.cudnn.benchmark) == benchmark
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (
                precision,
                tf32,
            )
        TorchvisionEngine(config(tmp_path), torch.device("cpu")).build_model()
        assert torch.get_float32_matmul_precision() == "high", (
            "an empty FLOAT32_PRECISION leaves it as it is"
        )
    finally:
        torch.set_float32_matmul_precision(before)


def test_min_size_test_0__does_not_resize(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    item = TestMapper(0, 40)(
        {"file_name": str(tmp_path / "a.png"), "height": 30, "width": 50, "image_id": 1}
    )
    assert torch.equal(item["image"], torch.from_numpy(pixels).permute(2, 0, 1).float())


def test_every_key_outside_model__is_read_or_said_to_have_no_effect(repository):
    folder = repository / "moco_transfer" / "finetune"
    source = "\n".join(
        file.read_text()
        for file in folder.rglob("*.*")
        if file.suffix in (".py", ".yaml") and "detectron2_engine" not in file.parts
    )
    unread = {
        key
        for key in leaves(DETECTION_DEFAULTS)
        if not key.startswith("MODEL.") and not re.search(rf"[.\"]{key.split('.')[-1]}\b", source)
    }
    # A last name that another section has as well, such as ENABLED, is found there: those are
    # refused or read above.
    assert unread <= WITHOUT_EFFECT, unread - WITHOUT_EFFECT


def leaves(node: dict, prefix: str = ""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
