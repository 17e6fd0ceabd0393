"""What a config with MODEL.KEYPOINT_ON asks of its data sets, and what prevents a run on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.keypoints import labelled_keypoints
from .lint import TEXTS

_COCO_COUNT = 17  # whose OKS sigmas are the default


@dataclass(frozen=True)
class KeypointRequest:
    """What a config asks of the keypoints of its data.

    Attributes:
        count: NUM_KEYPOINTS; None takes it from the data.
        least: MIN_KEYPOINTS_PER_IMAGE: training images with fewer labelled ones are left out.
        oks_sigmas: TEST.KEYPOINT_OKS_SIGMAS, one for each keypoint; none takes COCO's.
    """

    count: int | None
    least: int
    oks_sigmas: tuple[float, ...] = ()


def keypoint_faults(
    request: KeypointRequest,
    train_sets: Sequence[DetectionDataset],
    test_sets: Sequence[DetectionDataset],
) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong; ``test_sets`` are those that are scored."""
    both = list(dict.fromkeys([*train_sets, *test_sets]))
    for dataset in both:
        objects = (a for record in dataset.records for a in record["annotations"])
        if not dataset.keypoint_names and any(a.get("keypoints") for a in objects):
            yield TEXTS["keypoint_names"].format(name=dataset.name)
    named = [dataset for dataset in both if dataset.keypoint_names]
    for dataset in named:
        names, first = dataset.keypoint_names, named[0]
        facts = {"name": dataset.name, "found": len(names), "names": ", ".join(names)}
        if names != first.keypoint_names:
            theirs = ", ".join(first.keypoint_names)
            yield TEXTS["other_keypoints"].format(**facts, other=first.name, theirs=theirs)
        elif request.count not in (None, len(names)):
            yield TEXTS["keypoint_count"].format(**facts, count=request.count)
        elif dataset in test_sets:
            yield from _sigma_faults(request.oks_sigmas, facts)
    least = max(request.least, 1)
    for role, sets, needed in (("TRAIN", train_sets, least), ("TEST", test_sets, 1)):
        records = [record for dataset in sets if dataset in named for record in dataset.records]
        if records and not any(labelled_keypoints(record) >= needed for record in records):
            of_role = {"role": role, "names": ", ".join(dataset.name for dataset in sets)}
            yield TEXTS["few_keypoints"].format(**of_role, needed=needed)


def _sigma_faults(sigmas: tuple[float, ...], facts: dict) -> Iterator[str]:
    found, are_positive = facts["found"], all(s > 0 for s in sigmas)
    if len(sigmas or range(_COCO_COUNT)) != found or not are_positive:
        given = f"has {len(sigmas)} numbers" if sigmas else "is empty, which stands for COCO's 17"
        if not are_positive:
            given = f"is {list(sigmas)}, which are not all above 0"
        example = f'"{[0.05] * found}"'
        yield TEXTS["oks_sigmas"].format(**facts, given=given, example=example)
