"""Configs: strict, frozen, and every refusal names file, key and the nearest legal key.

Went red under: merging without the check of known keys; not checking the base file; returning an
    unfrozen config.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from moco_transfer.config import (
    available,
    flatten_config,
    load_detection_config,
    load_pretrain_config,
    name_of,
    path,
)
from moco_transfer.runtime.errors import InputError, MissingFileError, UnknownKeyError


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_load__base_chain_then_file_then_overrides(tmp_path):
    write(tmp_path, "base.yaml", "SOLVER: {BASE_LR: 0.5, EPOCHS: 7}\n")
    file = write(tmp_path, "leaf.yaml", "_BASE_: base.yaml\nSOLVER: {EPOCHS: 8}\n")
    cfg = load_pretrain_config(file, ["MOCO.DIM", "64"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.EPOCHS, cfg.MOCO.DIM) == (0.5, 8, 64)
    assert cfg.is_frozen()
    assert (
        load_pretrain_config(write(tmp_path, "empty.yaml", "")).SOLVER.EPOCHS == 200
    )  # defaults were not changed


def test_load__unknown_key__file_key_and_nearest(tmp_path):
    write(tmp_path, "base.yaml", "MOCO: {TEMPRATURE: 0.2}\n")
    file = write(tmp_path, "leaf.yaml", "_BASE_: base.yaml\n")
    with pytest.raises(UnknownKeyError) as caught:
        load_pretrain_config(file)
    message = str(caught.value)
    assert (
        message == f"{tmp_path / 'base.yaml'}: unknown key 'MOCO.TEMPRATURE'. Did you mean"
        " 'MOCO.TEMPERATURE'?"
    )


def test_load__unknown_key_on_the_command_line(tmp_path):
    with pytest.raises(
        UnknownKeyError,
        match="command line: unknown key 'SOLVER.MAX_ITERS'. Did you mean 'SOLVER.MAX_ITER'",
    ):
        load_detection_config(write(tmp_path, "a.yaml", ""), ["SOLVER.MAX_ITERS", "3"])
    with pytest.raises(UnknownKeyError, match="'SOLVER' is a section"):
        load_detection_config(write(tmp_path, "a.yaml", ""), ["SOLVER", "3"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "SOLVER.BASE_LR",
            "one",
            "SOLVER.BASE_LR must be a decimal number such as 0.03, got 'one'.",
        ),
        ("SOLVER.EPOCHS", "many", "SOLVER.EPOCHS must be a whole number such as 200, got 'many'."),
        ("MOCO.MLP", "yes please", "MOCO.MLP must be a truth value"),
        (
            "MECHANISM",
            "simclr",
            "MECHANISM must be one of 'moco', 'memory_bank', 'end_to_end', 'supervised'",
        ),
        ("MOCO.TEMPERATURE", "0.0", "MOCO.TEMPERATURE must be > 0, got 0.0"),
        ("DATA.CROP_SCALE", "(0.5, 0.2)", "DATA.CROP_SCALE must be 0 < low <= high <= 1"),
    ],
)
def test_load__wrong_value__one_sentence(tmp_path, key, value, message):
    with pytest.raises(InputError) as caught:
        load_pretrain_config(write(tmp_path, "a.yaml", ""), [key, value])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load__lists_may_be_written_without_brackets(tmp_path):
    file = write(tmp_path, "a.yaml", "")
    cfg = load_detection_config(
        file, ["DATASETS.TRAIN", "a,b", "DATASETS.TEST", "c", "SOLVER.STEPS", "200"]
    )
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.SOLVER.STEPS) == (("a", "b"), ("c",), (200,))


def test_load__damaged_files(tmp_path):
    with pytest.raises(InputError, match=r"a.yaml, line \d: not YAML"):
        load_pretrain_config(write(tmp_path, "a.yaml", "MOCO:\n  DIM: [1\n"))
    with pytest.raises(InputError, match="expected KEY: VALUE lines"):
        load_pretrain_config(write(tmp_path, "b.yaml", "- 1\n- 2\n"))
    with pytest.raises(InputError, match="_BASE_ leads back"):
        load_pretrain_config(write(tmp_path, "c.yaml", "_BASE_: c.yaml\n"))
    with pytest.raises(MissingFileError, match="named as _BASE_ by"):
        load_pretrain_config(write(tmp_path, "d.yaml", "_BASE_: nowhere.yaml\n"))
    with pytest.raises(InputError, match="come in pairs KEY VALUE"):
        load_pretrain_config(write(tmp_path, "e.yaml", ""), ["MOCO.DIM"])
    with pytest.raises(MissingFileError, match="Did you mean 'demo_moco'"):
        load_pretrain_config("demo_moko")


def test_path__names_files_of_the_package():
    assert path("demo_moco").endswith("demo_moco.yaml")
    assert load_pretrain_config("demo_moco").MODEL.ARCH == "resnet18"
    with pytest.raises(MissingFileError, match="No config is called 'pascal'"):
        path("pascal")


@pytest.mark.parametrize("name", sorted(n for n in available() if "/" in n))
def test_shipped_configs__load(name):
    load = load_pretrain_config if name.startswith("pretrain/") else load_detection_config
    load(available()[name])


@pytest.mark.parametrize("name", sorted(n for n in available() if "/" not in n))
def test_name_of__a_config_by_name_and_by_file(name):
    assert name_of(name) == name_of(f"{name}.yaml") == name_of(path(name)) == name


def test_config__needs_no_torch():
    program = (
        "import sys; import moco_transfer.config as c; c.load_detection_config('demo_R_18_FPN');"
        " assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.detectron2
def test_detection_schema__equals_detectron2():
    from detectron2.config import get_cfg

    from moco_transfer.config.schema_file import DETECTION_DEFAULTS

    def leaves(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", (type(value), value)

    assert dict(leaves(DETECTION_DEFAULTS)) == dict(leaves(get_cfg()))


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "name", sorted(n for n in available() if n.startswith("detection/") and "densepose" not in n)
)
def test_detection_configs__load_in_detectron2_to_the_same_values(name):
    from detectron2.config import get_cfg

    theirs = get_cfg()
    theirs.merge_from_file(str(available()[name]))
    # Not dump(), whose YAML has anchors where a Python joins equal constants.
    assert flatten_config(theirs) == flatten_config(load_detection_config(available()[name]))


@pytest.mark.parametrize(
    ("load", "name"),
    [(load_pretrain_config, "demo_moco"), (load_detection_config, "demo_R_18_FPN")],
)
def test_load__is_frozen(load, name):
    with pytest.raises(AttributeError, match="immutable"):
        load(name).SEED = 1


def test_schemas__agree_with_the_models_that_config_may_not_import():
    from moco_transfer import models
    from moco_transfer.config.pretrain_schema import ONE_OF, PRETRAIN_DEFAULTS
    from moco_transfer.config.schema_file import DETECTION_DEFAULTS

    data, detector = PRETRAIN_DEFAULTS["DATA"], DETECTION_DEFAULTS["MODEL"]
    assert data["PIXEL_MEAN"] == models.IMAGENET_MEAN and data["PIXEL_STD"] == models.IMAGENET_STD
    pixels = {"format": "BGR", "mean": detector["PIXEL_MEAN"], "std": detector["PIXEL_STD"]}
    assert pixels == models.MSRA_PIXELS
    assert set(ONE_OF["MODEL.ARCH"]) <= models.ENCODERS.keys()


def test_extensions__their_keys_exist_in_configs_that_have_them_alone():
    assert "DENSEPOSE_ON" not in load_detection_config("coco_R_50_FPN_1x").MODEL
    for key, needed in (
        ("MODEL.ROI_DENSEPOSE_HEAD.NAME", "MODEL.DENSEPOSE_ON"),
        ("MODEL.SEM_SEG_HEAD.DILATION", "MODEL.META_ARCHITECTURE SemanticSegmentor"),
    ):
        with pytest.raises(UnknownKeyError, match=f"command line: {key} needs {needed}"):
            load_detection_config("coco_R_50_FPN_1x", [key, "1"])
    pose = load_detection_config("coco_R_50_FPN_1x", ["MODEL.DENSEPOSE_ON", "True"])
    assert pose.MODEL.ROI_DENSEPOSE_HEAD.NUM_PATCHES == 24


def test_load__a_whole_number_where_a_decimal_one_is_due(tmp_path):
    file = write(tmp_path, "a.yaml", "SOLVER:\n  BASE_LR: 1\nMOCO:\n  TEMPERATURE: 2\n")
    cfg = load_pretrain_config(file, ["MOCO.TEMPERATURE", "1"])
    assert (cfg.SOLVER.BASE_LR, cfg.MOCO.TEMPERATURE) == (1.0, 1.0)
    assert isinstance(cfg.SOLVER.BASE_LR, float) and isinstance(cfg.MOCO.TEMPERATURE, float)
    file.write_text("SOLVER:\n  BASE_LR: " + "1" * 400)
    with pytest.raises(InputError, match="SOLVER.BASE_LR must be a decimal number"):
        load_pretrain_config(file)
