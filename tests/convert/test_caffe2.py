"""Files of Caffe2: MSRA's R-50.pkl as Detectron2 publishes it, with statistics, and Detectron 1's
detectors, with fused norms.

The names are held against Detectron2's own reader in test_convert_detectron2.py.

Seen red under: fused norms left without statistics; the bias of a convolution dropped whatever its
    values.
"""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from moco_transfer.convert import convert_checkpoint, load_backbone
from moco_transfer.convert.coverage import check_source
from moco_transfer.convert.formats import read_source
from moco_transfer.convert.key_maps import WRITE_NAME, detectron2_name
from moco_transfer.convert.read import Content, named_tensors
from moco_transfer.convert.write import as_array
from moco_transfer.models import backbone_shapes, recognise
from moco_transfer.runtime.errors import InputError


def caffe2_blobs(state, *, fused):
    blobs = {}
    for name, tensor in state.items():
        if (
            name.startswith("fc.")
            or name.endswith("num_batches_tracked")
            or (fused and "running" in name)
        ):
            continue
        blob = WRITE_NAME["caffe2"](name)
        blobs[blob.replace("_gamma", "_s").replace("_beta", "_b") if fused else blob] = (
            tensor.numpy()
        )
    return blobs | {
        "conv1_b": np.ones(64, np.float32),
        "fc1000_w": np.ones((3, 2), np.float32),
        "fc1000_b": np.ones(3, np.float32),
    }


def caffe2_file(path, state, *, fused, extra=()):
    blobs = caffe2_blobs(state, fused=fused) | dict(extra)
    path.write_bytes(pickle.dumps(blobs, protocol=2))
    return path


def test_convert__caffe2_with_statistics(tmp_path, r18):
    report = convert_checkpoint(
        caffe2_file(tmp_path / "R-18.pkl", r18, fused=False), tmp_path / "c.pkl"
    )
    assert report.source_format == "caffe2" and sorted(report.dropped) == [
        "conv1_b",
        "fc1000_b",
        "fc1000_w",
    ]
    arrays = load_backbone(tmp_path / "c.pkl").arrays
    wanted = {detectron2_name(name): r18[name] for name in backbone_shapes("resnet18")}
    assert arrays.keys() == wanted.keys() and all(
        np.array_equal(arrays[name], tensor.numpy()) for name, tensor in wanted.items()
    )
    assert (report.stamp["format"], report.stamp["pixel_std"], report.stamp["stride_in_1x1"]) == (
        "BGR",
        [1.0, 1.0, 1.0],
        False,
    )
    assert report.stamp["pixel_mean"] == [103.53, 116.28, 123.675]


def test_convert__caffe2_with_fused_norms(tmp_path, r18):
    convert_checkpoint(caffe2_file(tmp_path / "R-18.pkl", r18, fused=True), tmp_path / "c.pkl")
    arrays = load_backbone(tmp_path / "c.pkl").arrays
    scale, shift = (r18[f"layer1.0.bn1.{part}"].numpy() for part in ("weight", "bias"))
    mean, var = (arrays[f"res2.0.conv1.norm.{part}"] for part in ("running_mean", "running_var"))
    x = np.float32(3.0)  # a norm with these statistics is scale * x + shift
    assert np.allclose(
        (x - mean) / np.sqrt(var + 1e-5) * scale + shift, scale * x + shift, rtol=1e-6
    )


def test_convert__caffe2_strides_have_no_place_in_torchvision(saved, tmp_path):
    shapes = backbone_shapes("resnet50").items()
    source = saved({WRITE_NAME["caffe2"](n): torch.ones(()).expand(shape) for n, shape in shapes})
    for to in ("torchvision", "timm"):
        with pytest.raises(InputError, match="STRIDE_IN_1X1 True"):
            convert_checkpoint(source, tmp_path / "t", to=to)


def test_read_source__caffe2_bias_of_a_convolution_is_dropped_only_when_zero(small):
    def source_of(bias):
        top = caffe2_blobs(small, fused=False) | {"res2_0_branch2a_b": bias}
        path = Path("R-18.pkl")
        return read_source(Content(path, "pickle", named_tensors(top, path), top))

    zero = source_of(np.zeros(64, np.float32))
    check_source(zero, "resnet18", "R-18.pkl")
    assert "all zeros" in zero.dropped["res2_0_branch2a_b"]
    with pytest.raises(InputError, match=r"Unused \(1\): res2_0_branch2a_b"):
        check_source(source_of(np.ones(64, np.float32)), "resnet18", "R-18.pkl")


DEFECTS = {
    "missing": (lambda blobs: blobs.pop("res3_1_branch2a_w"), "Missing (1): res3_1_branch2a_w"),
    "misshapen": (
        lambda blobs: blobs.update(res3_1_branch2a_w=np.zeros(5, np.float32)),
        "Misshapen (1): res3_1_branch2a_w is (5,)",
    ),
    "extra": (
        lambda blobs: blobs.update(res3_1_branch2d_w=np.zeros(5, np.float32)),
        "Unused (1): res3_1_branch2d_w",
    ),
    "wrong_prefix": (
        lambda blobs: [blobs.update({f"gpu_0/{name}": blobs.pop(name)}) for name in list(blobs)],
        "First keys: gpu_0/",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("outer", ["", "model", "blobs"])
def test_check_source__refuses_caffe2_defects(small, defect, outer):
    blobs = caffe2_blobs(small, fused=False)
    change, words = DEFECTS[defect]
    change(blobs)
    top, path = ({outer: blobs} if outer else blobs), Path("R-18.pkl")
    with pytest.raises(InputError) as caught:
        source = read_source(Content(path, "pickle", named_tensors(top, path), top))
        check_source(source, recognise(source.state), path)
    kind, _, name = words.rpartition(": ")
    assert f"{kind}: {outer}{'.' if outer else ''}{name}" in str(caught.value), caught.value


def test_convert__caffe2_in_half_precision(tmp_path, r18):
    blobs = {
        name: array.astype(np.float16) for name, array in caffe2_blobs(r18, fused=False).items()
    }
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(blobs, protocol=2))
    convert_checkpoint(path, tmp_path / "c.pkl")
    array = load_backbone(tmp_path / "c.pkl").arrays["res3.1.conv1.weight"]
    assert np.array_equal(array, blobs["res3_1_branch2a_w"]) and array.dtype == np.float16


def test_read_source__caffe2_in_double_precision(r18):
    top = {n: array.astype(np.float64) for n, array in caffe2_blobs(r18, fused=False).items()}
    path = Path("R-18.pkl")
    source = read_source(Content(path, "pickle", named_tensors(top, path), top))
    check_source(source, "resnet18", path)
    array = as_array(source.state["layer2.1.conv1.weight"])
    assert np.array_equal(array, top["res3_1_branch2a_w"]) and array.dtype == np.float64


def test_convert__caffe2_momentum_of_the_optimizer_is_dropped(tmp_path, small):
    extra = {"res2_0_branch2a_w_momentum": np.zeros(3, np.float32)}  # Detectron 1's checkpoints
    report = convert_checkpoint(
        caffe2_file(tmp_path / "d.pkl", small, fused=False, extra=extra),
        tmp_path / "c.pkl",
        verify=False,
    )
    assert report.dropped["res2_0_branch2a_w_momentum"] == "momentum of Caffe2's optimizer"
