"""Hand-made dense pose: points on people of COCO's images in the layout of DensePose-COCO, and
stand-ins for the project's files of a body's surface, which are downloads of 2 GB.

Each of the 24 parts is a square of 3 x 3 vertices. A person is four bands, one above the other; U
and V are places in the band. The numbers mean nothing; they are for the code.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

FILES = (
    "UV_symmetry_transforms.mat",
    "SMPL_subdiv.mat",
    "SMPL_SUBDIV_TRANSFORM.mat",
    "Pdist_matrix.pkl",
)
BANDS = (2, 9, 16, 23)  # the parts that a person has, from above
_SIDE, _PARTS = 3, 24


def write_body_files(cache: Path) -> Path:
    """Write the four files where the project looks for them with FVCORE_CACHE ``cache``."""
    from scipy.io import savemat

    folder = cache / "densepose" / "data"
    folder.mkdir(parents=True)
    mirrored = np.empty((1, _PARTS), dtype=object)
    for part in range(_PARTS):
        mirrored[0, part] = np.tile(np.arange(256)[::-1] / 255, (256, 1))
    savemat(folder / FILES[0], {"U_transforms": mirrored, "V_transforms": mirrored})
    grid = np.linspace(0, 1, _SIDE)
    u, v = (np.tile(axis.ravel(), _PARTS) for axis in np.meshgrid(grid, grid))
    part = np.repeat(np.arange(1, _PARTS + 1), _SIDE**2)
    columns = {"U_subdiv": u, "V_subdiv": v, "Part_ID_subdiv": part}
    savemat(folder / FILES[1], {name: column[:, None] for name, column in columns.items()})
    savemat(folder / FILES[2], {"index": np.arange(1, len(u) + 1)[:, None]})
    # The project's order of pairs: i > j, row by row.
    place = np.stack([u + part, v], axis=1)
    rows = [np.linalg.norm(place[i] - place[:i], axis=1) for i in range(1, len(u))]
    distances = np.concatenate(rows)[:, None]
    (folder / FILES[3]).write_bytes(pickle.dumps({"Pdist_matrix": distances}))
    return cache


def write_people(shared_data: Path, root: Path) -> Path:
    """Write train, valminusminival and minival of COCO 2014 with dense pose below ``root``, from a
    few people of COCO 2017's sample.
    """
    coco = root / "coco"
    (coco / "annotations").mkdir(parents=True)
    for ours, theirs in (("train2014", "train2017"), ("val2014", "val2017")):
        (coco / ours).symlink_to(shared_data / "coco" / theirs)
    for split, part, images in (
        ("train2014", "train2017", slice(0, 6)),
        ("valminusminival2014", "val2017", slice(0, 4)),
        ("minival2014", "val2017", slice(4, 8)),
    ):
        source = shared_data / "coco" / "annotations" / f"person_keypoints_{part}.json"
        content = json.loads(source.read_text())
        people = [a for a in content["annotations"] if _is_large(a)]
        kept = sorted({a["image_id"] for a in people})[images]
        content["images"] = [image for image in content["images"] if image["id"] in kept]
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        bare = kept[-1] if part == "train2017" else None  # an image whose people have no points
        content["annotations"] = [
            a | (_dense_pose(a, sizes[a["image_id"]]) if a["image_id"] != bare else {})
            for a in people
            if a["image_id"] in kept
        ]
        file = coco / "annotations" / f"densepose_{split}.json"
        file.write_text(json.dumps(content))
    return root


def _is_large(annotation: dict) -> bool:
    polygons = isinstance(annotation.get("segmentation"), list) and not annotation["iscrowd"]
    return polygons and min(annotation["bbox"][2:]) >= 60


def _dense_pose(annotation: dict, size: tuple[int, int]) -> dict:
    """Return a point for each of the cells of the box that the person covers, and 14 parts."""
    rle = mask_api.merge(mask_api.frPyObjects(annotation["segmentation"], *size))
    x, y, w, h = annotation["bbox"]
    rows = np.clip((y + (np.arange(256) + 0.5) * h / 256).astype(int), 0, size[0] - 1)
    columns = np.clip((x + (np.arange(256) + 0.5) * w / 256).astype(int), 0, size[1] - 1)
    mask = mask_api.decode(rle)[rows][:, columns]
    at_y, at_x = (axis.ravel() for axis in np.mgrid[5:256:16, 8:256:16])
    at_y, at_x = (axis[mask[at_y, at_x] > 0] for axis in (at_y, at_x))
    bands = np.arange(256)[:, None] * 14 // 256
    masks = []
    for band in range(14):
        encoded = mask_api.encode(np.asfortranarray(((bands == band) & (mask > 0)).astype("uint8")))
        masks.append(encoded | {"counts": encoded["counts"].decode()})
    return {
        "dp_x": (at_x + 0.5).tolist(),
        "dp_y": (at_y + 0.5).tolist(),
        "dp_I": [float(BANDS[y * len(BANDS) // 256]) for y in at_y],
        "dp_U": (at_x / 256).tolist(),
        "dp_V": (at_y * len(BANDS) / 256 % 1).tolist(),
        "dp_masks": masks,
    }
