"""``--to moco``: the layout that facebookresearch/moco's own tools read.

What those tools do with a file's names (main_lincls.py, detection/convert-pretrain-to-detectron2.py
at 7397dfe) is written here again, from their behaviour, so that this file knows none of the
package's names.

Seen red under: ``module.`` left out; the key encoder not carried; BN's counters not added;
    neighbours of a place named by hand carried; bits of what
is carried not compared; the stamp left out; --encoder k let through; the pixels of the stamp not
heeded by kNN.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision

from moco_transfer.cli.main import main
from moco_transfer.convert import convert_checkpoint
from moco_transfer.convert.convert import warn_of_official_assumptions
from moco_transfer.convert.formats import read_source
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.convert.write import companions
from moco_transfer.models import build_encoder
from moco_transfer.pretrain.encoder_file import read_encoder
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.runtime.errors import InputError


@pytest.fixture(scope="module")
def ours(r18, r18_key) -> dict:
    """A checkpoint as the trainer writes it, from a real MoCo v2 model."""
    model = MoCo(_resnet18, dim=128, queue_size=64, mlp=True)
    for encoder, state in ((model.encoder_q, r18), (model.encoder_k, r18_key)):
        encoder.load_state_dict(
            encoder.state_dict()
            | {name: t for name, t in state.items() if not name.startswith("fc.")}
        )
    model.queue_ptr.fill_(24)
    return {
        "format": "moco_transfer.pretrain/1",
        "mechanism": "moco",
        "arch": "resnet18",
        "pixels": {
            "format": "RGB",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
        },
        "state_dict": model.state_dict(),
        "optimizer": {},
        "epoch": 7,
        "iteration": 70,
    }


def _resnet18(num_classes: int) -> torch.nn.Module:
    return build_encoder("resnet18", num_classes=num_classes)


@pytest.fixture(scope="module")
def written(ours, tmp_path_factory):
    """The checkpoint, the official file made from it, and the report; not to be changed."""
    folder = tmp_path_factory.mktemp("official")
    torch.save(ours, folder / "ours.pth")
    return (
        folder / "ours.pth",
        folder / "official.pth.tar",
        convert_checkpoint(folder / "ours.pth", folder / "official.pth.tar", to="moco"),
    )


def as_lincls_loads_it(file) -> torchvision.models.ResNet:
    """Return the network that the linear protocol starts from, or fail where main_lincls.py
    asserts.
    """
    mark = "module.encoder_q."
    kept = {}
    for key, tensor in torch.load(file, weights_only=True)["state_dict"].items():
        if key.startswith(mark) and not key.startswith(mark + "fc"):
            kept[key[len(mark) :]] = tensor
    network = torchvision.models.resnet18()
    problems = network.load_state_dict(kept, strict=False)
    assert set(problems.missing_keys) == {"fc.weight", "fc.bias"} and not problems.unexpected_keys
    return network


def as_their_converter_names_it(file) -> dict[str, np.ndarray]:
    """Return Detectron2's name -> array as the official converter writes them, head included."""
    arrays = {}
    for key, tensor in torch.load(file, weights_only=True)["state_dict"].items():
        if key.startswith("module.encoder_q."):
            words = key.removeprefix("module.encoder_q.")
            words = words if words.startswith("layer") else f"stem.{words}"
            for old, new in (
                ("layer4", "res5"),
                ("layer3", "res4"),
                ("layer2", "res3"),
                ("layer1", "res2"),
            ):
                words = words.replace(old, new)
            for number in "123":
                words = words.replace(f"bn{number}", f"conv{number}.norm")
            arrays[
                words.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            ] = tensor.numpy()
    return arrays


