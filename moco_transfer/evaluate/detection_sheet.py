"""An image of detections beside the ground truth: one row a test image, one column an
initialisation; as PNG and as SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.annotations.catalog import DetectionDataset
from ..data.batches.transforms import read_and_check
from ..data.image_grid import LINES, Cell, ImageGrid, Mark, save_grid
from ..runtime.errors import InputError

#: Images that the sheet shows of a test set when nobody says which.
NUM_PICTURES = 4


def first_images(dataset: DetectionDataset, count: int = NUM_PICTURES) -> list[int | str]:
    """Return the ids of the first images of a set that have an object: the first, not the best
    ones.
    """
    return [record["image_id"] for record in dataset.records if record["annotations"]][:count]


def draw_detection_sheet(
    path: str | Path,
    dataset: DetectionDataset,
    columns: Mapping[str, Sequence[dict]],
    *,
    image_ids: Sequence[int | str],
) -> Path:
    """Write a PNG whose first column is the ground truth, and an SVG of the same beside it.

    Of the predictions it shows as many, the surest, as there are objects: a score threshold would
        show a detector with low
    scores as one that finds nothing. Up to eight classes are told apart by their lines, with a key
    below; where there are more, each box bears its class.

    Args:
        path: The PNG to write.
        dataset: The test set.
        columns: Title -> predictions in COCO's result format, e.g. from
            ``evaluate.predictions.load_predictions``.
        image_ids: The images to show, one row each.

    Returns:
        ``path``.

    Raises:
        InputError: If an image is not in the set or cannot be read, or a prediction has a category
            that the set lacks.
    """
    contiguous = {category: index for index, category in enumerate(dataset.category_ids)}
    records = {record["image_id"]: record for record in dataset.records}
    unknown = [image_id for image_id in image_ids if image_id not in records]
    if unknown or not image_ids:
        raise InputError(
            f"Data set {dataset.name!r} has no image"
            f" {unknown[0] if unknown else 'with objects'!r} to show; it has {len(records)}."
        )
    found = {
        title: _by_image(predictions, set(image_ids), contiguous, title)
        for title, predictions in columns.items()
    }
    rows = []
    for image_id in image_ids:
        truth = [
            (tuple(a["bbox"]), a["category_id"], None) for a in records[image_id]["annotations"]
        ]
        rows.append([truth, *(found[title].get(image_id, [])[: len(truth)] for title in columns)])
    shown = sorted({index for row in rows for boxes in row for _, index, _ in boxes})
    by_line = len(shown) <= len(LINES)
    names = [name.replace("_", " ") for name in dataset.class_names]

    def mark(box: tuple, index: int, score: float | None) -> Mark:
        texts = [] if by_line else [names[index]]
        return Mark(
            box,
            shown.index(index),
            " ".join([*texts, *([f"{score:.2f}"] if score is not None else [])]),
        )

    cells = []
    for image_id, row in zip(image_ids, rows, strict=True):
        image = read_and_check(records[image_id], "RGB")
        # The surest last, on top of the others.
        cells.append(
            tuple(Cell(image, tuple(mark(*box) for box in reversed(boxes))) for boxes in row)
        )
    titles = ("ground truth", *(f"{title} (the surest)" for title in columns))
    key = tuple((line, names[index]) for line, index in enumerate(shown)) if by_line else ()
    save_grid(ImageGrid(titles, tuple(cells), key), path)
    return Path(path)


def _by_image(
    predictions: Sequence[dict], wanted: set, contiguous: Mapping[int, int], title: str
) -> dict[int | str, list[tuple]]:
    """Return, for each wanted image, (box XYXY, contiguous class, score), the surest first."""
    found: dict[int | str, list[tuple]] = {}
    for prediction in predictions:
        if prediction["image_id"] not in wanted:
            continue
        if prediction["category_id"] not in contiguous:
            raise InputError(
                f"{title}: a prediction has category {prediction['category_id']}, which the data"
                " set lacks; are they of another set?"
            )
        x, y, width, height = prediction["bbox"]
        box = (x, y, x + width, y + height)
        found.setdefault(prediction["image_id"], []).append(
            (box, contiguous[prediction["category_id"]], prediction["score"])
        )
    return {image_id: sorted(boxes, key=lambda box: -box[2]) for image_id, boxes in found.items()}
