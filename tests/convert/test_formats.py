"""Each project's checkpoint, with the keys that its own code saves (a ResNet-18 for its ResNet-50), gives the same arrays.

Sources of the key lists: facebookresearch/moco-v3 moco/builder.py, lightly-ai/lightly benchmarks/imagenet/resnet50/mocov2.py and
examples/pytorch/moco.py, vturrisi/solo-learn solo/methods/mocov2plus.py, facebookresearch/vissl convert_vissl_to_detectron2.py,
open-mmlab/mmselfsup algorithms/moco.py and byol.py, WXinlong/DenseCL models/densecl.py, facebookresearch/swav src/resnet50.py,
facebookresearch/simsiam simsiam/builder.py, lucidrains/byol-pytorch byol_pytorch.py, and Detectron2's log of MSRA/R-50.pkl.

Seen red under: q and k swapped in lightly's benchmark; EMA taken for q; a prefix's wrappers kept; fused norms left
without statistics.
"""

import argparse
import pickle
from pathlib import PosixPath

import numpy as np
import pytest
import torch

from moco_transfer.convert import convert_checkpoint, load_backbone
from moco_transfer.convert.architectures import backbone_shapes, recognise
from moco_transfer.convert.convert import check_source
from moco_transfer.convert.formats import read_source
from moco_transfer.convert.key_maps import caffe2_name, detectron2_name, sequential_name
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.convert.safetensors_file import write_safetensors
from moco_transfer.convert.stamp import make_stamp
from moco_transfer.runtime.errors import InputError


def under(prefix, state, name=str):
    """Return the backbone of a torchvision state dict under a prefix, renamed."""
    return {f"{prefix}{name(key)}": tensor for key, tensor in state.items() if not key.startswith("fc.")}


def linear(prefix, *indices):
    return {f"{prefix}{index}.{part}": torch.ones(2, 2) for index in indices for part in ("weight", "bias")}


def queue(prefix="", name="queue"):
    return {f"{prefix}{name}": torch.ones(2, 8), f"{prefix}{name}_ptr": torch.zeros(1, dtype=torch.long)}


CONFIG = """
INPUT: {FORMAT: BGR}
MODEL: {PIXEL_MEAN: [1.0, 2.0, 3.0], PIXEL_STD: [1.0, 1.0, 1.0], RESNETS: {STRIDE_IN_1X1: true}}
"""
LIGHTNING = {"pytorch-lightning_version": "2.1.0", "global_step": 100, "loops": {}, "lr_schedulers": [], "callbacks": {}}


def moco_v3(q, k):
    state = {
        **under("module.base_encoder.", q),
        **linear("module.base_encoder.fc.", 0, 3),
        **under("module.momentum_encoder.", k),
    }
    state |= {**linear("module.momentum_encoder.fc.", 0, 3), **linear("module.predictor.", 0, 3)}
    return {"epoch": 300, "arch": "resnet18", "state_dict": state, "optimizer": {}, "scaler": {"scale": 1.0}}


def lightly_example(q, k):
    state = {**under("backbone.", q, sequential_name), **linear("projection_head.layers.", 0, 2)}
    state |= {**under("backbone_momentum.", k, sequential_name), **linear("projection_head_momentum.layers.", 0, 2)}
    return {**LIGHTNING, "epoch": 9, "state_dict": state | queue("criterion.memory_bank.", "bank")}


def lightly_benchmark(q, k):
    state = {**under("backbone.", k), **linear("projection_head.layers.", 0, 2), **under("query_backbone.", q)}
    state |= {**linear("query_projection_head.layers.", 0, 2), **linear("online_classifier.", "classification_head")}
    return {**LIGHTNING, "epoch": 9, "state_dict": state, "hyper_parameters": {"batch_size_per_device": 32}}


def solo_learn(q, k):
    state = {**under("backbone.", q), **linear("", "classifier"), **under("momentum_backbone.", k), **linear("projector.", 0, 2)}
    return {**LIGHTNING, "state_dict": state | linear("momentum_projector.", 0, 2) | queue()}


def solo_learn_old(q, k):
    state = {**under("encoder.", q), **linear("", "classifier"), **under("momentum_encoder.", k), **linear("projector.", 0, 2)}
    return {**LIGHTNING, "state_dict": state, "hyper_parameters": argparse.Namespace(method="mocov2plus", dir=PosixPath("x"))}