def test_to_moco__the_official_tools_find_every_tensor(written, ours, r18):
    _, file, report = written
    network = as_lincls_loads_it(file)
    loaded = network.state_dict()
    assert all(
        torch.equal(loaded[name], tensor)
        for name, tensor in r18.items()
        if not name.startswith("fc.")
    )
    content = torch.load(file, weights_only=True)
    assert (content["arch"], content["epoch"]) == ("resnet18", 7)
    # Its check after training looks every name of the network up behind module.encoder_q.
    assert all(
        f"module.encoder_q.{name}" in content["state_dict"]
        for name in loaded
        if name not in ("fc.weight", "fc.bias")
    )

    assert (
        len(report.carried) == 4 + 124 + 2 and not report.dropped
    )  # head, key encoder with its head, queue and pointer
    assert max(report.differences.values()) == 0
    assert (
        "carried       130: encoder_k (124), encoder_q (4), queue (1), queue_ptr (1)"
        in report.table()
    )
    assert content["state_dict"].keys() == {f"module.{name}" for name in ours["state_dict"]}
    for name, tensor in ours["state_dict"].items():
        assert torch.equal(content["state_dict"][f"module.{name}"], tensor), name


def test_to_moco__the_official_converter_writes_what_ours_writes(written, tmp_path):
    source, file, _ = written
    convert_checkpoint(source, tmp_path / "ours.pkl", verify=False)
    theirs = {
        name: array
        for name, array in as_their_converter_names_it(file).items()
        if ".fc." not in name
    }
    own = pickle.loads((tmp_path / "ours.pkl").read_bytes())["model"]
    assert theirs.keys() == own.keys() and len(own) == 120
    assert all(np.array_equal(theirs[name], own[name]) for name in own)


def test_to_moco__is_read_back_by_convert_and_by_the_probes(saved, tmp_path, ours):
    content = ours | {
        "pixels": {"format": "RGB", "mean": [120.0, 110.0, 100.0], "std": [50.0, 51.0, 52.0]}
    }
    convert_checkpoint(saved(content), tmp_path / "official.pth.tar", to="moco", verify=False)
    for encoder in ("q", "k"):
        report = convert_checkpoint(
            tmp_path / "official.pth.tar", tmp_path / "back.pkl", encoder=encoder, verify=False
        )
        array = pickle.loads((tmp_path / "back.pkl").read_bytes())["model"]["res4.1.conv2.weight"]
        assert np.array_equal(
            array, ours["state_dict"][f"encoder_{encoder}.layer3.1.conv2.weight"].numpy()
        )
        assert (report.source_format, report.stamp["epoch"], report.stamp["pixel_mean"]) == (
            "moco",
            7,
            [120.0, 110.0, 100.0],
        )
    again = read_checkpoint(tmp_path / "official.pth.tar")
    assert len(companions(again, read_source(again))) == 130
    probe = read_encoder(str(tmp_path / "official.pth.tar"))
    assert (
        probe.arch == "resnet18"
        and probe.has_head
        and probe.view.mean == (120.0, 110.0, 100.0)
        and probe.view.std == (50.0, 51.0, 52.0)
    )


def test_to_moco__from_a_backbone_alone_adds_what_the_tools_look_up(saved, tmp_path, r18, caplog):
    """A supervised or random row for main_lincls.py: no key encoder, no queue; counters, which the
    file lacks, begin at 0.
    """
    bare = {
        name: tensor for name, tensor in r18.items() if not name.endswith("num_batches_tracked")
    }
    report = convert_checkpoint(saved(bare), tmp_path / "official.pth.tar", to="moco", verify=False)
    assert (
        report.carried == {} and "carried       0: no head, key encoder or queue" in report.table()
    )
    network = as_lincls_loads_it(tmp_path / "official.pth.tar")
    assert torch.equal(network.layer4[1].bn2.running_var, r18["layer4.1.bn2.running_var"])
    written = torch.load(tmp_path / "official.pth.tar", weights_only=True)
    names = written["state_dict"].keys()
    assert len(names) == 120 and all(
        f"module.encoder_q.{name}" in names
        for name in network.state_dict()
        if not name.startswith("fc.")
    )
    assert "epoch" not in written


