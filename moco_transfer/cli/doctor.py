"""What works on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
from typing import Any

from ..runtime.errors import MissingFileError

_VERSIONS = (
    "python",
    "torch",
    "CUDA",
    "torchvision",
    "detectron2",
    "pycocotools",
    "hotcoco",
    "OpenCV",
)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 if pre-training, conversion, fine-tuning and evaluation can run here, or
    if none of the runs that were named hangs.
    """
    if args.runs:
        return _runs(args)
    versions = _versions()
    for name, version in versions.items():
        print(f"{name:24} {version}")
    works, checks = True, []
    for probe, is_needed, remedy in (
        (_torch, True, "Nothing trains or converts without torch. Install it from pytorch.org."),
        (_operators, True, "Install a tested pair: torch 2.11.0 and torchvision 0.26.0."),
        (_pycocotools, True, "pip install pycocotools"),
        (_hotcoco, False, "pycocotools evaluates, slowly; no LVIS, no TIDE. pip install hotcoco"),
        (_opencv, True, "pip install opencv-python-headless"),
        (_detectron2, False, "Nothing else needs it: train uses the embedded engine."),
        (_densepose, False, "Dense pose alone needs it."),
        (_precision, False, "Runs name their precision themselves."),
        (_compiled_loops, False, "Without them torch's operators do the same more slowly."),
    ):
        try:
            status, text = "ok", probe()
        except Exception as error:  # packages that do not fit together fail at import in many ways
            reason = (str(error) or type(error).__name__).splitlines()[0]
            name = probe.__name__.strip("_").replace("_", " ")
            status, text = "FAILS" if is_needed else "note", f"{name}: {reason}. {remedy}"
            works &= not is_needed
        checks.append({"name": probe.__name__.strip("_"), "status": status, "text": text})
        print(f"{status:5} {text}")
    cores = f"{os.cpu_count()} cores; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    notes = [_data(), cores]
    print("\n".join(f"note  {note}" for note in notes))
    args.facts = {"works": works, "versions": versions, "checks": checks, "notes": notes}
    return 0 if works else 1


def _runs(args: argparse.Namespace) -> int:
    """Print how far the runs below folders are; 1 if one of them seems to hang."""
    from ..runtime.health.hangs import hang, read_beats, running_below

    status = 0
    args.facts = {"runs": []}
    for root in args.runs:
        if not os.path.isdir(root):
            raise MissingFileError(f"{root} is not a folder: name the OUTPUT_DIR of a run.")
        folders = list(running_below(root))
        if not folders:
            print(f"note  {root}: no run is in progress")
        for folder in folders:
            problem = hang(folder)
            status |= bool(problem)
            beats = read_beats(folder)
            args.facts["runs"].append({"folder": folder, "hangs": problem, "processes": beats})
            print(f"{'HANGS' if problem else 'ok   '} {folder}")
            print("\n".join(f"      {beat}" for beat in beats))
    return status


def _versions() -> dict[str, str]:
    """Return the versions of what a run needs, missing packages included, then the rest."""
    from ..runtime.environment import package_versions

    found = package_versions()
    names = [name for name in found if name.startswith("opencv-python")]
    found["OpenCV"] = ", ".join(f"{found.pop(name)} ({name})" for name in names) or "not installed"
    try:
        import torch

        device = "" if torch.cuda.is_available() else ", no device"
        built = torch.version.cuda
        found["CUDA"] = f"{built} in torch{device}" if built else "none: a CPU build of torch"
    except Exception:
        found["CUDA"] = "unknown: torch does not import"
    return {name: found.pop(name, "not installed") for name in _VERSIONS} | found


def _torch() -> str:
    import torch

    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        return f"torch {torch.__version__} on the CPU ({threads} threads); no CUDA device"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}: {', '.join(names)}"


def _precision() -> str:
    from ..runtime.device import best_device, choose_precision

    device = best_device()
    return f"precision auto on this {device.type} is {choose_precision('auto', device).describe()}"


def _operators() -> str:
    import torch
    import torchvision  # noqa: F401 - registers the operators

    # The C++ operators load only with the torch that they were built for.
    torch.ops.torchvision.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    return "torchvision's detection operators (the embedded engine runs)"


def _pycocotools() -> str:
    importlib.import_module("pycocotools.mask")
    return "masks in run-length form (pycocotools)"


def _hotcoco() -> str:
    version = importlib.import_module("hotcoco").__version__
    return f"COCO's and LVIS's AP, and TIDE errors (hotcoco {version})"


def _opencv() -> str:
    cv2: Any = importlib.import_module("cv2")
    return f"drawings of predict, sheet and demo (OpenCV {cv2.__version__})"


def _detectron2() -> str:
    from ..finetune import engine as engines

    problem, tried = engines.detectron2_problem(), f"tested: {engines.DETECTRON2_TRIED}"
    if problem is None:
        version = importlib.import_module("detectron2").__version__
        return f"Detectron2 {version} (train --engine detectron2 and auto use it; {tried})"
    is_there, guide = importlib.util.find_spec("detectron2"), engines.DETECTRON2_GUIDE
    state = f"it does not load ({problem})" if is_there else "not installed"
    raise RuntimeError(f"{state}; for --engine detectron2 install it as {guide} says ({tried})")


def _densepose() -> str:
    from ..finetune import engine as engines

    files = (engines.MIRROR_FILE, *engines.GEODESIC_FILES)
    missing = engines.densepose_files_missing(files)
    if problem := engines.densepose_problem():
        is_there = importlib.util.find_spec(engines.DENSEPOSE_PROJECT)
        state = f"does not load ({problem})" if is_there else "not installed"
        place = f"its files belong in {engines.densepose_folder()}: {', '.join(files)}"
        steps = f"for coco_densepose_* configs install it from {engines.DENSEPOSE_GUIDE}"
        raise RuntimeError(f"Detectron2's project DensePose: {state}; {steps}; {place}")
    if missing:
        raise RuntimeError(f"Detectron2's project DensePose: {missing}")
    return "dense pose (Detectron2's project DensePose and its four files)"


def _compiled_loops() -> str:
    from ..data.views import native

    if native.available():
        return "the compiled loops of the two-view pipeline"
    if os.environ.get(native.OFF):
        raise RuntimeError(f"switched off; unset {native.OFF}")
    raise RuntimeError("not built; install a C compiler, then moco-transfer again")


def _data() -> str:
    from ..data.annotations.catalog import DATASETS_VARIABLE, datasets_root

    root = datasets_root()
    found = [name for name in ("coco", "VOC2007", "VOC2012") if (root / name).is_dir()]
    value = str(root) if DATASETS_VARIABLE in os.environ else "not set (datasets/ is used)"
    return f"{DATASETS_VARIABLE} is {value}: holds {', '.join(found) or 'no data set'}"
