"""Views: torchvision's operators on torchvision's distributions, as functions of (seed, epoch,
index).

Went red under: jitter before grey in v1; drawing both views' parameters once; height and width
    swapped in the crop; a thread's images in
another thread's places; one decoding buffer for all threads.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from moco_transfer.data.images.folder import find_images
from moco_transfer.data.views.augmentation import (
    RECIPES,
    ViewParameters,
    apply_reference,
    draw_parameters,
)
from moco_transfer.data.views.view_batch import ViewMaker, Views
from moco_transfer.data.views.view_colours import normalize
from moco_transfer.runtime.errors import InputError, MissingFileError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        (root / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)).save(
            root / f"class{i % 2}" / f"{i}.png"
        )
    return root


def views_of(root, **kwargs):
    seed = kwargs.pop("seed", 0)
    settings = {"recipe": "v2", "size": 16, "crop_scale": (0.2, 1.0)} | kwargs
    return Views(find_images(root), ViewMaker(**settings), seed=seed)


def test_find_images__classes_flat_and_errors(images, tmp_path):
    folder = find_images(images)
    assert folder.class_names == ("class0", "class1") and folder.labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    assert list(folder.names) == [
        "class0/0.png",
        "class0/2.png",
        "class0/4.png",
        "class1/1.png",
        "class1/3.png",
        "class1/5.png",
    ]
    assert find_images(images, layout="flat").class_names == ()
    assert (
        find_images(images / "class0").class_names == ()
        and len(find_images(images / "class0")) == 3
    )
    with pytest.raises(MissingFileError, match="does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="3 images lie outside class folders"):
        find_images(images / "class0", layout="folders")


def test_views__depend_on_seed_epoch_and_index_alone(images):
    a, b = views_of(images), views_of(images)
    b[[(0, 5), (3, 1)]]
    assert torch.equal(a[[(1, 2)]]["views"], b[[(1, 2)]]["views"])
    first = a[[(1, 2)]]["views"]
    assert first.shape == (2, 1, 3, 16, 16) and first.dtype == torch.uint8
    assert not torch.equal(first[0], first[1])
    for other in (a[[(2, 2)]], a[[(1, 3)]], views_of(images, seed=1)[[(1, 2)]]):
        assert not torch.equal(first, other["views"])


def test_views__unreadable_image_is_replaced_and_reported(images, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((images / "class0" / f"{2 * i}.png").read_bytes())
    (tmp_path / "1.png").write_bytes(b"not an image")
    batch = views_of(tmp_path)[[(0, i) for i in range(3)]]
    assert batch["views"].shape == (2, 3, 3, 16, 16)
    assert set(batch["unreadable"]) == {str(tmp_path / "1.png")} and batch["given_up"] == 0


@pytest.mark.parametrize("pipeline", ["fast", "reference"])
def test_views__same_batch_for_any_number_of_threads(tmp_path, pipeline):
    rng = np.random.default_rng(0)
    for i in range(12):
        if i % 3:  # large enough that one is decoded while another is
            blocks = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            blocks.resize((640, 480), Image.Resampling.BICUBIC).save(
                tmp_path / f"{i:02}.jpg", quality=95
            )
        else:
            (tmp_path / f"{i:02}.jpg").write_bytes(b"not an image")
    places, threads, batches = (
        [(0, i) for i in (1, 0, 2, 3, 4, 6, *range(12), 9)],
        torch.get_num_threads(),
        [],
    )
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            batches.append(views_of(tmp_path, pipeline=pipeline)[places])
    finally:
        torch.set_num_threads(threads)
    first = batches[0]
    assert [first["unreadable"][i] for i in (0, -1)] == [
        str(tmp_path / name) for name in ("00.jpg", "09.jpg")
    ]
    for other in batches[1:]:
        assert other["unreadable"] == first["unreadable"]
        for name in ("views", "label", "index", *(["colours"] if pipeline == "fast" else [])):
            assert torch.equal(other[name], first[name])


def test_apply_reference__equals_the_published_chain_on_the_same_numbers():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    parameters = ViewParameters(
        crop=(5, 10, 40, 50),
        flip=True,
        grey=True,
        jitter=(("hue", 0.3), ("brightness", 0.7)),
        blur_sigma=0.0,
    )
    f = transforms.functional
    crop = f.resize(f.crop(image, 5, 10, 40, 50), [24, 24])
    grey_then_jitter = f.hflip(
        f.adjust_brightness(f.adjust_hue(f.rgb_to_grayscale(crop, 3), 0.3), 0.7)
    )
    jitter_then_grey = f.hflip(
        f.rgb_to_grayscale(f.adjust_brightness(f.adjust_hue(crop, 0.3), 0.7), 3)
    )
    assert np.array_equal(
        apply_reference(image, parameters, size=24, grey_first=True), np.asarray(grey_then_jitter)
    )
    assert np.array_equal(
        apply_reference(image, parameters, size=24, grey_first=False), np.asarray(jitter_then_grey)
    )


def test_draw_parameters__distributed_as_torchvisions():
    """Compares means and spreads over 4,000 draws with torchvision's own samplers (tolerance: five
    standard errors).
    """
    draws, rng = 4000, np.random.default_rng(0)
    ours = [
        draw_parameters(rng, height=300, width=400, recipe=RECIPES["v2"], crop_scale=(0.2, 1.0))
        for _ in range(draws)
    ]
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    theirs = [
        transforms.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
        for _ in range(draws)
    ]
    for i in range(4):
        a, b = np.array([p.crop[i] for p in ours], float), np.array([t[i] for t in theirs], float)
        assert abs(a.mean() - b.mean()) < 5 * np.hypot(a.std(), b.std()) / np.sqrt(draws)
        assert a.std() == pytest.approx(b.std(), rel=0.08)
    for share, expected in (
        (lambda p: p.flip, 0.5),
        (lambda p: p.grey, 0.2),
        (lambda p: bool(p.jitter), 0.8),
        (lambda p: p.blur_sigma > 0, 0.5),
    ):
        got = np.mean([share(p) for p in ours])
        assert abs(got - expected) < 5 * np.sqrt(expected * (1 - expected) / draws)
    jittered = [dict(p.jitter) for p in ours if p.jitter]
    for name, (low, high) in {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.6, 1.4),
        "hue": (-0.1, 0.1),
    }.items():
        values = np.array([j[name] for j in jittered])
        assert low <= values.min() and values.max() <= high
        assert values.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.05)  # uniform
    firsts = [p.jitter[0][0] for p in ours if p.jitter]
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert firsts.count(name) / len(firsts) == pytest.approx(
            0.25, abs=0.04
        )  # the order is random


def test_normalize__known_numbers():
    out = normalize(
        torch.full((1, 3, 1, 1), 255, dtype=torch.uint8),
        (123.675, 116.28, 103.53),
        (58.395, 57.12, 57.375),
    )
    # (1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225
    assert out.flatten().tolist() == pytest.approx([2.24891, 2.42857, 2.64], abs=1e-4)