def vissl(q, k):
    trunk = under("_feature_blocks.", q)
    model = {"model": {"trunk": trunk, "heads": linear("0.clf.", 0, 2)}, "meta": {"config": {}}}
    loss = {"moco_encoder": {"trunk": under("_feature_blocks.", k)}} | queue("moco_", "queue")
    return {"phase_idx": 1, "iteration": 5, "classy_state_dict": {"base_model": model, "loss": loss, "optimizer": {}}}


def vissl_extracted(q, _k):
    return {"model_state_dict": under("_feature_blocks.", q)}


def openselfsup(q, k):
    state = {**under("encoder_q.0.", q), **linear("encoder_q.1.mlp.", 0, 2), **under("backbone.", q), **under("encoder_k.0.", k)}
    return {"meta": {"epoch": 200, "iter": 9}, "state_dict": state | linear("encoder_k.1.mlp.", 0, 2) | queue()}


def mmselfsup_1(q, k):
    state = {**under("backbone.", q), **linear("neck.mlp.", 0, 2), **under("encoder_k.module.0.", k)}
    state |= {"encoder_k.steps": torch.tensor(7), **linear("encoder_k.module.1.mlp.", 0, 2), **queue()}
    return {"meta": {"epoch": 200}, "state_dict": state, "message_hub": {}}


def mmselfsup_byol(q, k):
    state = {**under("backbone.", q), **linear("neck.", 0, 3), **under("target_net.module.0.", k)}
    return {"meta": {}, "state_dict": state | linear("target_net.module.1.", 0, 3) | linear("head.predictor.", 0, 3)}


def openselfsup_extracted(q, _k):
    return {"state_dict": under("", q), "author": "OpenSelfSup"}


def densecl(q, k):
    state = {**under("encoder_q.0.", q), **linear("encoder_q.1.mlp.", 0, 2), **linear("encoder_q.1.mlp2.", 0, 2)}
    state |= {**under("encoder_k.0.", k), **linear("encoder_k.1.mlp.", 0, 2), **under("backbone.", q)}
    return {"meta": {}, "state_dict": state | queue() | queue("", "queue2")}


def swav(q, _k):
    return under("module.", q) | linear("module.projection_head.", 0, 3) | {"module.prototypes.weight": torch.ones(3, 2)}


def simsiam(q, _k):
    state = {**under("module.encoder.", q), **linear("module.encoder.fc.", 0, 1, 3, 6), **linear("module.predictor.", 0, 1, 3)}
    return {"epoch": 100, "arch": "resnet18", "state_dict": state, "optimizer": {}}


def byol_pytorch(q, k):
    state = {**under("net.", q), **under("online_encoder.net.", q), **linear("online_encoder.projector.", 0, 1, 3)}
    return state | under("target_encoder.net.", k) | linear("online_predictor.", 0, 1, 3)


def byol_sequential(q, k):
    online = {**under("encoder.", q, sequential_name), **linear("projetion.net.", 0, 1, 3)}  # spelt so there
    return {"online_network_state_dict": online, "target_network_state_dict": under("encoder.", k, sequential_name)}


def dino(q, k):
    student, teacher = under("module.backbone.", q), under("backbone.", k)
    return {"student": student | linear("module.head.mlp.", 0, 2), "teacher": teacher | linear("head.mlp.", 0, 2), "epoch": 3}


def torchvision(q, _k):
    return dict(q)


def torchvision_reference(q, k):
    average = {"n_averaged": torch.tensor(5)} | {f"module.{name}": tensor for name, tensor in k.items()}
    return {"model": dict(q), "model_ema": average, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}


def timm_training(q, k):
    return {"epoch": 3, "arch": "resnet18", "state_dict": dict(q), "state_dict_ema": dict(k), "metric": np.float64(71.5)}


def imagenet_example(q, _k):
    return {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": {f"module.{name}": t for name, t in q.items()},
        "best_acc1": torch.tensor(1.0),
    }


def moco_compiled(q, _k):
    return {"state_dict": under("module._orig_mod.encoder_q.", q) | linear("module._orig_mod.encoder_q.", "fc")}


def barlow_twins(q, _k):
    return {"epoch": 3, "model": under("module.backbone.", q) | linear("module.projector.", 0, 3), "optimizer": {}}


def plain_backbone(q, _k):
    return {"state_dict": under("backbone.", q)}


