"""Pre-training on grey images and on bands (DATA.CHANNELS): pixels, statistics, colours, and the
whole road of checkpoint, resume, kNN, linear, convert.

Seen red under: the pages of a TIFF left as the first axis; bands decoded as RGB.
"""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import tifffile
import torch
from generated_images import write_pool
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.convert.convert import convert_checkpoint
from moco_transfer.data.images.bands import decode_channels
from moco_transfer.data.views.view_batch import ViewMaker
from moco_transfer.data.views.view_colours import CODES, ROW, finish_views
from moco_transfer.runtime.errors import InputError

BANDS = 5
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (40, 50, BANDS), dtype=np.uint8)


def npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack", **options)
    return file.getvalue()


FILES = {
    "npy": npy(PIXELS),
    "npy of 16 bits": npy(PIXELS.astype(np.uint16) * 257),
    "npy in Fortran's order": npy(np.asfortranarray(PIXELS)),
    "samples": tiff(PIXELS, planarconfig="contig"),
    "planes": tiff(PIXELS.transpose(2, 0, 1), planarconfig="separate"),
    "pages": tiff(PIXELS.transpose(2, 0, 1)),
    "compressed": tiff(PIXELS, planarconfig="contig", compression="zlib"),
    "16 bits": tiff(PIXELS.astype(np.uint16) * 257, planarconfig="contig"),
}


@pytest.mark.parametrize("form", FILES)
def test_decode__bands_of_every_form(form):
    assert np.array_equal(decode_channels(FILES[form], BANDS), PIXELS)
    with pytest.raises(ValueError, match=r"40, 50, 5\).*\(H, W, 4\)"):
        decode_channels(FILES[form], 4)


def test_decode__four_bands_of_a_png_and_a_wrong_type():
    file = io.BytesIO()
    Image.fromarray(PIXELS[:, :, :4]).save(file, "PNG")
    assert np.array_equal(decode_channels(file.getvalue(), 4), PIXELS[:, :, :4])
    with pytest.raises(ValueError, match="float32"):
        decode_channels(npy(PIXELS.astype(np.float32)), BANDS)
    with pytest.raises(ValueError, match="damaged TIFF|expected"):
        decode_channels(FILES["compressed"][:-800], BANDS)


def test_grey__is_pils_grey_in_both_pipelines():
    file = io.BytesIO()
    Image.fromarray(PIXELS[:, :, :3]).save(file, "PNG")
    grey = np.asarray(Image.open(file).convert("L"))
    for pipeline in ("fast", "reference"):
        maker = ViewMaker("v2", 8, (0.2, 1.0), 2, pipeline, channels=1)
        seen = np.asarray(maker.decode(file.getvalue()))
        assert all(np.array_equal(seen[:, :, c], grey) for c in range(3)), pipeline


def rows(*steps: tuple[str, float], sigma: float = 0.0) -> torch.Tensor:
    numbers = [v for name, factor in steps for v in (CODES[name], factor)]
    return torch.tensor([numbers + [0.0] * (ROW - 1 - len(numbers)) + [sigma]])


