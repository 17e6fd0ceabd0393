"""From a detection record to what a model takes: read the image, resize its shorter edge, mirror
it, and move its boxes along.

Shapes in this module:
    H, W: image after resizing, px    N: objects in the image    K: key points of an object
Conventions:
    All randomness comes from the numpy Generator that the caller passes; there is no global state.
Source:
    Re-expresses detectron2/data/{dataset_mapper,detection_utils}.py; images and annotations are
    equal, bit for bit, given the same size and mirroring. Known difference: a COCO box of four
        whole numbers is scaled exactly here, while Detectron2 rounds
    its corners down after scaling.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ...runtime.errors import InputError, MissingFileError
from .geometry import ResizeAndFlip, draw_shorter_edge, resized_shape

_EXIF_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A side at most this long counts as empty, as in Detectron2's filter_empty_instances; px.
_MIN_BOX_SIDE = 1e-5


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an image upright, as its EXIF orientation says.

    Args:
        path: The file.
        image_format: ``RGB`` or ``BGR``, the order of the channels in the result.

    Returns:
        Pixels (H, W, 3), uint8, 0-255.

    Raises:
        MissingFileError: If the file does not exist.
        InputError: If it cannot be decoded, or the format is another.
    """
    if image_format not in ("RGB", "BGR"):
        raise InputError(f"INPUT.FORMAT is {image_format!r}, expected RGB or BGR.")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(_turn_upright(image).convert("RGB"))
    except FileNotFoundError as error:
        raise MissingFileError(f"The image {path} does not exist.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"The image {path} cannot be decoded ({error}); replace it, or take it off the data"
            " set."
        ) from error
    return pixels if image_format == "RGB" else pixels[:, :, ::-1]


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged EXIF raises nearly anything in Pillow; the pixels are still good, so use them as they lie
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def read_and_check(record: dict, image_format: str) -> np.ndarray:
    """Read a record's image and refuse it if its size is not what the annotations were drawn on.

    Raises:
        InputError: If it cannot be read or has another size.
    """
    pixels = read_image(record["file_name"], image_format)
    height, width = pixels.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise InputError(
            f"The image {record['file_name']} is {width} x {height} px, but its annotation says"
            f" {record['width']} x {record['height']}; the boxes belong to another version of it"
            " (resized, or rotated with its EXIF tag), so annotate this one or restore the other."
        )
    return pixels


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Turn uint8 pixels (H, W, 3) into a float32 tensor (3, H, W), still 0-255 and in the same
    channel order.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()