# checkpoint -> the format named in the report, and whether it has an encoder "k"
PROJECTS = [
    (moco_v3, "moco_v3", True),
    (lightly_example, "lightly", True),
    (lightly_benchmark, "lightly", True),
    (solo_learn, "solo_learn", True),
    (solo_learn_old, "solo_learn", True),
    (vissl, "vissl", True),
    (vissl_extracted, "vissl", False),
    (openselfsup, "openselfsup", True),
    (mmselfsup_1, "openselfsup", True),
    (mmselfsup_byol, "openselfsup", True),
    (openselfsup_extracted, "openselfsup", False),
    (densecl, "densecl", True),
    (swav, "swav", False),
    (simsiam, "simsiam", False),
    (byol_pytorch, "byol", True),
    (byol_sequential, "byol", True),
    (dino, "dino", True),
    (torchvision, "torchvision", False),
    (torchvision_reference, "torchvision", True),
    (timm_training, "timm", True),
    (imagenet_example, "torchvision", False),
    (moco_compiled, "moco", False),
    (barlow_twins, "solo_learn", False),
    (plain_backbone, "backbone", False),
]
IDS = [project.__name__ for project, _, _ in PROJECTS]


def assert_same(source, state):
    """Check that a source has the tensors of a torchvision state dict, name by name and bit by bit, less the classifier."""
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert source.state.keys() == wanted.keys()
    assert all(
        torch.equal(source.state[name], tensor) and source.state[name].dtype == tensor.dtype for name, tensor in wanted.items()
    )
    check_source(source, recognise(source.state), "file")


@pytest.mark.parametrize(("project", "name", "has_k"), PROJECTS, ids=IDS)
def test_read_source__each_project(saved, small, small_key, project, name, has_k):
    content = read_checkpoint(saved(project(small, small_key)))
    source = read_source(content)
    assert source.format == name
    assert_same(source, small)
    assert len(source.state) + len(source.dropped) == len(content.tensors) and not source.unknown
    if has_k:
        source = read_source(content, encoder="k")
        assert (source.format, source.encoder) == (name, "k")
        assert_same(source, small_key)
    else:
        with pytest.raises(InputError, match="has no encoder 'k'"):
            read_source(content, encoder="k")


def rewritten(content, change):
    """Return a checkpoint whose every state dict went through ``change``."""
    content = {key: rewritten(value, change) if isinstance(value, dict) else value for key, value in content.items()}
    return change(content) if sum(isinstance(value, torch.Tensor) for value in content.values()) > 1 else content