def test_colours__of_bands_are_brightness_and_contrast_alone():
    views = torch.from_numpy(PIXELS[:40, :40].transpose(2, 0, 1).copy())[None]
    mean, std = tuple(range(10, 10 + BANDS)), tuple(range(20, 20 + BANDS))
    plain = views[0].double()

    def expected(x):
        return ((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).float()

    bright = (plain * 1.2).clamp(0, 255)
    bright = (bright * 0.7 + 0.3 * bright.mean()).clamp(0, 255)
    steps = [("hue", 0.1), ("brightness", 1.2), ("saturation", 0.5), ("contrast", 0.7)]
    for colours, result in ((rows(*steps, ("grey", 1.0)), bright), (rows(("hue", 0.3)), plain)):
        seen = finish_views(views, colours, mean, std)
        assert torch.allclose(seen[0], expected(result), atol=1e-4)


def test_colours__of_grey_are_those_of_its_rgb_copy():
    grey = torch.from_numpy(PIXELS[:40, :40, 0].copy()).expand(1, 3, -1, -1).contiguous()
    colours = rows(("brightness", 1.3), ("hue", 0.1), ("saturation", 1.4), sigma=1.0)
    seen = finish_views(grey, colours, (90.0,), (50.0,))
    whole = finish_views(grey, colours, (90.0,) * 3, (50.0,) * 3)
    assert seen.shape == (1, 1, 40, 40) and torch.allclose(seen, whole[:, :1])
    assert torch.allclose(whole[:, 0], whole[:, 2], atol=1e-4)


def _write_classes(root, channels: int) -> None:
    """Two classes of 8 images: bright and dark."""
    draw = np.random.default_rng(1)
    for name, level in (("bright", 150), ("dark", 60)):
        (root / name).mkdir(parents=True)
        for number in range(8):
            pixels = draw.normal(level, 20, (24, 28, channels)).clip(0, 255).astype(np.uint8)
            if channels == 1:
                Image.fromarray(pixels[:, :, 0]).save(root / name / f"{number}.png")
            else:
                np.save(root / name / f"{number}.npy", pixels)


def test_shards__of_bands_train_as_their_folder(tmp_path):
    _write_classes(tmp_path / "images", BANDS)
    files = sorted((tmp_path / "images").rglob("*.npy"))
    (tmp_path / "flat").mkdir()
    with tarfile.open(tmp_path / "bands.tar", "w") as tar:
        for number, file in enumerate(files):
            tar.add(file, f"{number:04d}.npy")
            file.rename(tmp_path / "flat" / f"{number:04d}.npy")
    losses = {}
    for root in (tmp_path / "flat", tmp_path / "bands.tar"):
        out = tmp_path / f"out_{root.name}"
        words = [*SMALL.split(), "DATA.ROOT", str(root), "OUTPUT_DIR", str(out)]
        words += ["DATA.CHANNELS", str(BANDS), "DATA.PIXEL_MEAN", "()", "DATA.PIXEL_STD", "()"]
        assert main(["pretrain", "--config-file", "moco_v2_R_18_96px", *words]) == 0
        lines = (out / "metrics.json").read_text().splitlines()
        losses[root.name] = [json.loads(line).get("loss") for line in lines]
    assert len(losses["flat"]) >= 3 and losses["flat"] == losses["bands.tar"]


SMALL = "MODEL.ARCH resnet18 DATA.IMAGE_SIZE 16 DATA.BATCH_SIZE_TOTAL 4 DATA.NUM_WORKERS 0"
SMALL += " MOCO.QUEUE_SIZE 16 MOCO.BN_GROUP_SIZE 2 MOCO.DIM 16 SOLVER.EPOCHS 2 TRAIN.LOG_PERIOD 1"
SMALL += " TRAIN.DEVICE cpu TRAIN.PRECISION fp32 DATA.AUGMENTATION v2 SOLVER.MAX_ITER 3"


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, BANDS])
def test_the_whole_road__pretrain_resume_knn_linear_convert(tmp_path, channels, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    _write_classes(images, channels)
    words = [*SMALL.split(), "DATA.ROOT", str(images), "OUTPUT_DIR", str(out)]
    words += ["DATA.CHANNELS", str(channels), "DATA.PIXEL_MEAN", "()", "DATA.PIXEL_STD", "()"]
    words += ["KNN.TEST", str(images), "SOLVER.BASE_LR", "0.0001"]
    config = ["pretrain", "--config-file", "moco_v2_R_18_96px"]
    assert main([*config, *words]) == 0
    assert main([*config, "--resume", *words, "SOLVER.MAX_ITER", "4"]) == 0
    last = out / "checkpoint_0001.pth"
    state = torch.load(last, weights_only=True)
    assert state["state_dict"]["encoder_q.conv1.weight"].shape == (64, channels, 7, 7)
    pixels = state["pixels"]
    assert pixels["format"] == {1: "L", BANDS: "bands"}[channels]
    assert len(pixels["mean"]) == len(pixels["std"]) == channels
    assert all(
        100 < m < 110 and 45 < s < 55 for m, s in zip(pixels["mean"], pixels["std"], strict=True)
    )

    data = ["--train", str(images), "--test", str(images)]
    assert main(["knn", str(last), *data, "--k", "3", "--device", "cpu"]) == 0
    assert "kNN top-1 100.00" in capsys.readouterr().out
    linear = [
        "--output",
        str(tmp_path / "linear"),
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert main(["linear", str(last), *data, *linear]) == 0

    report = convert_checkpoint(last, tmp_path / "t.pth", to="torchvision", verify=True)
    kept = torch.load(tmp_path / "t.pth", weights_only=True)["conv1.weight"]
    if channels == 1:  # a detector reads grey images as RGB copies, with equal features
        assert kept.shape[1] == 3 and report.stamp["pixel_mean"] == 3 * pixels["mean"]
        assert max(report.differences.values()) < 1e-5
        convert_checkpoint(last, tmp_path / "d.pkl")
        return
    assert torch.equal(kept, state["state_dict"]["encoder_q.conv1.weight"])
    assert report.stamp["pixel_mean"] == pixels["mean"] and report.stamp["input_channels"] == BANDS
    with pytest.raises(InputError, match="5 bands.*detectors"):
        convert_checkpoint(last, tmp_path / "d.pkl")
    again = [*words, "OUTPUT_DIR", str(tmp_path / "again"), "SOLVER.MAX_ITER", "1"]
    assert main([*config, "--init-from", str(tmp_path / "t.pth"), *again]) == 0


def test_refusals__name_key_and_file(tmp_path, capsys):
    write_pool(tmp_path / "images", count=8, size=24, seed=0)
    words = [*SMALL.split(), "DATA.ROOT", str(tmp_path / "images"), "OUTPUT_DIR"]
    words += [str(tmp_path / "out")]
    config = ["pretrain", "--config-file", "moco_v2_R_18_96px", "--dry-run"]
    measured = ["DATA.PIXEL_MEAN", "()", "DATA.PIXEL_STD", "()"]
    for more, named in (
        (["DATA.CHANNELS", "1"], "DATA.PIXEL_MEAN must have DATA.CHANNELS 1"),
        (["DATA.CHANNELS", "5", *measured], "expected (H, W, 5)"),
        (["DATA.CHANNELS", "5", "DATA.PIPELINE", "reference", *measured], "DATA.PIPELINE"),
        (["DATA.CHANNELS", "0", *measured], "DATA.CHANNELS must be 1 to 64"),
        (["DATA.PIXEL_MEAN", "()"], "DATA.PIXEL_STD must have as many"),
    ):
        assert main([*config, *words, *more]) != 0
        assert named in capsys.readouterr().err, more