def test_to_moco__what_the_official_code_does_not_know_is_said(saved, tmp_path, r18, caplog):
    content = {
        "format": "moco_transfer.pretrain/1",
        "arch": "resnet18",
        "epoch": 1,
        "pixels": {"format": "RGB", "mean": [120.0, 110.0, 100.0], "std": [50.0, 51.0, 52.0]},
        "state_dict": {f"encoder_q.{name}": tensor for name, tensor in r18.items()},
    }
    convert_checkpoint(saved(content), tmp_path / "official.pth.tar", to="moco", verify=False)
    assert (
        "trained on RGB pixels of mean [120.0, 110.0, 100.0]" in caplog.text
        and "torchvision has no" not in caplog.text
    )


def test_to_moco__a_damaged_key_encoder_is_refused(saved, tmp_path, ours):
    state = {
        name: tensor
        for name, tensor in ours["state_dict"].items()
        if name != "encoder_k.layer2.0.conv1.weight"
    }
    with pytest.raises(
        InputError, match=r"covers 99 of 100 backbone tensors .*encoder_k.layer2.0.conv1.weight"
    ):
        convert_checkpoint(
            saved(ours | {"state_dict": state}), tmp_path / "official.pth.tar", to="moco"
        )
    assert not (tmp_path / "official.pth.tar").exists()


def test_to_moco__a_queue_that_would_differ_is_refused(saved, tmp_path, ours, monkeypatch):
    import moco_transfer.convert.convert as module

    write = module.write
    turned = lambda path, state, stamp, *, to, extra: write(  # noqa: E731 - one line says it
        path, state, stamp, to=to, extra={name: tensor.flip(0) for name, tensor in extra.items()}
    )
    monkeypatch.setattr(module, "write", turned)
    with pytest.raises(InputError, match="Not written: "):
        convert_checkpoint(
            saved(ours | {"state_dict": _without_key_encoder(ours)}),
            tmp_path / "official.pth.tar",
            to="moco",
        )
    assert not (tmp_path / "official.pth.tar").exists()


def _without_key_encoder(ours):
    return {
        name: tensor
        for name, tensor in ours["state_dict"].items()
        if not name.startswith("encoder_k.")
    }


def test_to_moco__of_a_place_named_by_hand_the_encoder_alone_is_taken(saved, r18):
    """--from PREFIX says where an encoder lies, not what its neighbours are."""
    state = {f"encoder_q.{name}": tensor for name, tensor in r18.items()} | {
        "queue": torch.zeros(4, 4)
    }
    content = read_checkpoint(saved({"state_dict": state}))
    assert companions(content, read_source(content, source_format="state_dict.encoder_q.")) == {}
    known = {f"state_dict.{name}" for name in ("encoder_q.fc.weight", "encoder_q.fc.bias", "queue")}
    assert companions(content, read_source(content)).keys() == known


def test_to_moco__the_command(written, tmp_path, capsys):
    source, _, _ = written
    assert (
        main(["convert", str(source), str(tmp_path / "o.pth.tar"), "--to", "moco", "--no-verify"])
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        f"python main_lincls.py -a resnet18 --pretrained {tmp_path / 'o.pth.tar'}" in printed
        and "carried       130" in printed
    )
    assert (
        main(
            ["convert", str(source), str(tmp_path / "k.pth.tar"), "--to", "moco", "--encoder", "k"]
        )
        == 2
    )
    assert (
        "leave --encoder out" in capsys.readouterr().err and not (tmp_path / "k.pth.tar").exists()
    )
    assert main(["convert", str(source), str(tmp_path / "o.pkl"), "--to", "moco"]) == 2
    assert (
        "has the ending of a detectron2 file, expected .tar or .pth or .pt for --to moco"
        in capsys.readouterr().err
    )


def test_to_moco__arch_that_torchvision_lacks(caplog, tmp_path):
    stamp = {"arch": "resnet50_w2x", "format": None, "pixel_mean": None, "pixel_std": None}
    warn_of_official_assumptions(stamp, "x.pth")
    assert "torchvision has no resnet50_w2x, so main_lincls.py fails" in caplog.text
