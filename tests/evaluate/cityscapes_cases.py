"""Random test sets in Cityscapes' layout, detections on them, and what cityscapesscripts' script
and Detectron2's evaluator, each run as it is on files, say of them.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.data.annotations.cityscapes import CITYSCAPES_LABELS

LABELS = tuple(CITYSCAPES_LABELS.values())
# Void, road, caravan (has instances and is not evaluated), and groups of persons and cars.
OTHERS = (0, 3, 7, 29, 29000, 24, 26)


def let_script_run(patch, folder: Path) -> None:
    """Let cityscapesscripts 2.3.0 run with NumPy 2, for which it was not written: NumPy 2.4 has no
    ``in1d``, and its JSON knows no numbers of NumPy. What it writes into the current folder is left
    out.
    """
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script

    patch.setattr(np, "in1d", np.isin, raising=False)
    patch.setattr(script, "writeDict2JSON", lambda content, file: None)
    patch.chdir(folder)


def write_truth(folder: Path, seed: int, num_images: int = 5) -> DetectionDataset:
    """Write images of random rectangles, later ones over earlier ones: evaluated objects of two to
    four classes, some below the 100 px that count, groups, void and what is never evaluated.
    """
    rng = np.random.default_rng(seed)
    classes = rng.choice(LABELS, size=rng.integers(2, 5), replace=False)
    for number in range(num_images):
        ids, counts = np.full((60, 90), 7, np.uint16), dict.fromkeys(LABELS, 0)
        for _ in range(rng.integers(1, 10)):
            label = int(rng.choice(classes))
            one = 1000 * label + counts[label] if rng.random() < 0.7 else int(rng.choice(OTHERS))
            counts[label] += 1
            y, x = rng.integers(0, 50, 2)
            ids[y : y + rng.integers(3, 25), x : x + rng.integers(3, 40)] = one
        stem = f"town_{number:06d}_000019"
        for root, ending, pixels in (
            ("gtFine", "gtFine_instanceIds", ids),
            ("leftImg8bit", "leftImg8bit", np.zeros((60, 90, 3), np.uint8)),
        ):
            file = folder / root / "town" / f"{stem}_{ending}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return DetectionDataset(
        "made", "cityscapes", str(folder / "leftImg8bit"), root=str(folder / "gtFine")
    )


def draw_outputs(dataset: DetectionDataset, seed: int) -> list[dict]:
    """Return a detector's output for each image: objects shifted, enlarged and repeated, other
    classes, some pixels anywhere, an empty mask; scores repeat.
    """
    rng, outputs = np.random.default_rng([seed, 1]), []
    for record in dataset.records:
        ids = np.asarray(Image.open(record["instance_file"]))
        masks, classes = [np.zeros(ids.shape, bool)], [0]
        for one in np.unique(ids):
            label = int(one) // 1000 if one >= 1000 else int(one)
            for _ in range(rng.integers(0, 3)):
                shift = np.rint(rng.normal(0, rng.choice([0, 1, 3]), 2)).astype(int)
                masks.append(np.roll(ids == one, shift, (0, 1)))
                known = label in LABELS and rng.random() < 0.9
                classes.append(LABELS.index(label) if known else int(rng.integers(8)))
        for _ in range(rng.integers(0, 3)):
            masks.append(rng.random(ids.shape) < 0.02)
            classes.append(int(rng.integers(8)))
        scores = np.round(rng.random(len(masks)), rng.choice([1, 6])).astype(np.float32)
        boxes = torch.tensor(np.tile([1.0, 2.0, 30.0, 40.0], (len(masks), 1)), dtype=torch.float32)
        outputs.append(
            {
                "boxes": boxes,
                "scores": torch.from_numpy(scores),
                "classes": torch.tensor(classes),
                "masks": torch.from_numpy(np.stack(masks)),
            }
        )
    return outputs


def script_numbers(dataset: DetectionDataset, outputs: list[dict], folder: Path) -> dict:
    """Return AP, AP50 and AP-<class>, 0-100, of the script on PNG in a (new) folder; what it cannot
    compute is NaN.
    """
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script

    folder.mkdir()
    predictions = []
    for record, output in zip(dataset.records, outputs, strict=True):
        stem = record["image_id"].removesuffix(".png")
        lines = []
        for index in range(len(output["scores"])):
            name = f"{stem}_{index}.png"
            Image.fromarray(output["masks"][index].numpy().astype(np.uint8) * 255).save(
                folder / name
            )
            score, label = output["scores"][index].item(), LABELS[int(output["classes"][index])]
            lines.append(f"{name} {label} {score}\n")
        predictions.append(folder / f"{stem}_pred.txt")
        predictions[-1].write_text("".join(lines))
    args = types.SimpleNamespace(**vars(script.args))
    args.predictionPath, args.gtInstancesFile = str(folder), str(folder / "gtInstances.json")
    args.JSONOutput, args.quiet = False, True
    truth = [record["instance_file"] for record in dataset.records]
    averages = script.evaluateImgLists(list(map(str, predictions)), truth, args)["averages"]
    numbers = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
    numbers |= {f"AP-{name}": found["ap"] for name, found in averages["classes"].items()}
    return {name: 100 * float(value) for name, value in numbers.items()}


def detectron2_numbers(dataset: DetectionDataset, outputs: list[dict], patch) -> dict:
    """Return AP and AP50 of Detectron2's CityscapesInstanceEvaluator, which finds cityscapesscripts
    where its main branch looks for it (issue 5436).
    """
    import cityscapesscripts.helpers.labels  # noqa: F401
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import CityscapesInstanceEvaluator
    from detectron2.structures import Boxes, Instances

    theirs = [name for name in sys.modules if name.startswith("cityscapesscripts")]
    internal = "deeplearning.projects.cityscapesApi"
    for name in ("deeplearning", "deeplearning.projects", internal):
        patch.setitem(sys.modules, name, types.ModuleType(name))
    for name in theirs:
        patch.setitem(sys.modules, f"{internal}.{name}", sys.modules[name])
    name = f"cityscapes_{dataset.root}"
    MetadataCatalog.get(name).set(thing_classes=list(CITYSCAPES_LABELS), gt_dir=dataset.root)
    evaluator = CityscapesInstanceEvaluator(name)
    evaluator.reset()
    for record, output in zip(dataset.records, outputs, strict=True):
        found = Instances((record["height"], record["width"]))
        found.pred_boxes, found.scores = Boxes(output["boxes"]), output["scores"]
        found.pred_classes, found.pred_masks = output["classes"], output["masks"]
        evaluator.process([record], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        return {key: float(value) for key, value in evaluator.evaluate()["segm"].items()}
