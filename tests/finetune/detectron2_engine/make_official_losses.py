"""Write fixtures/official_losses.json: the losses of the official MoCo's detection/train_net.py
over twenty iterations on the CPU.

    DETECTRON2_DATASETS=DATA python tests/finetune/detectron2_engine/make_official_losses.py
    PATH_OF_facebookresearch/moco_AT_7397dfe [FILE]

needs Detectron2, and DATA/VOC2007. Its trainer runs as it is, with its config for converted
weights; the images are small (see ``official_case``), there is no test set, and a hook reads the
losses of each iteration where its own writers read them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

from official_case import LOSSES, OVERRIDES, made_with, pin_kernels, write_backbone  # noqa: E402

CONFIG = "configs/pascal_voc_R_50_C4_24k_moco.yaml"


def official_losses(detection: Path, folder: Path, backbone: Path) -> dict[str, list[float]]:
    """Run the official trainer of a folder ``detection`` and return each loss of each iteration."""
    sys.path.insert(0, str(detection))
    import train_net
    from detectron2.engine import HookBase, default_argument_parser

    found: dict[str, list[float]] = {name: [] for name in (*LOSSES, "lr")}

    class Reader(HookBase):
        def before_step(self) -> None:
            found["lr"].append(self.trainer.optimizer.param_groups[0]["lr"])

        def after_step(self) -> None:
            for name in LOSSES:
                found[name].append(self.trainer.storage.history(name).latest())

    words = [
        *OVERRIDES.split(),
        "MODEL.WEIGHTS",
        str(backbone),
        "OUTPUT_DIR",
        str(folder / "official"),
        "DATASETS.TEST",
        "()",
    ]
    cfg = train_net.setup(
        default_argument_parser().parse_args(["--config-file", str(detection / CONFIG), *words])
    )
    trainer = train_net.Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([Reader()])
    trainer.train()
    return found


def main() -> None:
    """Write the fixture."""
    pin_kernels()
    import detectron2

    checkout = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "fixtures" / "official_losses.json"
    files = [checkout / "detection" / name for name in ("train_net.py", CONFIG)]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    with tempfile.TemporaryDirectory() as folder:
        losses = official_losses(checkout / "detection", Path(folder), write_backbone(Path(folder)))
    source = {
        "sha256": digests,
        "detectron2": detectron2.__version__,
        **made_with(),
        "command": "make_official_losses.py",
    }
    target.write_text(json.dumps({"source": source, **losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
