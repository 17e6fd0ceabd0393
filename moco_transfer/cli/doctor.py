"""Say what works on this machine: versions, devices, engines, data sets, and the next step for what
does not.
"""

from __future__ import annotations

import argparse
import importlib
import os

EPILOG = """example:
  moco-transfer doctor
"""

TESTED_PAIR = "torch 2.11.0 and torchvision 0.26.0"
_WIDTH = 24
_ABSENT = "not installed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``: none."""


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when pre-training, conversion, fine-tuning and evaluation can run here."""
    for name, version in _versions().items():
        print(f"{name:{_WIDTH}} {version}")
    checks = [_torch(), _operators(), _pycocotools(), _opencv()]
    for works, line in checks:
        print(("ok    " if works else "FAILS ") + line)
    for works, line in (_detectron2(), _native()):  # nothing needs them
        print(("ok    " if works else "note  ") + line)
    for line in (_data(), _threads()):
        print("note  " + line)
    return 0 if all(works for works, _ in checks) else 1


def _versions() -> dict[str, str]:
    """Return the versions of what a run stands on, also of what is absent, and then of the rest."""
    from ..runtime.environment import package_versions

    found = package_versions()
    opencv = [
        f"{version} ({name})" for name, version in found.items() if name.startswith("opencv-python")
    ]
    first = {
        "python": found.pop("python"),
        "torch": found.pop("torch", _ABSENT),
        "CUDA": _cuda(),
        "torchvision": found.pop("torchvision", _ABSENT),
        "detectron2": found.pop("detectron2", _ABSENT),
        "pycocotools": found.pop("pycocotools", _ABSENT),
        "OpenCV": ", ".join(opencv) or _ABSENT,
    }
    return first | {
        name: version for name, version in found.items() if not name.startswith("opencv-python")
    }


def _reason(error: Exception) -> str:
    """Return an exception's first line; libraries that do not belong together fail at import in
    many ways and at length.
    """
    return (str(error) or type(error).__name__).splitlines()[0]


def _cuda() -> str:
    try:
        import torch
    except Exception:
        return "unknown: torch does not import"
    if torch.version.cuda is None:
        return "none: this torch was built without it"
    return f"{torch.version.cuda} in torch" + ("" if torch.cuda.is_available() else ", no device")


def _torch() -> tuple[bool, str]:
    try:
        import torch
    except Exception as error:
        return (
            False,
            (
                f"torch does not import ({_reason(error)}); nothing trains, converts or evaluates"
                " without. Install it as pytorch.org says."
            ),
        )
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return True, f"torch {torch.__version__}, CUDA {torch.version.cuda}: {names}"
    return (
        True,
        (
            f"torch {torch.__version__} on the CPU ({torch.get_num_threads()} threads); no CUDA"
            " device is seen"
        ),
    )


def _operators() -> tuple[bool, str]:
    try:
        import torch
    except Exception:
        return False, "torchvision's detection operators need torch. Mend torch first."
    try:
        import torchvision  # noqa: F401 - registers the operators

        torch.ops.torchvision.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:
        # torchvision's C++ operators load only with the torch they were built for; how that fails
        # varies by version.
        return (
            False,
            (
                f"torchvision's operators do not load ({_reason(error)}). Install a pair that"
                f" belongs together, such as {TESTED_PAIR}."
            ),
        )
    return True, "torchvision's detection operators (the embedded engine runs)"


def _pycocotools() -> tuple[bool, str]:
    try:
        importlib.import_module("pycocotools.mask")
    except Exception as error:
        return (
            False,
            (
                f"COCO AP and masks: pycocotools does not import ({_reason(error)}). pip install"
                " pycocotools"
            ),
        )
    return True, "COCO AP and masks (pycocotools)"


def _opencv() -> tuple[bool, str]:
    try:
        import cv2

        version = cv2.__version__
    except Exception as error:
        return (
            False,
            (
                f"what predict and demo draw: OpenCV does not import ({_reason(error)}). pip"
                " install opencv-python-headless"
            ),
        )
    return True, f"what predict and demo draw (OpenCV {version})"


def _detectron2() -> tuple[bool, str]:
    from ..finetune.engines import (
        DETECTRON2_GUIDE,
        DETECTRON2_TRIED,
        detectron2_is_installed,
        detectron2_problem,
    )

    problem = detectron2_problem()
    if problem is None:
        detectron2 = importlib.import_module("detectron2")
        return (
            True,
            (
                f"Detectron2 {detectron2.__version__} (train --engine detectron2 runs, and auto"
                f" takes it; tested: {DETECTRON2_TRIED})"
            ),
        )
    if detectron2_is_installed():
        return (
            False,
            (
                f"Detectron2 is installed but does not load: {problem}. Install the module it"
                " names, if it names one; else build Detectron2 again for this torch as"
                f" {DETECTRON2_GUIDE} says (tested: {DETECTRON2_TRIED}). train takes the embedded"
                " engine meanwhile."
            ),
        )
    return (
        False,
        (
            "Detectron2 is not installed; nothing here needs it, train takes the embedded engine."
            f" For --engine detectron2 install it as {DETECTRON2_GUIDE} says (tested:"
            f" {DETECTRON2_TRIED})."
        ),
    )


def _native() -> tuple[bool, str]:
    try:
        from ..data.views.native import OFF, available
    except Exception as error:
        return (
            False,
            (
                "the compiled loops of pre-training's images cannot be looked at"
                f" ({_reason(error)}). Mend what fails above first."
            ),
        )
    if available():
        return True, "the compiled loops of pre-training's images"
    if os.environ.get(OFF):
        return (
            False,
            f"the compiled loops of pre-training's images are switched off; unset {OFF}.",
        )
    return (
        False,
        (
            "the compiled loops of pre-training's images are not there; torch's operators do the"
            " same more slowly. Install a C compiler, then moco-transfer again."
        ),
    )


def _data() -> str:
    from ..data.annotations.catalog import DATASETS_VARIABLE, datasets_root

    root = datasets_root()
    found = [name for name in ("coco", "VOC2007", "VOC2012") if (root / name).is_dir()]
    state = f"holds {', '.join(found)}" if found else "holds neither coco, VOC2007 nor VOC2012"
    return (
        f"{DATASETS_VARIABLE}"
        f" {'is ' + str(root) if DATASETS_VARIABLE in os.environ else 'is not set (datasets/ is used)'}:"
        f" {state}"
    )


def _threads() -> str:
    return f"{os.cpu_count()} cores; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
