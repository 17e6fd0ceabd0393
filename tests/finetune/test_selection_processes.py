"""TEST.KEEP_BEST and TEST.PATIENCE in two processes: both stop at the same iteration and report the
best weights, which process 0 writes.

Process 0 writes slowly, and alone knows the APs. Seen red under: best.pth read by process 1 without
waiting, so that it evaluated an older one.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from cli.two_processes import digest
from generated_images import write_voc_scenes
from pretrain.two_processes import run_in_two_processes
from test_selection import RISING, plan

from moco_transfer.data import register_dataset
from moco_transfer.data.annotations import catalog
from moco_transfer.finetune import run as finetune_run
from moco_transfer.runtime.checkpoint import CheckpointFolder


def in_process(rank: int, scenes: str, out: str) -> dict[str, dict]:
    """Return for a run that loses its patience, and for one whose last weights are the best: where
    this process evaluated, and digests of the weights at those places and in the end.
    """
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_OWN", {})
        classes = (Path(scenes) / "classes.txt").read_text().split()
        for name, split in (("mine_train", "train"), ("mine_test", "test")):
            register_dataset(name, "voc", root=scenes, split=split, class_names=classes)
        real, write = finetune_run._evaluate, CheckpointFolder.write

        def slowly(self, *arguments):
            time.sleep(2)
            return write(self, *arguments)

        patch.setattr(CheckpointFolder, "write", slowly)
        runs = {"patience": (RISING, 6), "last": ({1: 1.0, 2: 2.0, 3: 3.0}, 3)}
        for name, (aps, iterations) in runs.items():
            seen: dict[int, str] = {}

            def evaluate(plan, run, stop, *, at_end=False, aps=aps, seen=seen):
                result = real(plan, run, stop, at_end=at_end)
                seen[0 if at_end else run.iteration] = digest(run.model.state_dict())
                if not at_end:
                    result["metrics"] = {"bbox": {"AP": aps[run.iteration]}} if rank == 0 else {}
                return result

            patch.setattr(finetune_run, "_evaluate", evaluate)
            words = ["TEST.KEEP_BEST", "bbox/AP", "TEST.PATIENCE", 3, "SOLVER.MAX_ITER", iterations]
            record = finetune_run.finetune(plan(f"{out}/{name}", *words, "SOLVER.STEPS", "(5,)"))
            choice = record["selection"]
            found[name] = {"seen": seen, "iterations": record["iterations"]}
            found[name] |= {key: choice[key] for key in ("value", "iteration", "stopped_at")}
    return found


@pytest.mark.slow
def test_processes__stop_together_and_report_the_best(tmp_path):
    scenes = tmp_path / "scenes"
    write_voc_scenes(scenes, splits={"train": 4, "test": 2}, size=64, seed=0)
    first, second = run_in_two_processes(in_process, tmp_path, str(scenes), str(tmp_path))
    assert first == second
    patience, last = first["patience"], first["last"]
    assert [*patience["seen"]] == [1, 2, 3, 4, 5, 0] and patience["iterations"] == 5
    assert (patience["value"], patience["iteration"], patience["stopped_at"]) == (9.0, 2, 5)
    assert patience["seen"][0] == patience["seen"][2] != patience["seen"][5]
    assert [*last["seen"]] == [1, 2, 3, 0] and last["stopped_at"] is None
    assert last["seen"][0] == last["seen"][3] != last["seen"][2]
    best = torch.load(tmp_path / "last" / "best.pth", weights_only=True)["model"]
    assert digest(best) == last["seen"][0]
