"""A run on a pack says in its config and its checkpoint what packing did to the pixels.

Went red under: the config left as it came.
"""

from __future__ import annotations

import yaml

from moco_transfer.config import load_pretrain_config
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.images.pack import PackSettings, pack
from moco_transfer.data.scenes import write_pool
from moco_transfer.pretrain.build import pretrain
from moco_transfer.runtime.checkpoint import load_checkpoint

SETTINGS = {
    "DATA.IMAGE_SIZE": 24,
    "DATA.BATCH_SIZE_TOTAL": 4,
    "DATA.NUM_WORKERS": 0,
    "MOCO.QUEUE_SIZE": 8,
    "MOCO.BN_GROUP_SIZE": 2,
}
SETTINGS |= {
    "SOLVER.EPOCHS": 1,
    "SOLVER.STEPS": "()",
    "SOLVER.SCHEDULE": "step",
    "TRAIN.PRECISION": "fp32",
    "TRAIN.TENSORBOARD": False,
}


def test_run__on_a_pack_names_the_change_of_pixels_in_config_and_checkpoint(tmp_path):
    write_pool(tmp_path / "pool", count=4, size=32, seed=0)
    pack(find_images(tmp_path / "pool"), tmp_path / "pack", PackSettings("raw", 24))
    for data, expected in (
        ("pack", "shorter side at most 24 px (PIL bilinear, antialiased)"),
        ("pool", ""),
    ):
        out = tmp_path / f"run_{data}"
        settings = SETTINGS | {"DATA.ROOT": tmp_path / data, "OUTPUT_DIR": out}
        pretrain(
            load_pretrain_config(
                "demo_moco", [str(word) for pair in settings.items() for word in pair]
            )
        )
        assert (
            yaml.safe_load((out / "config.yaml").read_text())["DATA"]["PACKED_PIXELS"] == expected
        )
        (checkpoint,) = out.glob("checkpoint*.pth")
        assert (
            yaml.safe_load(load_checkpoint(checkpoint)["config"])["DATA"]["PACKED_PIXELS"]
            == expected
        )
