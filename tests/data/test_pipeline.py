"""Fast pipeline against the reference: same random numbers, same images within the tolerances
of view_batch.py and view_colours.py.

Went red under: crop's top and left swapped; the flip left out; a filter without antialiasing; views
    of a batch in each other's places;
CMYK left to simplejpeg; EXIF's orientation applied; the colours of the first view given to both; a
worker left to die of SIGTERM; v1's hue 0.1; the fallback crop not centred.
"""

from __future__ import annotations

import io
import multiprocessing
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from moco_transfer.data.images import decode as decode_module
from moco_transfer.data.images.decode import BUFFER_BYTES, UNREADABLE, decode_pixels, read_rgb
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.views.augmentation import RECIPES, ViewParameters, draw_parameters
from moco_transfer.data.views.loading import Loader, plan_batches
from moco_transfer.data.views.order import EpochBatches
from moco_transfer.data.views.view_batch import ViewMaker, Views, resized_crop
from moco_transfer.data.views.view_colours import finish_views
from moco_transfer.runtime.seed import derive_seed


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((110 + i, 90), Image.BICUBIC).save(
            root / f"{i}.{'jpg' if i % 2 else 'png'}", quality=95
        )
    return root


def views_of(root, **kwargs):
    settings = {"recipe": "v2", "size": 48, "crop_scale": (0.2, 1.0)} | kwargs
    return Views(find_images(root), ViewMaker(**settings), seed=0)


@pytest.mark.parametrize(
    "crop",
    [(0, 0, 61, 83), (3, 5, 7, 9), (10, 20, 40, 12), (0, 0, 1, 1), (60, 82, 1, 1), (2, 0, 59, 83)],
)
@pytest.mark.parametrize("size", [1, 8, 32, 33])
def test_resized_crop__is_pils_within_a_level(back_end, crop, size):
    pixels = np.random.default_rng(2).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    top, left, height, width = crop
    for flip in (False, True):
        out = np.zeros((size, size, 3), np.uint8)
        resized_crop(pixels, ViewParameters(crop, flip, False, (), 0.0), out)
        theirs = F.resized_crop(
            Image.fromarray(pixels),
            top,
            left,
            height,
            width,
            [size, size],
            F.InterpolationMode.BILINEAR,
        )
        theirs = np.asarray(F.hflip(theirs) if flip else theirs)
        assert np.abs(out.astype(int) - theirs).max() <= 1


def test_resized_crop__white_stays_white():
    out = np.zeros((20, 20, 3), np.uint8)
    for height in (5, 20, 47, 150, 400):
        resized_crop(
            np.full((height, 90, 3), 255, np.uint8),
            ViewParameters((0, 0, height, 90), False, False, (), 0.0),
            out,
        )
        assert (out == 255).all(), height


@pytest.mark.parametrize("recipe", ["v1", "v2", "cifar", "supervised"])
def test_pipelines__same_views_from_the_same_place(back_end, images, recipe):
    """Finished to floats; a mean level apart by what the reference's own rounding explains."""
    fast, reference = (
        views_of(images, recipe=recipe, pipeline=pipeline) for pipeline in ("fast", "reference")
    )
    nothing = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    places = [(epoch, index) for epoch in range(4) for index in range(6)]
    ours, theirs = fast[places], reference[places]
    assert torch.equal(ours["index"], theirs["index"]) and "colours" not in theirs
    for v in range(2):
        difference = (
            finish_views(ours["views"][v], ours["colours"][v], *nothing)
            - finish_views(theirs["views"][v], None, *nothing)
        ).abs()
        assert difference.mean((1, 2, 3)).max() < 3
        if recipe == "supervised":
            assert difference.max() <= 1