class TrainMapper:
    """Turns a record into a training item; what is drawn depends only on the generator that is
    passed.

    Args:
        min_sizes: Lengths of the shorter edge, px; for ``range`` exactly two, for ``choice`` any
            number.
        max_size: Upper limit of the longer edge, px.
        sample_style: ``choice`` or ``range``.
        flip: ``horizontal``, ``vertical`` or ``none``; done to half of the images.
        image_format: ``RGB`` or ``BGR``.
        with_masks: Whether the item holds ``gt_masks``.
        mask_format: ``polygon`` (lists of polygons) or ``bitmask`` (needed for annotations that are
            RLE).
        with_keypoints: Whether the item holds ``gt_keypoints``.
        keypoint_mirror: Needed with key points and a horizontal flip, see
            ``DetectionDataset.keypoint_mirror``.

    Raises:
        InputError: If an argument has an illegal value.
    """

    def __init__(
        self,
        min_sizes: tuple[int, ...],
        max_size: int,
        sample_style: str = "choice",
        flip: str = "horizontal",
        image_format: str = "RGB",
        *,
        with_masks: bool = False,
        mask_format: str = "polygon",
        with_keypoints: bool = False,
        keypoint_mirror: tuple[int, ...] = (),
    ) -> None:
        self.min_sizes = (min_sizes, min_sizes) if isinstance(min_sizes, int) else tuple(min_sizes)
        for key, value, legal in (
            ("INPUT.MIN_SIZE_TRAIN_SAMPLING", sample_style, ("choice", "range")),
            ("INPUT.RANDOM_FLIP", flip, ("horizontal", "vertical", "none")),
            ("INPUT.MASK_FORMAT", mask_format, ("polygon", "bitmask")),
        ):
            if value not in legal:
                raise InputError(f"{key} is {value!r}, expected one of {', '.join(legal)}.")
        if (
            not self.min_sizes
            or min(self.min_sizes) <= 0
            or (sample_style == "range" and len(self.min_sizes) != 2)
        ):
            raise InputError(
                f"INPUT.MIN_SIZE_TRAIN is {min_sizes!r}; expected lengths in px, for"
                " MIN_SIZE_TRAIN_SAMPLING 'range' exactly two."
            )
        if max_size <= 0:
            raise InputError(
                f"INPUT.MAX_SIZE_TRAIN is {max_size}; expected the upper limit of the longer edge"
                " in px."
            )
        self.max_size, self.sample_style, self.flip, self.image_format = (
            max_size,
            sample_style,
            flip,
            image_format,
        )
        self.with_masks, self.mask_format = with_masks, mask_format
        self.with_keypoints, self.keypoint_mirror = with_keypoints, keypoint_mirror

    def __call__(self, record: dict, rng: np.random.Generator) -> dict:
        """Return the training item of a record.

        Args:
            record: A detection record; left as it is.
            rng: Source of the shorter edge and of the flip, drawn in this order.

        Returns:
            ``image`` float32 (3, H, W), 0-255; ``height``, ``width`` (int, as read); ``image_id``;
            ``file_name``; ``gt_boxes`` float32 (N, 4) XYXY in px of ``image``; ``gt_classes`` int64
            (N,); with masks ``gt_masks``: N lists of float64 polygons, or bool (N, H, W); with key
            points ``gt_keypoints`` float32 (N, K, 3). Crowd regions and empty objects are left out.

        Raises:
            InputError: If the image cannot be read or has another size, or an object lacks its
                mask or key points.
        """
        pixels = read_and_check(record, self.image_format)
        shorter_edge = draw_shorter_edge(self.min_sizes, self.sample_style, rng)
        new_shape = resized_shape(
            *pixels.shape[:2], shorter_edge=shorter_edge, max_size=self.max_size
        )
        flip = self.flip if self.flip != "none" and rng.random() < 0.5 else "none"
        return self.apply(record, pixels, ResizeAndFlip(pixels.shape[:2], new_shape, flip))

    def apply(self, record: dict, pixels: np.ndarray, change: ResizeAndFlip) -> dict:
        """Return the training item for a change that was drawn already; see :meth:`__call__`."""
        objects = [
            annotation for annotation in record["annotations"] if annotation.get("iscrowd", 0) == 0
        ]
        boxes = np.array([annotation["bbox"] for annotation in objects], dtype=np.float64).reshape(
            -1, 4
        )
        boxes = torch.from_numpy(change.apply_boxes(boxes)).float()
        keep = ((boxes[:, 2:] - boxes[:, :2]) > _MIN_BOX_SIDE).all(dim=1)
        item = {
            "image": to_tensor(change.apply_image(pixels)),
            "height": record["height"],
            "width": record["width"],
            "image_id": record["image_id"],
            "file_name": record["file_name"],
        }
        if self.with_masks:
            masks, keep = self._masks(objects, change, keep, record)
            item["gt_masks"] = masks
        item["gt_boxes"] = boxes[keep]
        item["gt_classes"] = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)[
            keep
        ]
        if self.with_keypoints:
            item["gt_keypoints"] = self._keypoints(objects, change, record)[keep]
        return item

    def _masks(self, objects: list[dict], change: ResizeAndFlip, keep: torch.Tensor, record: dict):
        """Return the kept objects' masks and the updated ``keep``: a mask may vanish though its box
        does not.
        """
        for annotation in objects:
            if "segmentation" not in annotation:
                raise InputError(
                    f"An object of {record['file_name']} has no segmentation; MODEL.MASK_ON True"
                    " needs one for each object."
                )
        if self.mask_format == "polygon":
            if any(isinstance(annotation["segmentation"], dict) for annotation in objects):
                raise InputError(
                    f"An object of {record['file_name']} has an RLE mask; set INPUT.MASK_FORMAT"
                    " bitmask."
                )
            polygons = [_map_polygons(annotation["segmentation"], change) for annotation in objects]
            return [
                polygon for polygon, kept in zip(polygons, keep.tolist(), strict=True) if kept
            ], keep
        bitmaps = [_bitmask(annotation["segmentation"], change, record) for annotation in objects]
        masks = (
            torch.from_numpy(np.stack(bitmaps))
            if bitmaps
            else torch.zeros((0, *change.new_shape), dtype=torch.bool)
        )
        keep = keep & masks.flatten(1).any(dim=1)
        return masks[keep], keep

    def _keypoints(self, objects: list[dict], change: ResizeAndFlip, record: dict) -> torch.Tensor:
        mapped = []
        for annotation in objects:
            if "keypoints" not in annotation:
                raise InputError(
                    f"An object of {record['file_name']} has no keypoints; MODEL.KEYPOINT_ON True"
                    " needs them for each object."
                )
            points = np.asarray(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
            if change.flip == "horizontal" and len(points) != len(self.keypoint_mirror):
                raise InputError(
                    f"{record['file_name']}: {len(points)} key points, but the data set names"
                    f" {len(self.keypoint_mirror)}."
                )
            mapped.append(change.apply_keypoints(points, self.keypoint_mirror))
        return (
            torch.from_numpy(np.stack(mapped)).float()
            if mapped
            else torch.zeros((0, len(self.keypoint_mirror), 3))
        )


def _map_polygons(polygons: list, change: ResizeAndFlip) -> list[np.ndarray]:
    return [
        change.apply_points(np.asarray(polygon, dtype=np.float64).reshape(-1, 2)).reshape(-1)
        for polygon in polygons
    ]


def _bitmask(segmentation, change: ResizeAndFlip, record: dict) -> np.ndarray:
    """Return a bool mask (H, W); polygons are drawn after resizing, an RLE is resized by nearest
    neighbour.
    """
    from pycocotools import mask as mask_api

    if isinstance(segmentation, dict):
        bitmap = mask_api.decode(segmentation)
        if bitmap.shape[:2] != change.old_shape:
            raise InputError(
                f"{record['file_name']}: an RLE mask has size {bitmap.shape[:2]}, expected"
                f" {change.old_shape}; correct the annotation."
            )
        return change.apply_image(bitmap, nearest=True).astype(bool)
    rles = mask_api.frPyObjects(
        [p.tolist() for p in _map_polygons(segmentation, change)], *change.new_shape
    )
    return mask_api.decode(mask_api.merge(rles)).astype(bool)


class TestMapper:
    """Turns a record into an inference item: resized, neither mirrored nor annotated.

    Args:
        min_size: Length of the shorter edge, px; 0 leaves the image at its size, whatever
            ``max_size`` is.
        max_size: Upper limit of the longer edge, px.
        image_format: ``RGB`` or ``BGR``.

    Raises:
        InputError: If a size is negative.
    """

    __test__ = False  # the name starts with Test, which pytest would collect

    def __init__(self, min_size: int, max_size: int, image_format: str = "RGB") -> None:
        if min_size < 0 or (min_size and max_size <= 0):
            raise InputError(
                f"INPUT.MIN_SIZE_TEST is {min_size} and MAX_SIZE_TEST {max_size}; expected lengths"
                " in px, for MIN_SIZE_TEST also 0, which does not resize."
            )
        self.min_size, self.max_size, self.image_format = min_size, max_size, image_format

    def __call__(self, record: dict) -> dict:
        """Return ``image`` float32 (3, H, W) 0-255, ``height`` and ``width`` of the image as
        read, ``image_id``, ``file_name``.

        Raises:
            InputError: If the image cannot be read or has another size than its annotation says.
        """
        pixels = read_and_check(record, self.image_format)
        new_shape = resized_shape(
            *pixels.shape[:2], shorter_edge=self.min_size, max_size=self.max_size
        )
        image = to_tensor(ResizeAndFlip(pixels.shape[:2], new_shape).apply_image(pixels))
        keys = ("height", "width", "image_id", "file_name")
        return {"image": image, **{key: record[key] for key in keys}}
