"""Hand-made run folders for the tests of the report."""

from __future__ import annotations

import json

import pytest


def _results(init="moco", seed=0, *, bbox=None, **changes):
    """Return the contents of a valid results.json; ``changes`` replace top-level keys."""
    data = {
        "schema": 1,
        "task": "pascal_voc_R_18_FPN",
        "config": "configs/detection/pascal_voc_R_18_FPN.yaml",
        "config_hash": "0123456789abcdef",
        "engine": "torchvision",
        "init": init,
        "seed": seed,
        "weights": {
            "path": "" if init == "random" else f"{init}.pkl",
            "sha256": None,
            "stamp": None,
            "coverage": {},
        },
        "metrics": {"bbox": bbox or {"AP": 50.0, "AP50": 80.0, "AP75": 55.0}},
        "norm": "BN",
        "iterations": 100,
        "wall_sec": 12.5,
        "world_size": 1,
        "versions": {"torch": "2.11.0"},
        "git": "abcdef1234567890",
        "flags": {"allow_partial": False, "forced": []},
        "dataset": {"train": ["voc_2007_trainval"], "test": ["voc_2007_test"]},
        "last_losses": {},
    }
    data.update(changes)
    return data


@pytest.fixture
def results():
    """Return the function that makes the contents of a results.json."""
    return _results


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run folder below ``tmp_path`` and returns its path."""

    def make(name, init="moco", seed=0, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(_results(init, seed, **changes)))
        return folder

    return make


#: Three seeds of three initialisations; the means, stds and tests in the test modules are worked
# out from these.
AP = {"random": (33.0, 34.0, 35.0), "supervised": (53.0, 53.5, 54.6), "moco": (55.0, 56.0, 57.6)}


@pytest.fixture
def three_rows(make_run, tmp_path):
    """Write runs of random, supervised and moco with seeds 0, 1, 2; return their folder."""
    for init, values in AP.items():
        for seed, value in enumerate(values):
            make_run(
                f"{init}_{seed}",
                init,
                seed,
                bbox={"AP": value, "AP50": value + 20, "AP75": value + 5},
            )
    return tmp_path