def test_fast__a_function_of_seed_epoch_and_index_with_any_workers(images):
    views = views_of(images, pipeline="fast")
    order = EpochBatches(6, batch_size_total=3, epochs=3, seed=0)
    for num_workers in (0, 2):
        loader = DataLoader(views, batch_size=None, sampler=order, num_workers=num_workers)
        for batch, places in zip(loader, order, strict=True):
            assert batch["views"].shape == (2, 3, 3, 48, 48) and batch["views"].dtype == torch.uint8
            for n, place in enumerate(places):
                item = views[[place]]
                assert torch.equal(item["views"][:, 0], batch["views"][:, n]) and torch.equal(
                    item["colours"][:, 0], batch["colours"][:, n]
                )
                assert int(item["index"]) == int(batch["index"][n]) == place[1]


def test_loader__a_worker_told_to_stop_does_not_interrupt_the_training_process(images):
    """SIGTERM to a whole job: the training process still gets images until it has saved."""
    source = find_images(images)
    settings = {"batch_size_total": 2, "epochs": 50, "seed": 0, "num_workers": 2}
    order = plan_batches(source, **settings, shuffle_buffer=1, start_iteration=0)
    make = ViewMaker("v2", 16, (0.2, 1.0), 2, "fast")
    loader = Loader(source, order, make, num_workers=2, pin_memory=False)
    others = multiprocessing.active_children()
    batches = iter(loader)
    for _ in range(2):  # each worker has started once it has given a batch
        next(batches)
    workers = [one for one in multiprocessing.active_children() if one not in others]
    assert len(workers) == 2
    # From another process, as a scheduler does.
    subprocess.run(["kill", "-TERM", *[str(worker.pid) for worker in workers]], check=True)
    for _ in range(20):  # more than the workers had prepared
        assert next(batches)["given_up"] == 0
    assert all(worker.is_alive() for worker in workers)


def test_fast__unreadable_images_are_replaced_as_in_the_reference(images, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes((images / f"{2 * (i % 3)}.png").read_bytes())
    (tmp_path / "1.png").write_bytes(b"\xff\xd8not an image")
    fast, reference = (
        views_of(tmp_path, pipeline=pipeline)[[(0, i) for i in range(4)]]
        for pipeline in ("fast", "reference")
    )
    assert fast["unreadable"] == reference["unreadable"] and set(fast["unreadable"]) == {
        str(tmp_path / "1.png")
    }
    assert torch.equal(fast["index"], reference["index"]) and int(fast["index"][1]) != 1
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"")
    assert views_of(tmp_path, pipeline="fast")[[(0, 0)]]["given_up"] == 1


def _encoded(mode, form, **settings):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)).convert(
        mode
    ).save(buffer, form, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "buffer",
    [None, np.empty(BUFFER_BYTES, np.uint8), np.empty(100, np.uint8)],
    ids=["none", "large", "too small"],
)
def test_decode_pixels__gives_pils_pixels(buffer):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [_encoded(mode, "JPEG", quality=90) for mode in ("RGB", "L", "CMYK")] + [
        _encoded("RGB", "PNG"),
        _encoded("L", "PNG"),
    ]
    files += [_encoded("RGB", "JPEG", subsampling=s) for s in (0, 1, 2)] + [
        _encoded("RGB", "JPEG", progressive=True)
    ]
    files += [
        _encoded("RGB", "JPEG", exif=exif),
        _encoded("RGB", "JPEG", keep_rgb=True),
        _encoded("RGB", "JPEG", comment=b"x" * 60_000),
    ]
    for data in files:
        assert np.array_equal(decode_pixels(data, buffer), np.asarray(read_rgb(data)))


def test_decode_pixels__unreadable_exactly_where_pil_is():
    """Bytes changed and cut off at random in JPEG files: both read them, to the same size, or
    neither does.
    """
    rng = np.random.default_rng(0)
    whole = [
        _encoded("RGB", "JPEG"),
        _encoded("L", "JPEG"),
        _encoded("CMYK", "JPEG"),
        _encoded("RGB", "JPEG", progressive=True),
    ]
    read = 0
    for trial in range(300):
        data = bytearray(whole[trial % len(whole)])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        data = bytes(data[: int(rng.integers(2, len(data) + 1))] if trial % 2 else data)
        try:
            expected = read_rgb(io.BytesIO(data)).size
        except UNREADABLE:
            with pytest.raises(UNREADABLE):
                decode_pixels(data)
            continue
        height, width, _ = decode_pixels(data).shape
        assert (width, height) == expected
        read += 1
    assert read > 50