def in_ddp(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def in_bf16(state):
    is_float = {name: isinstance(value, torch.Tensor) and value.is_floating_point() for name, value in state.items()}
    return {name: value.bfloat16() if is_float[name] else value for name, value in state.items()}


@pytest.mark.parametrize("variant", [in_ddp, without_counters, in_bf16])
@pytest.mark.parametrize(("project", "name", "has_k"), PROJECTS, ids=IDS)
def test_read_source__each_project_in_variants(saved, small, small_key, project, name, has_k, variant):
    content = read_checkpoint(saved(rewritten(project(small, small_key), variant)))
    wanted = {"q": small, "k": small_key}
    if variant is not in_ddp:
        wanted = {encoder: variant(state) for encoder, state in wanted.items()}
    for encoder in "qk" if has_k else "q":
        source = read_source(content, encoder=encoder)
        assert source.format == name
        assert_same(source, wanted[encoder])


def find(content, *endings):
    """Return the innermost dict that has a key with one of the endings, and that key."""
    for key, value in content.items():
        if isinstance(value, dict) and (found := find(value, *endings)):
            return found
        if isinstance(value, torch.Tensor) and key.endswith(endings):
            return content, key
    return None


DEFECTS = {
    "missing": (lambda state, name: state.pop(name), "Missing (1): "),
    "misshapen": (lambda state, name: state.update({name: torch.zeros(5)}), "Misshapen (1): "),
    "extra": (lambda state, name: state.update({name.replace("conv1", "conv7"): torch.zeros(5)}), "Unused (1): "),
    "wrong_prefix": (
        lambda state, _name: [state.update({f"strange.{key}": state.pop(key)}) for key in list(state)],
        "First keys: ",
    ),
}
TWICE = (openselfsup, densecl, byol_pytorch)  # these hold the encoder under two names


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("project", [p for p, _, _ in PROJECTS if p not in TWICE], ids=lambda p: p.__name__)
def test_convert__refuses_each_projects_defects(saved, tmp_path, small, project, defect):
    content = project(small, {})
    state, name = find(content, "layer2.1.conv1.weight", "5.1.conv1.weight")
    change, words = DEFECTS[defect]
    change(state, name)
    with pytest.raises(InputError) as caught:
        convert_checkpoint(saved(content), tmp_path / "q.pkl")
    assert words in str(caught.value), caught.value
    assert defect == "wrong_prefix" or name.replace("conv1", "conv7" if defect == "extra" else "conv1") in str(caught.value)
    assert not (tmp_path / "q.pkl").exists()


@pytest.mark.parametrize("project", TWICE[:2], ids=lambda p: p.__name__)
def test_convert__asks_when_two_copies_differ(saved, tmp_path, small, project):
    content = project(small, {})
    state, name = find(content, "layer2.1.conv1.weight")
    state[name] = torch.ones(state[name].shape)
    with pytest.raises(InputError, match="can be read in two ways: .* pass --from "):
        convert_checkpoint(saved(content), tmp_path / "q.pkl")


def test_read_source__from_decides_between_two_readings(saved, small, small_key):
    content = read_checkpoint(saved({"state_dict": under("backbone.", small) | under("encoder.", small_key)}))
    with pytest.raises(
        InputError, match="can be read in two ways: as backbone .* and as encoder .* --from backbone or --from encoder"
    ):
        read_source(content)
    assert_same(read_source(content, source_format="backbone"), small)
    assert_same(read_source(content, source_format="encoder"), small_key)
    assert_same(read_source(content, source_format="state_dict.encoder."), small_key)
    with pytest.raises(InputError, match="is not in the layout 'moco': no ResNet under 'encoder_q.' or 'encoder_k.'"):
        read_source(content, source_format="moco")


def test_read_source__from_may_name_an_unknown_place(saved, small):
    content = read_checkpoint(saved({"weights": under("tower.visual.", small)}))
    with pytest.raises(
        InputError, match=r"under 'weights.tower.visual.', expected one of .* pass --from 'weights.tower.visual.'"
    ):
        read_source(content)
    assert_same(read_source(content, source_format="weights.tower.visual."), small)


def test_read_source__timm_safetensors(tmp_path, small):
    write_safetensors(tmp_path / "model.safetensors", small, {"format": "pt"})
    source = read_source(read_checkpoint(tmp_path / "model.safetensors"))
    assert (source.format, source.title, len(source.dropped)) == ("timm", "timm", 2)
    assert_same(source, small)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_convert__keeps_the_type_of_other_floats(saved, tmp_path, r18, dtype):
    """fp16 and fp64 stay; bf16, which numpy lacks, becomes fp32 in a .pkl and stays in the other files. All are exact."""
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in r18.items()}
    source = saved(state)
    report = convert_checkpoint(source, tmp_path / "h.pkl")
    array = load_backbone(tmp_path / "h.pkl").arrays["res2.0.conv1.weight"]
    assert array.dtype == (np.float32 if dtype == torch.bfloat16 else state["layer1.0.conv1.weight"].numpy().dtype)
    assert np.array_equal(array, state["layer1.0.conv1.weight"].double().numpy())
    assert report.verification is not None
    for to, name in (("torchvision", "h.pth"), ("timm", "h.safetensors")):
        convert_checkpoint(source, tmp_path / name, to=to)
        again = convert_checkpoint(tmp_path / name, tmp_path / "h2.pth", to="torchvision")
        back = torch.load(again.output, weights_only=True)
        assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in back)


def caffe2_file(path, state, *, fused, extra=()):
    blobs = {}
    for name, tensor in state.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked") or (fused and "running" in name):
            continue
        blob = caffe2_name(name)
        blobs[blob.replace("_gamma", "_s").replace("_beta", "_b") if fused else blob] = tensor.numpy()
    blobs |= {"conv1_b": np.ones(64, np.float32), "fc1000_w": np.ones((3, 2), np.float32), "fc1000_b": np.ones(3, np.float32)}
    path.write_bytes(pickle.dumps(blobs | dict(extra), protocol=2))
    return path


def test_convert__caffe2_with_statistics(tmp_path, r18):
    report = convert_checkpoint(caffe2_file(tmp_path / "R-18.pkl", r18, fused=False), tmp_path / "c.pkl")
    assert report.source_format == "caffe2" and sorted(report.dropped) == ["conv1_b", "fc1000_b", "fc1000_w"]
    arrays = load_backbone(tmp_path / "c.pkl").arrays
    wanted = {detectron2_name(name): r18[name] for name in backbone_shapes("resnet18")}
    assert arrays.keys() == wanted.keys() and all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in wanted.items())
    assert (report.stamp["format"], report.stamp["pixel_std"], report.stamp["stride_in_1x1"]) == ("BGR", [1.0, 1.0, 1.0], False)
    assert report.stamp["pixel_mean"] == [103.53, 116.28, 123.675]


