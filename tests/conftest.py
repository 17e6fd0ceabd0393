"""Fixtures and markers that all tests share."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from pathlib import Path

import pytest

from moco_transfer.data.annotations.catalog import own_names

REPOSITORY = Path(__file__).resolve().parent.parent

# Triton reads it when torch imports it: without a GPU its kernels are interpreted on the CPU.
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that ask for one, which run apart (``-m gpu``): the others
    would take the GPU too, and two of their processes the same.
    """
    asked = config.option.markexpr
    if "gpu" not in asked or "not gpu" in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs something this machine lacks."""
    lacks = {}
    if importlib.util.find_spec("detectron2") is None:
        lacks["detectron2"] = "Detectron2 is not installed"
    if any("gpu" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            lacks["gpu"] = "no CUDA device, or hidden: pytest -m gpu"
    for item in items:
        for marker, reason in lacks.items():
            if item.get_closest_marker(
                marker
            ):  # not item.keywords, which hold the ids of parameters too
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _log_of_one_test():
    """Close what a run logs to: its captured terminal and its folder end with the test."""
    yield
    log = logging.getLogger("moco_transfer")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True


@pytest.fixture(scope="module", autouse=True)
def _data_sets_of_a_module():
    """Forget the data sets that its fixtures registered."""
    with own_names():
        yield


@pytest.fixture(autouse=True)
def _data_sets_of_a_test(_data_sets_of_a_module):
    with own_names():
        yield


@pytest.fixture
def kernel_launches(monkeypatch) -> list[str]:
    """Names of the Triton kernels that a test launches, in the interpreter."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    launch, names = interpreter.InterpretedFunction.run, []

    def run(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run)
    return names


@pytest.fixture
def interpreted_triton() -> None:
    """Skip a test of interpreted kernels where they are compiled for a GPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles for this machine's GPU: pytest -m gpu")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real images (coco/, VOC2007/, VOC2012/, BCCD/, imagenet-sample/): next to the
    source tree, or MOCO_TRANSFER_TEST_DATA.
    """
    folder = Path(os.environ.get("MOCO_TRANSFER_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "coco").is_dir():
        pytest.skip(
            "no real images at ../shared/data (set MOCO_TRANSFER_TEST_DATA to a folder that has"
            " them)"
        )
    return folder.resolve()
