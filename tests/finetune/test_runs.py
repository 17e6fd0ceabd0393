"""What a run records, rejects and leaves alone: interrupted, resumed and evaluated runs, on the
embedded engine, seconds each.

Seen red under: weights, label subset, annotations, seed, world size left out of the comparison; the
    weights of the resumption recorded;
config.yaml written before the checkpoint is looked at; an evaluation written into the run's folder,
or over another evaluation; no predictions without ground truth;
evaluation under autocast; no heartbeat; a traceback for a loss that is not finite.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from generated_images import write_voc_scenes

from moco_transfer.cli.main import main
from moco_transfer.convert import convert_checkpoint
from moco_transfer.data import register_dataset
from moco_transfer.data.annotations import catalog
from moco_transfer.data.annotations.catalog import own_names
from moco_transfer.data.annotations.label_subset import LabelDraw, LabelSubset, write_label_subset
from moco_transfer.evaluate.metric_names import TIDE_ERRORS
from moco_transfer.finetune import run as run_module
from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.resume import evaluation_folder
from moco_transfer.finetune.run import finetune
from moco_transfer.finetune.torchvision_engine.build import TorchvisionEngine
from moco_transfer.runtime import device
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.files import sha256_of
from moco_transfer.runtime.stop import StopRequest

TINY = """DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.015 SOLVER.MAX_ITER 2
    MODEL.ROI_HEADS.NUM_CLASSES 8
    SOLVER.STEPS (1,) INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 MODEL.FPN.OUT_CHANNELS 16
    MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.DEVICE cpu SEED 0
    TEST.PRECISE_BN.ENABLED False DATASETS.TRAIN ('mine_train',) DATASETS.TEST ('mine_test',)"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_voc_scenes(folder, splits={"train": 4, "test": 2}, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    """Two backbones that differ."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18().state_dict(), folder / "r18.pth")
        convert_checkpoint(folder / "r18.pth", folder / f"{seed}.pkl")
    return [folder / "0.pkl", folder / "1.pkl"]


@pytest.fixture(autouse=True)
def mine(monkeypatch, scenes):
    """Return a function that registers mine_train and mine_test again, in another folder."""
    monkeypatch.setattr(
        logging.getLogger("moco_transfer"), "propagate", True
    )  # a command line that ran before has switched it off

    def register(root: Path) -> None:
        monkeypatch.setattr(catalog, "_OWN", {})
        for split in ("train", "test"):
            classes = (root / "classes.txt").read_text().split()
            register_dataset(
                f"mine_{split}", "voc", root=str(root), split=split, class_names=classes
            )

    register(scenes)
    return register


def run(folder: Path, *words: object, **options):
    overrides = [*TINY.split(), "OUTPUT_DIR", str(folder), *map(str, words)]
    on_start = options.pop("on_start", lambda folder: None)
    request = Request("demo_R_18_FPN", overrides, engine="torchvision", task="tiny", **options)
    return finetune(plan_finetuning(request), on_start=on_start)


