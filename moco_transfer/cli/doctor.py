"""Say what works on this machine: versions, devices, engines, data sets, and the next step for what does not."""

from __future__ import annotations

import argparse
import importlib
import os

EPILOG = """example:
  moco-transfer doctor
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``: none."""


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when pre-training, conversion, fine-tuning and evaluation can run here."""
    from ..runtime.environment import package_versions

    for name, version in (package_versions() | {"CUDA": _cuda()}).items():
        print(f"{name:24} {version}")
    checks = [_torch(), _operators(), _module("pycocotools.mask", "COCO AP", "pip install pycocotools"), _opencv()]
    detectron2_works, detectron2_line = _detectron2()
    for works, line in checks:
        print(("ok    " if works else "FAILS ") + line)
    print(("ok    " if detectron2_works else "note  ") + detectron2_line)
    for line in (_data(), _threads()):
        print("note  " + line)
    return 0 if all(works for works, _ in checks) else 1


def _cuda() -> str:
    try:
        import torch
    except ImportError:
        return "unknown: torch does not import"
    if torch.version.cuda is None:
        return "none: this torch was built without it"
    return f"{torch.version.cuda} in torch" + ("" if torch.cuda.is_available() else ", no device")


def _torch() -> tuple[bool, str]:
    try:
        import torch
    except ImportError as error:
        return False, f"torch does not import ({error}). Install it as pytorch.org says for this machine."
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return True, f"torch {torch.__version__}, CUDA {torch.version.cuda}: {names}"
    return True, f"torch {torch.__version__} on the CPU ({torch.get_num_threads()} threads); no CUDA device is seen"


def _operators() -> tuple[bool, str]:
    try:
        import torch
        import torchvision  # noqa: F401 - registers the operators

        torch.ops.torchvision.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:
        # torchvision's C++ operators load only with the torch they were built for; how that fails varies by version.
        return (
            False,
            f"torchvision's operators do not load ({str(error).splitlines()[0]}). Install a pair that belongs together, such as 2.11.0 and 0.26.0.",
        )
    return True, "torchvision's detection operators (the embedded engine runs)"


def _module(name: str, purpose: str, mend: str) -> tuple[bool, str]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return False, f"{purpose}: {error}. {mend}"
    return True, purpose


def _opencv() -> tuple[bool, str]:
    try:
        import cv2
    except ImportError as error:
        return False, f"OpenCV does not import ({error}). pip install opencv-python-headless"
    return True, f"OpenCV {cv2.__version__}"


def _detectron2() -> tuple[bool, str]:
    from ..finetune.engines import DETECTRON2_GUIDE, DETECTRON2_TRIED, detectron2_is_installed, detectron2_problem

    problem = detectron2_problem()
    if problem is None:
        detectron2 = importlib.import_module("detectron2")
        return True, f"Detectron2 {detectron2.__version__} (train --engine detectron2 runs, and auto takes it; tested: {DETECTRON2_TRIED})"
    if detectron2_is_installed():
        return (
            False,
            f"Detectron2 is installed but does not load: {problem}. Build it again for this torch as {DETECTRON2_GUIDE} says (tested: "
            f"{DETECTRON2_TRIED}); train takes the embedded engine meanwhile.",
        )
    return (
        False,
        f"Detectron2 is not installed; nothing here needs it, train takes the embedded engine. For --engine detectron2 install it as "
        f"{DETECTRON2_GUIDE} says (tested: {DETECTRON2_TRIED}).",
    )


def _data() -> str:
    from ..data.catalog import DATASETS_VARIABLE, datasets_root

    root = datasets_root()
    found = [name for name in ("coco", "VOC2007", "VOC2012") if (root / name).is_dir()]
    state = f"holds {', '.join(found)}" if found else "holds neither coco, VOC2007 nor VOC2012"
    return f"{DATASETS_VARIABLE} {'is ' + str(root) if DATASETS_VARIABLE in os.environ else 'is not set (datasets/ is used)'}: {state}"


def _threads() -> str:
    return f"{os.cpu_count()} cores; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