def test_convert__caffe2_with_fused_norms(tmp_path, r18):
    convert_checkpoint(caffe2_file(tmp_path / "R-18.pkl", r18, fused=True), tmp_path / "c.pkl")
    arrays = load_backbone(tmp_path / "c.pkl").arrays
    scale, shift = (r18[f"layer1.0.bn1.{part}"].numpy() for part in ("weight", "bias"))
    mean, var = (arrays[f"res2.0.conv1.norm.{part}"] for part in ("running_mean", "running_var"))
    x = np.float32(3.0)  # a norm with these statistics is scale * x + shift
    assert np.allclose((x - mean) / np.sqrt(var + 1e-5) * scale + shift, scale * x + shift, rtol=1e-6)


def test_convert__caffe2_strides_have_no_place_in_torchvision(tmp_path):
    state = {name: torch.zeros(()).expand(shape) for name, shape in backbone_shapes("resnet50").items()}
    source = caffe2_file(tmp_path / "R-50.pkl", state, fused=False)
    for to in ("torchvision", "timm"):
        with pytest.raises(InputError, match="STRIDE_IN_1X1 True"):
            convert_checkpoint(source, tmp_path / "t", to=to)


def test_convert__caffe2_bias_of_a_convolution_is_refused_unless_zero(tmp_path, r18):
    zero = caffe2_file(tmp_path / "zero.pkl", r18, fused=False, extra={"res2_0_branch2a_b": np.zeros(64, np.float32)})
    assert "all zeros" in convert_checkpoint(zero, tmp_path / "c.pkl").dropped["res2_0_branch2a_b"]
    one = caffe2_file(tmp_path / "one.pkl", r18, fused=False, extra={"res2_0_branch2a_b": np.ones(64, np.float32)})
    with pytest.raises(InputError, match=r"Unused \(1\): res2_0_branch2a_b"):
        convert_checkpoint(one, tmp_path / "c.pkl")


def test_convert__backbone_of_a_detector_to_torchvision(saved, tmp_path, r18):
    """Round trip through Detectron2: what a fine-tuned detector's backbone holds comes back bit for bit."""
    model = under("backbone.bottom_up.", r18, detectron2_name)
    model |= {"backbone.fpn_lateral2.weight": torch.ones(2), "proposal_generator.rpn_head.conv.weight": torch.ones(2)}
    model |= {"roi_heads.box_head.fc1.weight": torch.ones(2), "pixel_mean": torch.ones(3), "anything.else": torch.ones(1)}
    report = convert_checkpoint(saved({"model": model, "iteration": 5}), tmp_path / "t.pth", to="torchvision")
    assert report.source_format == "detectron2"
    assert set(report.dropped.values()) == {
        "feature pyramid, not part of a backbone",
        "detector head",
        "pixel statistics of a detector",
        "outside of 'model.backbone.bottom_up.'",
    }
    back = torch.load(tmp_path / "t.pth", weights_only=True)
    assert all(torch.equal(back[name], r18[name]) for name in back) and len(back) == 120
    # Nothing in the file says what its pixels were.
    assert (report.stamp["format"], report.stamp["pixel_mean"], report.stamp["pixel_std"]) == (None, None, None)


@pytest.mark.parametrize(
    ("extra", "stride", "pixels"),
    [
        ({}, None, None),
        ({"__author__": "MOCO"}, False, "RGB"),
        ({"__author__": "Detectron2 Model Zoo"}, None, None),
        ({"format": "moco_transfer.finetune/1", "config": CONFIG}, True, "BGR"),
    ],
)
def test_make_stamp__of_a_detectron2_file_says_what_the_file_says(saved, extra, stride, pixels):
    """Where a bottleneck's strides and colours are not on record, the stamp does not make them up."""
    state = {detectron2_name(name): torch.zeros(()).expand(shape) for name, shape in backbone_shapes("resnet50").items()}
    content = read_checkpoint(saved({"model": state, **extra}))
    stamp = make_stamp(content, read_source(content), arch="resnet50", sha256="")
    assert (stamp["stride_in_1x1"], stamp["format"]) == (stride, pixels)
    assert stamp["pixel_mean"] == {None: None, "RGB": [123.675, 116.28, 103.53], "BGR": [1.0, 2.0, 3.0]}[pixels]


def test_make_stamp__refuses_a_detector_whose_config_is_broken(saved, small):
    state = under("backbone.bottom_up.", small, detectron2_name)
    content = read_checkpoint(saved({"model": state, "format": "moco_transfer.finetune/1", "config": "MODEL: [1"}))
    with pytest.raises(InputError, match="its 'config' does not state INPUT.FORMAT"):
        make_stamp(content, read_source(content), arch="resnet18", sha256="")
