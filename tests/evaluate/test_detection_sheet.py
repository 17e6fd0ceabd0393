"""The sheet of detections: known pixels where boxes must be drawn.

Should go red under (not yet tried): drawing the least sure boxes; taking category ids for contiguous ones.
"""

from __future__ import annotations

import cv2
import numpy as np

from moco_transfer.data.catalog import get_dataset, register_dataset
from moco_transfer.data.scenes import CLASSES, write_voc_scenes
from moco_transfer.evaluate.detection_sheet import draw_detection_sheet


def test_detection_sheet__draws_the_surest_boxes_beside_the_ground_truth(tmp_path):
    write_voc_scenes(tmp_path / "scenes", splits={"test": 1}, size=80, seed=3)
    register_dataset("sheet_test", "voc", root=tmp_path / "scenes", split="test", class_names=CLASSES)
    dataset = get_dataset("sheet_test")
    objects = len(dataset.records[0]["annotations"])
    # One sure box and, behind it, more than there are objects that must not show.
    predictions = [{"image_id": "test_0000", "category_id": 0, "bbox": [5.0, 5.0, 20.0, 30.0], "score": 0.9}]
    predictions += [{"image_id": "test_0000", "category_id": 5, "bbox": [50.0, 50.0, 25.0, 25.0], "score": 0.01 * i} for i in range(objects)]
    sheet = cv2.imread(str(draw_detection_sheet(tmp_path / "s.png", dataset, {"a": predictions}, image_ids=["test_0000"])))
    assert sheet.shape == (28 + 320 + 2 * 8, 2 * (320 + 8) + 8, 3)
    left, top, scale = 8 + 320 + 8, 28, 4
    colours = [(0, 159, 230), (0, 94, 213)]  # of class 0 and class 5
    assert tuple(sheet[top + 20 * scale, left + 5 * scale]) == colours[0]  # the left edge of the sure box
    least = sheet[top + 74 * scale : top + 76 * scale, left + 50 * scale : left + 75 * scale].reshape(-1, 3)
    shown = objects - 1  # the other places go to the next surest, all on the same spot
    assert np.any(np.all(least == colours[1], axis=1)) == (shown > 0)