def test_decode_pixels__absurd_sizes_are_left_to_pil(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(Image.DecompressionBombError):
        decode_pixels(_encoded("RGB", "JPEG"))
    monkeypatch.setattr(decode_module, "simplejpeg", None)
    with pytest.raises(Image.DecompressionBombError):
        decode_pixels(_encoded("RGB", "JPEG"))


def test_draw_parameters__the_numbers_of_rng_uniform():
    """The draws are those of the first version, written with rng.uniform, on which saved runs and
    documented numbers rest.
    """
    ours, theirs = np.random.default_rng(4), np.random.default_rng(4)
    for _ in range(200):
        p = draw_parameters(
            ours, height=300, width=400, recipe=RECIPES["v2"], crop_scale=(0.2, 1.0)
        )
        for _ in range(10):
            area, ratio = (
                300 * 400 * theirs.uniform(0.2, 1.0),
                np.exp(theirs.uniform(np.log(3 / 4), np.log(4 / 3))),
            )
            width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if width <= 400 and height <= 300:
                break
        assert p.crop == (
            theirs.integers(0, 301 - height),
            theirs.integers(0, 401 - width),
            height,
            width,
        )
        if p.jitter:
            assert theirs.random() < 0.8
            factors = [theirs.uniform(0.6, 1.4) for _ in range(3)] + [theirs.uniform(-0.1, 0.1)]
            assert [f for _, f in p.jitter] == [factors[i] for i in theirs.permutation(4)]
        else:
            assert theirs.random() >= 0.8
        assert p.grey == (theirs.random() < 0.2)
        assert p.blur_sigma == (theirs.uniform(0.1, 2.0) if theirs.random() < 0.5 else 0.0)
        assert p.flip == (theirs.random() < 0.5)


@pytest.mark.parametrize(
    "name, jitter, jitter_p, grey_p, blur_p, grey_first",
    [
        ("v1", (0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, True),
        ("v2", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, False),
        ("cifar", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0, False),
        ("supervised", (0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, False),
    ],
)
def test_recipes__the_published_constants(name, jitter, jitter_p, grey_p, blur_p, grey_first):
    """Written out: every other test takes them from the table, and would follow a wrong one."""
    recipe = RECIPES[name]
    assert set(RECIPES) == {"v1", "v2", "cifar", "supervised"}
    assert (recipe.jitter, recipe.jitter_p, recipe.grey_p, recipe.blur_p, recipe.grey_first) == (
        jitter,
        jitter_p,
        grey_p,
        blur_p,
        grey_first,
    )


def test_draw_parameters__images_that_no_random_crop_fits():
    """Ten tries fail in very long images: then torchvision's centred crop, whose share and ratio
    are at their limits.
    """
    for height, width in ((1, 1000), (1000, 1), (1, 1), (3, 200), (2, 3)):
        rng = np.random.default_rng(0)
        ours = {
            draw_parameters(
                rng, height=height, width=width, recipe=RECIPES["supervised"], crop_scale=(0.2, 1.0)
            ).crop
            for _ in range(60)
        }
        torch.manual_seed(0)
        image = torch.zeros(3, height, width)
        theirs = {
            tuple(RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]))
            for _ in range(200)
        }
        assert ours <= theirs and (len(ours) == 1) == (len(theirs) == 1), (
            height,
            width,
            ours,
            theirs,
        )


def test_derive_seed__numbers_as_before():
    for place in (
        (0,),
        (0, "views", 3, 77),
        (5, "order", 2**31),
        (2**33, "x", 1),
        (1, "x", -0, 2**32),
    ):
        seed, *rest = place
        words = [
            seed,
            *[zlib.crc32(part.encode()) if isinstance(part, str) else part for part in rest],
        ]
        assert derive_seed(*place) == int(
            np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1)
        )