def interrupt(folder: Path, *words: object, **options) -> dict:
    """Run one iteration of two and return the checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda self: True)
        assert run(folder, *words, **options) is None
    return torch.load(folder / "checkpoint_0000001.pth", weights_only=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def rejected(folder: Path, *words: object, match: str, **options) -> None:
    """Resume, see the sentence, and find every file as it was."""
    before = files(folder)
    with pytest.raises(InputError, match=match) as caught:
        run(folder, *words, resume=True, **options)
    assert str(caught.value).count("\n") == 0
    assert files(folder) == before


def test_checkpoint__says_what_the_run_began_with(tmp_path, weights, scenes, mine):
    state = interrupt(tmp_path / "run", "MODEL.WEIGHTS", weights[0])
    assert state["weights_sha256"] == sha256_of(weights[0]) and state["weights"]["path"] == str(
        weights[0]
    )
    assert (state["label_subset_sha256"], state["world_size"], state["seed"], state["init"]) == (
        None,
        1,
        0,
        "0",
    )
    digests = state["datasets"]
    assert (
        set(digests) == {"train", "test"}
        and set(digests["train"]) == {"mine_train"}
        and len(digests["test"]["mine_test"]) == 64
    )
    assert digests["train"]["mine_train"] != digests["test"]["mine_test"]
    # The same images elsewhere are the same data.
    write_voc_scenes(tmp_path / "moved", splits={"train": 4, "test": 2}, size=64, seed=0)
    mine(tmp_path / "moved")
    record = run(tmp_path / "run", "MODEL.WEIGHTS", weights[0], resume=True)
    assert record["iterations"] == 2 and record["weights"]["sha256"] == state["weights_sha256"]
    assert record["remarks"] == [note for note in record["remarks"] if "resumed" not in note]


def test_resume__other_weights_are_rejected(tmp_path, weights):
    file = tmp_path / "moco.pkl"
    file.write_bytes(weights[0].read_bytes())
    interrupt(tmp_path / "run", "MODEL.WEIGHTS", file)
    rejected(
        tmp_path / "run",
        match=r"MODEL\.WEIGHTS .*moco\.pkl ->.*\. Give MODEL\.WEIGHTS '.*moco\.pkl'",
    )
    file.write_bytes(weights[1].read_bytes())
    rejected(
        tmp_path / "run",
        "MODEL.WEIGHTS",
        file,
        match=r"MODEL\.WEIGHTS .*moco\.pkl, whose content has changed.*another OUTPUT_DIR",
    )
    assert run(tmp_path / "run", "MODEL.WEIGHTS", weights[0], resume=True)["weights"][
        "path"
    ] == str(file)  # the name of its start


def test_resume__other_labels_data_and_seed_are_rejected(tmp_path, scenes, mine):
    names = sorted((scenes / "ImageSets" / "Main" / "train.txt").read_text().split())
    subset = str(tmp_path / "half.json")
    write_label_subset(subset, LabelSubset(LabelDraw(0.5), {"mine_train": names[:2]}))
    interrupt(tmp_path / "run", label_subset=subset)
    rejected(tmp_path / "run", match=r"--label-subset a list -> none\)\. Give --label-subset")
    write_label_subset(subset, LabelSubset(LabelDraw(0.5), {"mine_train": names[2:]}))
    rejected(tmp_path / "run", match=r"--label-subset a list -> another", label_subset=subset)
    write_label_subset(subset, LabelSubset(LabelDraw(0.5), {"mine_train": names[:2]}))
    rejected(
        tmp_path / "run",
        "SEED",
        "1",
        match=r"SEED 0 -> 1\)\. Resume with SEED 0",
        label_subset=subset,
    )
    for split in ("train", "test"):
        write_voc_scenes(tmp_path / split, splits={"train": 4, "test": 2}, size=64, seed=0)
        first = (tmp_path / split / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[0]
        xml = tmp_path / split / "Annotations" / f"{first}.xml"
        text = xml.read_text()
        xmax = text[text.index("<xmax>") : text.index("</xmax>") + 7]
        xml.write_text(text.replace(xmax, f"<xmax>{int(xmax[6:-7]) - 1}</xmax>", 1))
        mine(tmp_path / split)
        rejected(
            tmp_path / "run",
            match=rf"the annotations of 'mine_{split}' in DATASETS\.{split.upper()} have changed",
            label_subset=subset,
        )
    mine(scenes)
    assert run(tmp_path / "run", resume=True, label_subset=subset)["iterations"] == 2


def test_resume__a_seed_that_was_drawn_stays(tmp_path):
    state = interrupt(tmp_path / "run", "SEED", "-1")
    assert run(tmp_path / "run", "SEED", "-1", resume=True)["seed"] == state["seed"]


def test_train__results_are_written_when_no_heartbeat_is_left(tmp_path, monkeypatch):
    """A run that is killed after results.json is complete, and must not seem to hang."""
    seen, write = [], run_module.atomic_write_text

    def look(path: Path, text: str) -> None:
        seen.append((path.name, (tmp_path / "heartbeat.json").exists()))
        write(path, text)

    monkeypatch.setattr(run_module, "atomic_write_text", look)
    run(tmp_path)
    assert seen == [("results.json", False)]


def test_train__without_a_test_set_ends_with_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, "DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "1")["iterations"] == 2
    names = {path.name for path in folder.iterdir()}
    assert {"checkpoint_0000002.pth", "last_checkpoint", "metrics.json"} <= names
    assert "results.json" not in names and not list(folder.glob("predictions_*"))
    last = folder / "checkpoint_0000002.pth"
    record = run(folder, "MODEL.WEIGHTS", last, eval_only=True)
    assert set(record["metrics"]["bbox"]) >= {"AP", "AP50"}
    rejected(
        folder, "DATASETS.TEST", "()", match=r"DATASETS.TEST names no data set", eval_only=True
    )


def test_resume__another_number_of_processes_is_said_and_recorded(tmp_path, caplog):
    file = tmp_path / "run" / "checkpoint_0000001.pth"
    state = interrupt(tmp_path / "run")
    torch.save(state | {"world_size": 2}, file)
    record = run(tmp_path / "run", resume=True)
    (note,) = [sentence for sentence in record["remarks"] if "world size" in sentence]
    assert note.startswith("resumed after iteration 1 on a world size of 1, before it 2:")
    assert any(note in logged.getMessage() for logged in caplog.records)
    # ... also after another resumption, on one process as the one before
    assert torch.load(tmp_path / "run" / "checkpoint_0000002.pth", weights_only=True)[
        "resume_notes"
    ] == [note]
    assert note in run(tmp_path / "run", resume=True)["remarks"]


def test_resume__another_config_is_rejected_and_config_yaml_stays(tmp_path):
    interrupt(tmp_path / "run")
    other = ["SOLVER.MOMENTUM", "0.8", "INPUT.MIN_SIZE_TEST", "48", "OUTPUT_DIR", tmp_path / "run"]
    changes = r"INPUT.MIN_SIZE_TEST \d+ -> 48; SOLVER.MOMENTUM 0.9 -> 0.8"
    rejected(tmp_path / "run", *other, match=rf"\({changes}\)\. Resume with the config.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with own_names():
        classes = (scenes / "classes.txt").read_text().split()
        for split in ("train", "test"):
            register_dataset(
                f"mine_{split}", "voc", root=str(scenes), split=split, class_names=classes
            )
        run(folder)
    return folder


def test_eval_only__in_the_folder_of_a_run_leaves_the_run_alone(finished):
    before = files(finished)
    checkpoint = finished / "checkpoint_0000002.pth"
    opened: list[Path] = []
    record = run(finished, "MODEL.WEIGHTS", checkpoint, eval_only=True, on_start=opened.append)
    assert record["flags"]["eval_only"] and opened == [finished / "eval_mine_test"]
    again = run(finished, eval_only=True, resume=True, on_start=opened.append)
    assert opened[1] == finished / "eval_mine_test_2"
    after = files(finished)
    assert {name: after[name] for name in before} == before
    added = {"config.yaml", "env.txt", "results.json"}
    added |= {"predictions_mine_test.json", "matches_mine_test.npz"}
    assert set(after) - set(before) == {
        f"{folder}/{name}" for folder in ("eval_mine_test", "eval_mine_test_2") for name in added
    }
    trained = json.loads(before["results.json"])
    # The run's last checkpoint, by --resume: what it began with is on record, not what
    # MODEL.WEIGHTS says now.
    assert again["weights"] == trained["weights"] and again["init"] == trained["init"] == "random"
    for key in ("metrics", "tide", "operating_point", "confusion", "matches"):
        assert again[key] == record[key] == trained[key]
    assert trained["matches"] == {"mine_test": "matches_mine_test.npz"}
    assert "recall" in trained["operating_point"]["mine_test"]["bbox"]
    assert {task: tuple(kinds) for task, kinds in trained["tide"]["mine_test"].items()} == {
        "bbox": TIDE_ERRORS
    }


def test_eval_only__in_a_folder_of_its_own_replaces_no_other_evaluation(finished, tmp_path):
    words = ("MODEL.WEIGHTS", finished / "checkpoint_0000002.pth")
    run(tmp_path / "eval", *words, eval_only=True)
    assert {f.name for f in (tmp_path / "eval").iterdir()} == {
        "config.yaml",
        "env.txt",
        "results.json",
        "predictions_mine_test.json",
        "matches_mine_test.npz",
    }
    before = files(tmp_path / "eval")
    run(tmp_path / "eval", *words, eval_only=True)
    after = files(tmp_path / "eval")
    assert {
        name: after[name] for name in before
    } == before and "eval_mine_test/results.json" in after


@pytest.mark.parametrize(
    "name",
    ["last_checkpoint", "metrics.json", "results.json", "predictions_other.json", "config.yaml"],
)
def test_evaluation_folder__anything_of_a_run_keeps_the_folder_for_it(tmp_path, name):
    assert evaluation_folder(tmp_path, ["a", "b/c"]) == tmp_path
    (tmp_path / name).write_text("of another")
    assert evaluation_folder(tmp_path, ["a", "b/c"]) == tmp_path / "eval_a+b_c"
    (tmp_path / "eval_a+b_c").mkdir()
    (tmp_path / "eval_a+b_c" / name).write_text("of another")
    assert evaluation_folder(tmp_path, ["a", "b/c"]) == tmp_path / "eval_a+b_c_2"


def test_eval_only__command_line_names_the_folder(finished, tmp_path, capsys):
    finished = shutil.copytree(finished, tmp_path / "run")
    arguments = [
        "--config-file",
        "demo_R_18_FPN",
        "--eval-only",
        "--engine",
        "torchvision",
        *TINY.split(),
        "OUTPUT_DIR",
        str(finished),
    ]
    assert (
        main(["train", *arguments, "MODEL.WEIGHTS", str(finished / "checkpoint_0000002.pth")]) == 0
    )
    out = capsys.readouterr().out
    folder = max(finished.glob("eval_*"), key=lambda path: path.stat().st_mtime_ns)
    assert (
        f"Done: {folder}/results.json" in out
        and f"writes:     {folder}: " in (folder / "log.txt").read_text()
    )


def without_ground_truth(folder: Path, scenes: Path, monkeypatch, kind: str) -> None:
    classes = (scenes / "classes.txt").read_text().split()
    monkeypatch.setattr(
        catalog,
        "_OWN",
        {name: source for name, source in catalog._OWN.items() if name != "mine_test"},
    )
    if kind == "all difficult":
        write_voc_scenes(folder, splits={"test": 2}, size=64, seed=0)
        for xml in (folder / "Annotations").glob("*.xml"):
            xml.write_text(
                xml.read_text().replace("<difficult>0</difficult>", "<difficult>1</difficult>")
            )
        register_dataset("mine_test", "voc", root=str(folder), split="test", class_names=classes)
        return
    images = [
        {"id": number, "file_name": f"{name}.{suffix}", "width": 64, "height": 64}
        for number, name in enumerate(
            (scenes / "ImageSets" / "Main" / "test.txt").read_text().split(), start=1
        )
        for suffix in [next((scenes / "JPEGImages").glob(f"{name}.*")).suffix[1:]]
    ]
    content = {
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }
    content |= {} if kind == "no annotations" else {"annotations": []}
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps(content))
    register_dataset(
        "mine_test",
        "coco",
        json_file=str(folder / "test.json"),
        image_root=str(scenes / "JPEGImages"),
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no annotations", "2 images, crowd regions not counted"),
        ("empty annotations", "2 images, crowd regions not counted"),
        ("all difficult", "2 images, difficult boxes not counted"),
    ],
)
def test_no_ground_truth__is_said_before_the_training_and_eval_only_writes_predictions(
    kind, said, finished, tmp_path, scenes, monkeypatch
):
    without_ground_truth(tmp_path / "data", scenes, monkeypatch, kind)
    with pytest.raises(
        InputError,
        match=(
            rf"'mine_test' has no ground truth \({said}\), .* --eval-only writes the predictions on"
            r" this one\."
        ),
    ):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    threshold = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    record = run(
        tmp_path / "eval",
        "MODEL.WEIGHTS",
        finished / "checkpoint_0000002.pth",
        *threshold,
        eval_only=True,
    )
    assert record["metrics"] == {}
    assert {"image_id", "category_id", "bbox", "score"} == set(
        json.loads((tmp_path / "eval" / "predictions_mine_test.json").read_text())[0]
    )


def test_evaluation__is_in_float32_also_when_training_is_under_autocast(tmp_path, monkeypatch):
    seen: dict[str, list] = {"training": [], "evaluation": []}
    build_model = TorchvisionEngine.build_model

    def note(module, inputs, output) -> None:
        seen["training" if module.training else "evaluation"].append(
            (torch.is_autocast_enabled("cpu"), output.dtype)
        )
        assert (tmp_path / "run" / "heartbeat.json").exists()

    def watched(self):
        model = build_model(self)
        model.roi_heads.box_head.fc1.register_forward_hook(note)
        return model

    monkeypatch.setattr(TorchvisionEngine, "build_model", watched)
    run(tmp_path / "run", "TEST.EVAL_PERIOD", "1", precision="bf16")
    assert set(seen["training"]) == {(True, torch.bfloat16)}
    assert (
        set(seen["evaluation"]) == {(False, torch.float32)} and len(seen["evaluation"]) == 2 * 2
    )  # two images, twice
    assert not (tmp_path / "run" / "heartbeat.json").exists()


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_precision__auto_is_what_is_faster_here_and_stays_in_a_resumed_run(
    tmp_path, monkeypatch, speed
):
    monkeypatch.setattr(device, "computes_bf16", lambda device: True)
    monkeypatch.setattr(device, "bf16_speed", lambda: speed)
    expected = "bf16" if speed > 1 else "fp32"
    assert interrupt(tmp_path / "run")["precision"] == expected
    other = "fp32" if speed > 1 else "bf16"
    rejected(tmp_path / "run", match="precision", precision=other)
    monkeypatch.setattr(device, "bf16_speed", lambda: 1 / speed)  # another machine
    record = run(tmp_path / "run", resume=True)
    assert record["precision"] == expected


def test_precision__without_amp_is_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "computes_bf16", lambda device: True)
    monkeypatch.setattr(device, "bf16_speed", lambda: 2.0)
    words = [*TINY.split(), "OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", "False"]
    request = Request("demo_R_18_FPN", words, engine="torchvision")
    assert plan_finetuning(request).precision.name == "fp32"


def test_diverged_run__one_sentence_and_status_1(tmp_path, capsys):
    arguments = [
        "--config-file",
        "demo_R_18_FPN",
        "--engine",
        "torchvision",
        "--force",
        *TINY.split(),
        "OUTPUT_DIR",
        str(tmp_path / "run"),
    ]
    assert (
        main(
            [
                "train",
                *arguments,
                "SOLVER.BASE_LR",
                "1e38",
                "SOLVER.WARMUP_ITERS",
                "0",
                "SOLVER.MAX_ITER",
                "5",
            ]
        )
        == 1
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("moco-transfer train: Iteration ") and "Lower SOLVER.BASE_LR" in error
    assert "Traceback" not in error
    command = re.search(r"`moco-transfer (train --replay (\S+) .*)`", error)
    assert torch.load(command[2], weights_only=True)["iteration"] in (1, 2)
    assert main(shlex.split(command[1])) == 0
    said = capsys.readouterr().out
    assert "Iteration 2" in said and "Reproduced in fp32" in said
    assert re.search(r"output of|after the update", said)


def test_backbones_of_the_fixture__differ(weights):
    one, other = (pickle.loads(path.read_bytes())["model"] for path in weights)
    assert not (one["stem.conv1.weight"] == other["stem.conv1.weight"]).all()


def test_evaluation__of_a_run_of_fp16_on_a_cpu_which_has_none(tmp_path):
    """Red under: the precision of training asked of the device; an empty state of loss scaling
    loaded, as of a run begun on a CPU.
    """
    run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint_0000002.pth"
    state = torch.load(path, weights_only=True)
    assert state["scaler"] == {}
    torch.save(state | {"precision": "fp16"}, path)
    record = run(tmp_path / "run", resume=True, eval_only=True)
    assert record["precision"] == "fp16" and record["metrics"]["bbox"]
