"""DATA.DECODE device beside the worker's decoding, on the CPU, where the same code runs; on a GPU
nvJPEG's pixels are its own.

Went red under: the flip left out; the crop taken of the second view twice; an image of the batch
    decoded in another's place; damage inside a
file left as zeros; the end marker not looked for; colours not those of the replacement; RGB JPEGs
shipped.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from moco_transfer.config import load_pretrain_config
from moco_transfer.data.batches.samplers import EpochBatches
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.views.device_decode import DeviceDecoder, EncodedViews, read_header
from moco_transfer.data.views.loading import Loader, as_it_is, plan_batches
from moco_transfer.data.views.two_views import Views
from moco_transfer.data.views.view_batch import ViewMaker
from moco_transfer.pretrain.build_data import decoding_device, open_images, with_packed_pixels
from moco_transfer.runtime.errors import InputError

CPU = torch.device("cpu")


def encoded(seed, mode="RGB", form="JPEG", **settings):
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((110 + seed, 90), Image.BICUBIC).convert(mode).save(buffer, form, **settings)
    return buffer.getvalue()


def damaged_inside():
    """A JPEG with a header and an end whose scan is missing: what a look at the markers cannot
    tell.
    """
    data = encoded(6)
    return data[: data.index(b"\xff\xda")] + b"\xff\xd9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    files = [
        encoded(0),
        encoded(1, progressive=True),
        encoded(2, "L"),
        encoded(3, form="PNG"),
        encoded(4, "CMYK"),
        encoded(5, subsampling=2),
    ]
    files += [damaged_inside(), encoded(7)[:-600], b"", encoded(9, keep_rgb=True)]
    for i, data in enumerate(files):
        (root / f"{i}.jpg").write_bytes(data)
    return root


def both(root, recipe="v2", **kwargs):
    settings = {
        "recipe": recipe,
        "size": 48,
        "crop_scale": (0.2, 1.0),
        "seed": 0,
        "pipeline": "fast",
    } | kwargs
    source = find_images(root)
    return Views(source, **settings), EncodedViews(source, **settings)


def assert_same_batch(ours, theirs):
    """Equal in all but the views, which are within a level."""
    for name in ("colours", "label", "index"):
        assert torch.equal(ours[name], theirs[name]), name
    assert (
        set(ours["unreadable"]) == set(theirs["unreadable"])
        and ours["given_up"] == theirs["given_up"] == 0
    )
    assert (
        ours["views"].shape == theirs["views"].shape
        and ours["views"].stride() == theirs["views"].stride()
    )
    assert (ours["views"].cpu().int() - theirs["views"].int()).abs().max() <= 1


def test_device_decoder__gives_the_workers_views(folder):
    worker, shipped = both(folder)
    places = [(epoch, index) for epoch in range(3) for index in (*range(10), 0)]
    batch = shipped.__getitems__(places)
    kinds = batch["sizes"][:10, 2].tolist()
    assert (
        kinds[:6] == [1, 1, 1, 0, 0, 1] and kinds[9] == 0
    )  # PNG, CMYK and an RGB JPEG are decoded by the worker
    theirs = worker.__getitems__(places)
    assert any(path.endswith("6.jpg") for path in theirs["unreadable"]) and any(
        path.endswith("7.jpg") for path in theirs["unreadable"]
    )
    assert_same_batch(DeviceDecoder(worker, CPU)(batch), theirs)


def test_loader__decodes_what_its_workers_ship(folder):
    source, make_views = find_images(folder), ViewMaker("v1", 16, (0.2, 1.0), 2, "fast")
    settings = {
        "batch_size_total": 5,
        "epochs": 2,
        "seed": 3,
        "num_workers": 1,
        "shuffle_buffer": 1,
        "start_iteration": 0,
    }
    loaders = [
        Loader(
            source,
            plan_batches(source, **settings),
            make_views,
            num_workers=1,
            pin_memory=False,
            decode_on=where,
        )
        for where in (CPU, None)
    ]
    for ours, theirs in zip(*loaders, strict=True):
        assert_same_batch(ours, theirs)


def test_shipped__is_in_shared_memory_and_one_view_will_do(folder):
    worker, shipped = both(folder, recipe="supervised", num_views=1)
    order = EpochBatches(10, batch_size_total=4, epochs=1, seed=0)
    batch = next(iter(DataLoader(shipped, batch_sampler=order, num_workers=1, collate_fn=as_it_is)))
    assert batch["encoded"].is_shared()
    assert_same_batch(DeviceDecoder(worker, CPU)(batch), worker.__getitems__(list(order)[0]))


def test_device_decoder__gives_up_where_the_worker_does(tmp_path):
    for data in (damaged_inside(), b"nothing"):
        (tmp_path / "0.jpg").write_bytes(data)
        worker, shipped = both(tmp_path)
        assert DeviceDecoder(worker, CPU)(shipped.__getitems__([(0, 0)]))["given_up"] == 1


def test_read_header__size_or_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        encoded(1),
        encoded(1, "L"),
        encoded(1, progressive=True),
        encoded(1, exif=exif),
        encoded(1) + bytes(10),
    ):
        assert read_header(data)[1:] == (90, 111)
    for data in (
        encoded(1)[:-2],
        encoded(1, "CMYK"),
        encoded(1, keep_rgb=True),
        encoded(1, form="PNG"),
        b"",
        b"\xff\xd8\xff\xd9",
        b"\xff" * 90,
    ):
        assert read_header(data) is None
    rgb = encoded(1, keep_rgb=True)
    adobe = rgb.index(b"\xff\xee")
    assert (
        read_header(rgb[:adobe] + rgb[adobe + 16 :]) is None
    )  # without the marker the components' ids say it
    data, place = bytearray(encoded(1)), encoded(1).index(b"\xff\xc0")
    data[place + 1] = 0xC9  # arithmetic coding
    assert read_header(bytes(data)) is None


def test_config__device_needs_the_fast_pipeline_and_cuda(folder):
    words = ["DATA.ROOT", str(folder), "DATA.DECODE", "device"]
    with pytest.raises(
        InputError, match="DATA.DECODE device needs DATA.PIPELINE fast, got 'reference'"
    ):
        load_pretrain_config("moco_v2_R_50_200ep", [*words, "DATA.PIPELINE", "reference"])
    with pytest.raises(
        InputError, match="DATA.DECODE must be one of 'worker', 'device', got 'gpu'"
    ):
        load_pretrain_config("moco_v2_R_50_200ep", ["DATA.DECODE", "gpu"])
    cfg = load_pretrain_config("moco_v2_R_50_200ep", words)
    with pytest.raises(InputError, match="this run is on cpu"):
        decoding_device(cfg, open_images(cfg), CPU)
    assert "nvJPEG" in with_packed_pixels(cfg, open_images(cfg)).DATA.DECODED_PIXELS
    assert (
        with_packed_pixels(
            load_pretrain_config("moco_v2_R_50_200ep", words[:2]), open_images(cfg)
        ).DATA.DECODED_PIXELS
        == ""
    )


@pytest.mark.gpu
def test_device_decoder__on_a_gpu(folder):
    """nvJPEG's pixels are its own: on smooth images a few levels away on the average; everything
    that is drawn is the worker's.
    """
    worker, shipped = both(folder)
    places = [(0, index) for index in range(10)]
    ours, theirs = (
        DeviceDecoder(worker, torch.device("cuda"))(shipped.__getitems__(places)),
        worker.__getitems__(places),
    )
    assert (
        ours["views"].is_cuda
        and torch.equal(ours["colours"], theirs["colours"])
        and torch.equal(ours["index"], theirs["index"])
    )
    assert (ours["views"].cpu().int() - theirs["views"].int()).abs().float().mean(
        (2, 3, 4)
    ).max() < 4
