"""Each project's checkpoint, with the keys that its own code saved, gives the same arrays; a gap in
any is named and refused.

The key lists are in ``key_lists/``; key_lists.py says how they were made. A test's file has the
real keys, and one number in each tensor of the backbone, so that it is small.

Seen red under: q and k swapped in lightly's older benchmarks; an EMA taken for q; the wrapper
    ``module.`` kept; the norm of
Res5ROIHeadsExtraNorm taken for a block of res5; ``key_backbone`` not known; VISSL's ``loss`` not
known as a container; getattr, which mmengine's HistoryBuffer names, not among the stand-ins.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import key_lists
import pytest
import torch
from networks import one_number_each, resnet_shapes

from moco_transfer.convert.coverage import check_source
from moco_transfer.convert.formats import read_source
from moco_transfer.convert.read import Content, named_tensors, read_checkpoint
from moco_transfer.models import recognise
from moco_transfer.runtime.errors import InputError

FORMATS = {
    "barlow_twins": "backbone",
    "byol_pytorch": "byol",
    "byol_sthalles": "byol",
    "densecl": "densecl",
    "densecl_extracted": "densecl",
    "detectron2": "detectron2",
    "dino": "dino",
    "imagenet_example": "torchvision",
    "lightly": "lightly",
    "mmselfsup": "openselfsup",
    "moco_transfer": "moco_transfer",
    "moco_v1": "moco",
    "moco_v2": "moco",
    "moco_v3": "moco_v3",
    "openselfsup": "openselfsup",
    "simsiam": "simsiam",
    "solo_learn": "solo_learn",
    "swav": "swav",
    "timm": "timm",
    "torchvision": "torchvision",
    "vissl": "vissl",
}
"""How the name of a list begins -> the format that its files are recognised as; the longest
beginning counts.
"""

LISTS = key_lists.names()


def format_of(name):
    return FORMATS[max((start for start in FORMATS if name.startswith(start)), key=len)]


def test_key_lists__cover_every_format_named_in_the_issue():
    assert {format_of(name) for name in LISTS} == set(FORMATS.values())
    assert len(LISTS) >= 40


@pytest.fixture(scope="session")
def networks():
    """Architecture -> role -> state dict with one number in each tensor."""
    made = {}
    for arch in ("resnet18", "resnet50"):
        shapes = resnet_shapes(arch)
        made[arch] = {role: one_number_each(shapes, salt=role) for role in "qk"}
    return made


@pytest.fixture
def project(networks):
    """Return a function: name of a list -> (its checkpoint, role -> backbone that it holds)."""

    def make(name):
        folded = [
            line.split(" = ")[1].split(" ")
            for line in key_lists.lines(name)
            if line.split(" = ")[0].endswith("*")
        ]
        roles = networks[folded[0][2]]
        backbone = {
            role: {key: t for key, t in roles[role].items() if not key.startswith("fc.")}
            for role, *_ in folded
        }
        return key_lists.build(name, roles), backbone

    return make


def content_of(checkpoint):
    """Return what reading the file of a checkpoint gives, without the file: each list is read from
    one in the first test.
    """
    return Content(
        Path("file.pth"), "torch", named_tensors(checkpoint, Path("file.pth")), checkpoint
    )


def is_one_number(tensor):
    return all(stride == 0 for stride in tensor.stride())


def one(tensor):
    """Return the number that an expanded tensor consists of; comparing it takes no time, and
    millions of copies of it do.
    """
    return tensor[(0,) * tensor.dim()]


def assert_holds(source, wanted):
    """Check that a source has the tensors wanted, name by name, type by type, shape by shape and
    bit by bit.
    """
    assert source.state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        got = source.state[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
        assert (
            torch.equal(one(got), one(tensor))
            if is_one_number(got) and is_one_number(tensor)
            else torch.equal(got, tensor)
        ), name


@pytest.mark.parametrize("name", LISTS)
def test_read_source__each_project(saved, project, name):
    checkpoint, backbones = project(name)
    content = read_checkpoint(saved(checkpoint))
    source = read_source(content)
    assert source.format == format_of(name)
    assert_holds(source, backbones["q"])
    check_source(source, recognise(source.state), "file")
    assert len(source.state) + len(source.dropped) == len(content.tensors) and not source.unknown
    if "k" in backbones:
        source = read_source(content, encoder="k")
        assert (source.format, source.encoder) == (format_of(name), "k")
        assert_holds(source, backbones["k"])
    else:
        with pytest.raises(InputError, match="has no encoder 'k'.*pass --encoder q"):
            read_source(content, encoder="k")


def test_read_source__heads_in_a_list_are_dropped_and_counted(project):
    checkpoint, _ = project("vissl_moco")
    assert (
        "classy_state_dict.base_model.model.heads.0.clf.0.weight"
        in read_source(content_of(checkpoint)).dropped
    )


def dicts_of(content, is_wanted):
    """Return (dict, key) for every tensor in a checkpoint whose key is wanted."""
    found = []
    for value in content.values() if isinstance(content, dict) else content:
        if isinstance(value, (dict, list)):
            found += dicts_of(value, is_wanted)
    if isinstance(content, dict):
        found += [
            (content, key)
            for key, value in content.items()
            if isinstance(value, torch.Tensor) and is_wanted(key)
        ]
    return found


def is_victim(key):
    """Whether a key names the first convolution of the second block of layer2, in any naming."""
    return re.search(r"(^|\.)(layer2|res3|5)\.1\.conv1\.weight$", str(key)) is not None


def rewritten(content, change):
    """Return a checkpoint whose every dict of more than one tensor went through ``change``."""
    if isinstance(content, list):
        return [rewritten(item, change) for item in content]
    if not isinstance(content, dict):
        return content
    content = {key: rewritten(value, change) for key, value in content.items()}
    return (
        change(content)
        if sum(isinstance(value, torch.Tensor) for value in content.values()) > 1
        else content
    )


def in_ddp(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def without_counters(state):
    return {
        name: tensor
        for name, tensor in state.items()
        if not str(name).endswith("num_batches_tracked")
    }


def cast(state, dtype):
    is_float = {
        name: isinstance(value, torch.Tensor) and value.is_floating_point()
        for name, value in state.items()
    }
    return {
        name: one(value).to(dtype).expand(value.shape) if is_float[name] else value
        for name, value in state.items()
    }


def in_fp16(state):
    return cast(state, torch.float16)


def in_bf16(state):
    return cast(state, torch.bfloat16)


# Every one of them keeps BN's num_batches_tracked but the one that takes it out.
@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name in LISTS for variant in (in_ddp, without_counters)]
    + [(n, variant) for n in LISTS if n.startswith("moco") for variant in (in_fp16, in_bf16)],
)
def test_read_source__each_project_in_variants(project, name, variant):
    checkpoint, backbones = project(name)
    content = content_of(rewritten(checkpoint, variant))
    for encoder, backbone in backbones.items():
        source = read_source(content, encoder=encoder)
        assert source.format == format_of(name)
        assert_holds(source, backbone if variant is in_ddp else variant(backbone))


@pytest.mark.parametrize(
    "name", [name for name in LISTS if "module." in "".join(key_lists.lines(name))]
)
def test_read_source__each_project_that_saves_its_ddp_wrapper_also_without_it(project, name):
    checkpoint, backbones = project(name)
    unwrapped = rewritten(
        checkpoint,
        lambda state: {str(key).replace("module.", "", 1): tensor for key, tensor in state.items()},
    )
    source = read_source(content_of(unwrapped))
    assert source.format == format_of(name)
    assert_holds(source, backbones["q"])


@pytest.mark.parametrize(
    "name",
    [name for name in LISTS if name not in ("timm_training", "torchvision_reference", "vissl_ema")],
)
def test_read_source__each_project_with_a_moving_average_beside_it(project, networks, name):
    """An EMA copy of the weights is never taken for the encoder that was trained, and is dropped
    with its reason.
    """
    checkpoint, backbones = project(name)
    state, key = dicts_of(checkpoint, is_victim)[0]
    average = {
        key: tensor + 1 if isinstance(tensor, torch.Tensor) else tensor
        for key, tensor in state.items()
    }
    checkpoint = copy.copy(checkpoint) | {"model_ema": average}
    content = content_of(checkpoint)
    source = read_source(content)
    assert_holds(source, backbones["q"])
    assert f"model_ema.{key}" in source.dropped
    assert len(source.state) + len(source.dropped) == len(content.tensors)


DEFECTS = {
    "missing": (lambda state, name: state.pop(name), "Missing (1): "),
    "misshapen": (lambda state, name: state.update({name: torch.zeros(5)}), "Misshapen (1): "),
    "extra": (
        lambda state, name: state.update({name.replace("conv1", "conv7"): torch.zeros(5)}),
        "Unused (1): ",
    ),
    "wrong_prefix": (
        lambda state, _name: [
            state.update({f"strange.{key}": state.pop(key)}) for key in list(state)
        ],
        "First keys: ",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("name", LISTS)
def test_check_source__refuses_each_projects_defects(project, name, defect):
    """The defect is in every encoder of the file: some keep one and the same under two names, and
    both could be read.
    """
    checkpoint, _ = project(name)
    change, words = DEFECTS[defect]
    for state, key in dicts_of(checkpoint, is_victim):
        if key in state:  # not yet renamed with another encoder in the same dict
            change(state, key)
    with pytest.raises(InputError) as caught:
        source = read_source(content_of(checkpoint))
        check_source(source, recognise(source.state), "file.pth")
    assert words in str(caught.value) and "\n" not in str(caught.value), caught.value
    if defect != "wrong_prefix":
        assert key.replace("conv1", "conv7" if defect == "extra" else "conv1")[-10:] in str(
            caught.value
        )


@pytest.mark.parametrize("name", ["openselfsup_moco", "densecl", "byol_pytorch"])
def test_read_source__asks_when_two_copies_differ(project, name):
    checkpoint, _ = project(name)
    state, key = dicts_of(checkpoint, is_victim)[0]
    state[key] = torch.ones(state[key].shape)
    if name == "byol_pytorch":  # its first copy is the bare network, which is no layout's
        assert read_source(content_of(checkpoint)).prefix == "online_encoder.net."
        return
    with pytest.raises(InputError, match="can be read as .* and as .* as --from"):
        source = read_source(content_of(checkpoint))
        check_source(source, recognise(source.state), "file.pth")
