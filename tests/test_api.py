"""The functions for notebooks: a small pipeline, what cells show, Ctrl-C, and nothing global left.

Seen red under: SIGINT not among the signals; generators, loggers and names of data sets left as a
run has them; torch imported by api.py; a plain bar in notebooks.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from generated_images import write_pool, write_voc_scenes

import moco_transfer
from moco_transfer import api
from moco_transfer.data.annotations.catalog import dataset_names
from moco_transfer.runtime import progress as progress_module
from moco_transfer.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent
PRETRAIN = {
    "DATA.IMAGE_SIZE": 32,
    "DATA.BATCH_SIZE_TOTAL": 8,
    "DATA.NUM_WORKERS": 0,
    "MOCO.QUEUE_SIZE": 20,
    "MOCO.BN_GROUP_SIZE": 4,
    "SOLVER.EPOCHS": 2,
    "TRAIN.LOG_PERIOD": 1,
    "TRAIN.CHECKPOINT_PERIOD_EPOCHS": 100,
    "TRAIN.PRECISION": "fp32",
}
FINETUNE = {
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.0025,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": (2,),
    "TEST.PRECISE_BN.NUM_ITER": 1,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "DATASETS.TRAIN": ("train",),
    "DATASETS.TEST": ("test",),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, count=24, size=40, seed=0)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("scenes")
    write_voc_scenes(folder, splits={"train": 6, "test": 3}, size=64, seed=0)
    return [f"{split}=voc:{folder}:{split}:{folder}/classes.txt" for split in ("train", "test")]


def plan(pool, folder, *, resume=False, **changes):
    more = {"DATA.ROOT": pool, "OUTPUT_DIR": folder, **changes}
    return api.plan_pretrain("moco_v2_R_18_96px", PRETRAIN | more, resume=resume)


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {row["iteration"]: row[name] for row in rows if name in row}


def curves(html: str) -> list[str]:
    """Return the texts of the images of a cell, each of which is an SVG with a line."""
    found = re.findall(r'alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', html)
    drawn = [(alt, ElementTree.fromstring(base64.b64decode(data))) for alt, data in found]
    assert all(root.findall(".//{*}path") for _, root in drawn)
    return [alt for alt, _ in drawn]


def state() -> tuple:
    log = logging.getLogger("moco_transfer")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    numbers = random.getstate(), torch.get_rng_state().tolist()
    return log.level, log.propagate, list(log.handlers), handlers, numbers, dataset_names()


def test_import__needs_no_torch_and_the_folders_stay_modules():
    code = "import sys; from moco_transfer import api; assert 'torch' not in sys.modules"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from moco_transfer.pretrain import MoCo, run

    assert moco_transfer.pretrain.run is run and moco_transfer.pretrain.MoCo is MoCo


def test_pipeline__and_what_its_cells_show(pool, scenes, tmp_path):
    before = state()
    run = api.pretrain(plan(pool, tmp_path / "moco"))
    assert state() == before
    assert run.checkpoint == tmp_path / "moco" / "checkpoint_0002.pth"
    assert "saved" in (tmp_path / "moco" / "log.txt").read_text()
    html = run._repr_html_()
    last = losses(run.folder)[6]
    assert re.search(rf"<th[^>]*>loss</th>\s*<td[^>]*>{last:.3f}</td>", html)
    assert any(alt.startswith("loss, and chance") for alt in curves(html))

    converted = api.convert(run.checkpoint, tmp_path / "backbone.pkl")
    assert "100 backbone tensors" in converted._repr_html_()

    words = {"MODEL.WEIGHTS": converted.output, "OUTPUT_DIR": tmp_path / "runs" / "moco"}
    name = "pascal_voc_R_18_FPN_small"
    tuned = api.finetune(api.plan_finetune(name, FINETUNE | words, datasets=scenes))
    record = json.loads((tuned.folder / "results.json").read_text())
    assert tuned.metrics == record["metrics"] and record["init"] == "moco"
    assert state() == before
    html = tuned._repr_html_()
    ap50 = record["metrics"]["bbox"]["AP50"]
    assert f">{ap50:.1f}</td>" in html and "moco, epoch 2" in html
    assert [alt.split()[0] for alt in curves(html)] == ["AP", "training"]
    assert str(api.report(tmp_path / "runs")).startswith(f"### {name}\n")


@pytest.mark.slow
def test_benchmark__makes_its_runs_and_their_table(scenes, tmp_path):
    name = "pascal_voc_R_18_FPN_small"
    asked = {"tasks": [name], "inits": ["random"], "datasets": scenes, "jobs": 2}
    table = api.benchmark(tmp_path / "runs", **asked, seeds=2, overrides=FINETUNE)
    assert re.search(r"^\| random \|.*\| 2 \| torchvision \|$", str(table), re.M)
    assert curves(table._repr_html_()) and not table.problems
    with pytest.raises(InputError, match="SOLVER.BASE_LR"):
        api.benchmark(tmp_path / "other", **asked, overrides=FINETUNE | {"SOLVER.BASE_LR": 9.0})


@pytest.mark.slow
def test_docs__their_example_runs(tmp_path, monkeypatch):
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from moco_transfer import api.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    write_pool(Path("images"), count=24, size=40, seed=0)
    write_voc_scenes(Path("trees"), splits={"train": 6, "test": 3}, size=64, seed=0)
    quick = {"plan_pretrain": PRETRAIN, "plan_finetune": FINETUNE}

    def shortened(name: str):
        made = getattr(api, name)

        def call(first, overrides=None, **more):
            if name == "benchmark":
                return made(first, **more | {"overrides": FINETUNE | overrides, "seeds": 1})
            return made(first, quick[name] | overrides, **more)

        return call

    for name in (*quick, "benchmark"):
        monkeypatch.setattr(api, name, shortened(name))
    names: dict = {}
    exec(code, names)
    assert (tmp_path / "out/trees/moco/results.json").is_file()
    assert [row.init for row in api.report("runs").tables[0].rows] == ["random", "moco"]


def test_report__of_nothing_and_a_faulty_plan(tmp_path):
    with pytest.raises(InputError, match="no readable run"):
        api.report(tmp_path)
    with pytest.raises(InputError, match="TEMPERATURE"):
        api.plan_pretrain("moco_v2_R_18_96px", {"MOCO.TEMPRATURE": 1})


def when(file: Path, lines: int, act) -> threading.Thread:
    """Call ``act`` as soon as a file has so many lines."""

    def wait() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if file.exists() and file.read_text().count("\n") >= lines:
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_interrupt__ends_the_run_saved_and_it_continues_as_if_it_had_not(pool, tmp_path):
    before = state()
    folder, changes = tmp_path / "cut", {"SOLVER.EPOCHS": 4}
    api.pretrain(plan(pool, tmp_path / "whole", **changes))
    interrupt = when(folder / "metrics.json", 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="has saved .*resume=True"):
        api.pretrain(plan(pool, folder, **changes))
    interrupt.join()
    assert state() == before and 2 <= max(losses(folder)) < 12
    run = api.pretrain(plan(pool, folder, resume=True, **changes))
    assert run.checkpoint.name == "checkpoint_0004.pth"
    assert losses(folder) == losses(tmp_path / "whole")


def tune(scenes, folder, *, resume=False, **changes):
    words = FINETUNE | {"OUTPUT_DIR": folder, "SEED": 0, "MODEL.DEVICE": "cpu"} | changes
    return api.plan_finetune("pascal_voc_R_18_FPN_small", words, datasets=scenes, resume=resume)


@pytest.mark.slow
def test_interrupt__of_fine_tuning_too(scenes, tmp_path):
    folder, changes = tmp_path / "cut", {"SOLVER.MAX_ITER": 40, "SOLVER.CHECKPOINT_PERIOD": 40}
    whole = api.finetune(tune(scenes, tmp_path / "whole", **changes))
    before = state()
    interrupt = when(folder / "metrics.json", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="has saved .*resume=True"):
        api.finetune(tune(scenes, folder, **changes))
    interrupt.join()
    assert state() == before and list(losses(folder, "total_loss")) == [20]
    run = api.finetune(tune(scenes, folder, resume=True, **changes))
    assert run.metrics == whole.metrics
    assert losses(folder, "total_loss") == losses(whole.folder, "total_loss")


def test_names_of_data_sets__are_those_of_each_plan(scenes, tmp_path):
    write_voc_scenes(tmp_path, splits={"train": 4, "test": 2}, size=64, seed=1)
    others = [f"{s}=voc:{tmp_path}:{s}:{tmp_path}/classes.txt" for s in ("train", "test")]
    one, two = tune(scenes, tmp_path / "one"), tune(others, tmp_path / "two")
    runs = [api.finetune(plan) for plan in (one, two)]
    assert [run.record["dataset"]["num_images"] for run in runs] == [{"test": 3}, {"test": 2}]


IN_A_NOTEBOOK = """
import sys
from moco_transfer import api
api.pretrain(api.plan_pretrain("moco_v2_R_18_96px", {settings!r}, resume="again" in sys.argv))
"""


@pytest.mark.slow
def test_interrupt__reaches_the_data_workers_too_and_the_run_saves(pool, tmp_path):
    """A notebook sends SIGINT to the kernel and to all processes that it has started."""
    folder = tmp_path / "run"
    more = {"DATA.ROOT": str(pool), "OUTPUT_DIR": str(folder), "DATA.NUM_WORKERS": 2}
    script = IN_A_NOTEBOOK.format(settings=PRETRAIN | more | {"SOLVER.EPOCHS": 40})
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    how = {"env": env, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", script], **how) as kernel:
        when(folder / "metrics.json", 3, lambda: os.killpg(kernel.pid, signal.SIGINT)).join()
        _, said = kernel.communicate(timeout=120)
    assert "KeyboardInterrupt: The run was stopped and has saved" in said
    assert "DataLoader worker" not in said, said
    assert list(folder.glob("checkpoint_*.pth")) and max(losses(folder)) < 120


def test_another_thread__sets_no_handler(pool, tmp_path, monkeypatch):
    set_ones = []
    known = signal.signal

    def spy(signum, handler):
        before = known(signum, handler)
        set_ones.append(signum)
        return before

    monkeypatch.setattr(signal, "signal", spy)
    made = plan(pool, tmp_path / "run")
    thread = threading.Thread(target=api.pretrain, args=(made,))
    thread.start()
    thread.join()
    assert len(losses(tmp_path / "run")) == 6 and set_ones == []


def test_progress__is_a_bar_of_notebooks_in_a_notebook(monkeypatch, capsys):
    class Shell:
        kernel = object()

    monkeypatch.setattr("IPython.get_ipython", Shell)
    progress_module._notebook_bar.cache_clear()
    with progress_module.progress(total=4, description="work") as bar:
        bar.update(3)
        assert progress_module.last_counted()[:3] == ("work", 3, 4)
    assert "75%|" in capsys.readouterr().err


@pytest.mark.slow
def test_notebook__shows_a_bar_and_a_table_and_its_stop_button_saves(pool, tmp_path, monkeypatch):
    from jupyter_client.manager import start_new_kernel

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    more = {"DATA.ROOT": str(pool), "DATA.NUM_WORKERS": 2, "OUTPUT_DIR": str(tmp_path / "short")}
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    shown: list[dict] = []

    def execute(code: str) -> dict:
        return client.execute_interactive(
            code, timeout=300, output_hook=lambda message: shown.append(message["content"])
        )["content"]

    cell = "from moco_transfer import api\n"
    cell += "api.pretrain(api.plan_pretrain('moco_v2_R_18_96px', {!r}))"
    try:
        assert execute(cell.format(PRETRAIN | more))["status"] == "ok"
        (html,) = [c["data"]["text/html"] for c in shown if "text/html" in c.get("data", {})]
        assert "Pre-trained: " in html and curves(html)
        printed = "".join(c["text"] for c in shown if c.get("name") == "stderr")
        assert "6/6" in printed and "|" in printed

        folder = tmp_path / "long"
        more |= {"OUTPUT_DIR": str(folder), "SOLVER.EPOCHS": 40}
        when(folder / "metrics.json", 3, manager.interrupt_kernel)
        answer = execute(cell.format(PRETRAIN | more))
        assert (answer["ename"], answer["status"]) == ("KeyboardInterrupt", "error")
        assert list(folder.glob("checkpoint_*.pth")) and max(losses(folder)) < 120
        assert execute("1")["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
