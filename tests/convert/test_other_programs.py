"""Checkpoints with objects of other programs: read, or named with the line that makes them so.

The classes are made here and forgotten again, so that the file names what is not installed.

Seen red under: a stand-in that keeps no items; every refusal called damage; the module's key left
out of the line that is printed.
"""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from moco_transfer.convert import convert_checkpoint, inspect
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.runtime.errors import InputError


@pytest.fixture
def strange(monkeypatch):
    """Make an importable class ``module.name`` with these bases, for the time of a test."""

    def make(full_name: str, *bases: type) -> type:
        module, _, name = full_name.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        made = type(name, bases, {"__module__": module, "__qualname__": name})
        setattr(sys.modules[module], name, made)
        return made

    return make


def config(made: type):
    """Return a dict subclass with items, a nested one, and attributes, as yacs' CfgNode has."""
    node = made(LR=0.03, MODEL=made(ARCH="resnet18"))
    node.__dict__["__immutable__"] = True
    return node


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "full_name",
    [
        "yacs.config.CfgNode",
        "lightning.fabric.utilities.data.AttributeDict",
        "our.own.cfg.Settings",
        "__main__.Config",
    ],
)
def test_read__dict_subclasses_of_programs_that_are_not_here(tmp_path, strange, full_name, legacy):
    node = config(strange(full_name, dict))
    weights = torch.arange(3.0)
    content = {"cfg": node, "hyper_parameters": node, "state_dict": {"w": weights}, "epoch": 3}
    path = tmp_path / "other.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    sys.modules.pop(full_name.partition(".")[0] if full_name[0] != "_" else "", None)
    read = read_checkpoint(path)
    assert torch.equal(read.tensors["state_dict.w"], weights) and read.top["epoch"] == 3
    assert read.top["cfg"]["MODEL"]["ARCH"] == "resnet18"


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_read__tensors_inside_a_dict_subclass_and_plain_builtins(tmp_path, strange, writer):
    state = strange("somewhere.utils.StateDict", dict)(w=torch.ones(2).numpy())
    extra = defaultdict(list, {"loss": [1.0]})
    path = tmp_path / "other.pth"
    if writer == "torch":
        state["w"] = torch.ones(2)
        values = [frozenset("a"), slice(1, 2), range(3), int, strange("fast.L", list)([1])]
        torch.save({"model": state, "log": extra, "more": [*values, extra]}, path)
    else:
        path.write_bytes(pickle.dumps({"model": state, "more": extra}))
    assert read_checkpoint(path).tensors["model.w"].tolist() == [1, 1]


def test_convert__a_lightning_checkpoint_with_attribute_dict(tmp_path, strange, official):
    made = strange("pytorch_lightning.utilities.parsing.AttributeDict", dict)
    torch.save(official | {"hyper_parameters": made(lr=0.1)}, tmp_path / "old.ckpt")
    report = convert_checkpoint(tmp_path / "old.ckpt", tmp_path / "new.pkl", verify=False)
    assert report.arch == "resnet18" and len(report.expected) == 100


@pytest.mark.parametrize("place", ["", "['model']"])
def test_refuses__a_whole_model_with_the_line_that_helps(tmp_path, place):
    model = torchvision.models.resnet18(weights=None)
    path = tmp_path / "whole.pth"
    torch.save({"model": model, "epoch": 1} if place else model, path)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert "torchvision.models.resnet.ResNet" in sentence and "damaged" not in sentence
    run_line(sentence, tmp_path)
    assert len(read_checkpoint(tmp_path / "state_dict.pth").tensors) == 122


def test_refuses__a_model_that_an_old_torch_saved(tmp_path):
    path = tmp_path / "old.pth"
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save(model, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert "truncated" not in str(caught.value)
    run_line(str(caught.value), tmp_path)
    assert set(read_checkpoint(tmp_path / "state_dict.pth").tensors) == {"0.weight", "0.bias"}


def test_refuses__another_pickle_protocol(tmp_path):
    path = tmp_path / "four.pth"
    torch.save({"w": torch.ones(1)}, path, pickle_protocol=4)
    with pytest.raises(InputError, match="protocol") as caught:
        read_checkpoint(path)
    run_line(str(caught.value), tmp_path)
    assert list(read_checkpoint(tmp_path / "state_dict.pth").tensors) == ["w"]


def test_refuses__torchscript(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2))).save(path)
    with pytest.raises(InputError, match="TorchScript") as caught:
        read_checkpoint(path)
    run_line(str(caught.value), tmp_path)
    assert set(read_checkpoint(tmp_path / "state_dict.pth").tensors) == {"0.weight", "0.bias"}


def run_line(sentence: str, folder) -> None:
    """Run the line of Python that a message offers, writing into the folder."""
    line = sentence[sentence.index("torch.save(") :].rstrip(".")
    exec(line.replace("'state_dict.pth'", repr(str(folder / "state_dict.pth"))), {"torch": torch})


@pytest.mark.parametrize("full_name", ["somewhere.run", "numpy.load", "subprocess.Popen"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_refuses__a_call_of_a_function(tmp_path, full_name, writer):
    module, name = full_name.split(".")
    pickled = f"\x80\x02}}X\x01\x00\x00\x00ac{module}\n{name}\n)Rs.".encode("latin1")
    path = tmp_path / "evil.pth"
    if writer == "pickle":
        path.write_bytes(pickled)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("evil/data.pkl", pickled)
            archive.writestr("evil/version", "3\n")
    with pytest.raises(InputError, match=f"asks for '{full_name}'"):
        read_checkpoint(path)


def test_read__ordered_dict_with_metadata_keeps_it(tmp_path):
    state = OrderedDict(w=torch.ones(1))
    state._metadata = {"moco_transfer": {"schema": 1}}
    torch.save(state, tmp_path / "m.pth")
    assert read_checkpoint(tmp_path / "m.pth").top._metadata["moco_transfer"] == {"schema": 1}


def hub_file(folder, state, architecture, **more):
    """Write a file as timm's hub has it, with config.json next to it."""
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    config = {"architecture": architecture, "num_classes": 1000} | more
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18.a1_in1k", "gluon_resnet18_v1b", "tv_resnet18"]
)
def test_convert__a_plain_resnet_by_its_config(tmp_path, r18, name):
    # As timm 1.0.31 writes it for each network.
    asked = {"model_args": {"in_chans": 3, "num_classes": 1000, "global_pool": "avg"}}
    file = hub_file(tmp_path / "hub", r18, name, **asked)
    report = convert_checkpoint(file, tmp_path / "new.pkl")
    assert report.arch == "resnet18"
    assert "not what another program computes" in report.table()


@pytest.mark.parametrize("name", ["resnetaa18", "resnetblur18", "my_net"])
def test_refuses__what_config_json_says_is_another_network(tmp_path, r18, name):
    file = hub_file(tmp_path / "hub", r18, name)
    with pytest.raises(InputError, match=rf"config.json .*'{name}'.*--arch resnet18"):
        convert_checkpoint(file, tmp_path / "new.pkl")
    assert not (tmp_path / "new.pkl").exists() and "config.json" in inspect(file).table()
    assert convert_checkpoint(file, tmp_path / "new.pkl", arch="resnet18").arch == "resnet18"


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_refuses__a_plain_name_with_other_arguments(tmp_path, r18, name):
    file = hub_file(tmp_path / "hub", r18, name, model_args={"aa_layer": "avg"})
    with pytest.raises(InputError, match="aa_layer"):
        convert_checkpoint(file, tmp_path / "new.pkl")


def test_refuses__an_anti_aliased_network_that_the_checkpoint_names(tmp_path, r18):
    torch.save({"arch": "resnetaa18", "state_dict": r18}, tmp_path / "timm.pth")
    with pytest.raises(InputError, match="'resnetaa18'"):
        convert_checkpoint(tmp_path / "timm.pth", tmp_path / "new.pkl")
    torch.save({"arch": "anything", "state_dict": r18}, tmp_path / "other.pth")
    assert convert_checkpoint(tmp_path / "other.pth", tmp_path / "new.pkl").arch == "resnet18"
