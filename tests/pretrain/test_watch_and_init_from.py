"""What a run says of itself, and ``--init-from``.

Went red under: a trouble said at every period; no patience; spread without the root; the key
    encoder not set by --init-from;
left-over tensors accepted.
"""

from __future__ import annotations

import math

import pytest
import torch

from moco_transfer.models import build_encoder
from moco_transfer.pretrain.encoder_file import read_encoder
from moco_transfer.pretrain.encoder_file import start_from as load_weights
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.supervised import Supervised
from moco_transfer.pretrain.watch import Watch, describe_contrast
from moco_transfer.runtime.errors import InputError

HEALTHY = {
    "loss": 3.0,
    "chance": math.log(4097),
    "contrast_acc1": 40.0,
    "cos_negative": 0.1,
    "feature_spread": 0.9,
    "data_wait_share": 0.0,
}


def said(*rows: dict, first_iteration: int = 100, negatives: int = 4096) -> list[str]:
    watch = Watch(negatives=negatives, patience_iterations=100)
    return [
        sentence
        for i, row in enumerate(rows)
        for sentence in watch.look(first_iteration + i, HEALTHY | row)
    ]


def test_watch__each_trouble_is_said_once_after_three_periods_in_a_row():
    assert said(*[{}] * 10) == []
    collapsed = {"feature_spread": 0.01, "cos_negative": 0.999}
    (sentence,) = said(*[collapsed] * 9)
    assert (
        sentence.startswith("The features collapse: their spread over a batch is 0.010")
        and "SOLVER.BASE_LR" in sentence
    )
    assert said(collapsed, collapsed, {}, collapsed, collapsed) == []
    (sentence,) = said(*[{"loss": 8.30}] * 3)  # ln 4097 = 8.318
    assert (
        "stays at chance, 8.318, after 102 iterations" in sentence and "MOCO.MOMENTUM" in sentence
    )
    assert said(*[{"loss": 8.30}] * 3, first_iteration=50) == []  # the queue is still filling
    (sentence,) = said(*[{"contrast_acc1": 99.9}] * 3)
    assert "99.9 % with K = 4096" in sentence and "MOCO.BN_GROUP_SIZE" in sentence
    assert said(*[{"contrast_acc1": 99.9}] * 3, negatives=20) == []


def test_describe_contrast__known_numbers():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 4.0, 1.0]])
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    got = {
        name: value.item() for name, value in describe_contrast(q, logits, temperature=0.5).items()
    }
    assert got == pytest.approx(
        {
            "contrast_acc1": 50.0,
            "cos_positive": 0.5,
            "cos_negative": 0.75,
            "feature_spread": math.sqrt(0.5),
        }
    )
    alike = torch.tensor([[1.0, 0.0]] * 3)
    assert (
        describe_contrast(alike, torch.zeros(3, 2), temperature=1.0)["feature_spread"].item() == 0.0
    )


def test_watch__waiting_for_images_is_said_once_with_what_to_try():
    watch = Watch(negatives=0, patience_iterations=0)
    shares = (0.5, 0.1, 0.9, 0.5, 0.4, 0.6, 0.6, 0.6, 0.0, 0.9, 0.9, 0.9)
    said = {i: watch.look(i, {"data_wait_share": share}) for i, share in enumerate(shares)}
    ((iteration, (sentence,)),) = [found for found in said.items() if found[1]]
    assert iteration == 4 and sentence.startswith("60% of the time")
    assert "DATA.NUM_WORKERS" in sentence and "moco-transfer pack" in sentence


def start_from(model, path: str) -> None:
    load_weights(model, read_encoder(path, arch="resnet18"))


def resnet18(num_classes: int = 16):
    return build_encoder("resnet18", num_classes=num_classes)


def assert_starts_equal(model: MoCo, source: dict[str, torch.Tensor], *, head: bool) -> None:
    for name, value in model.encoder_q.state_dict().items():
        if head or not name.startswith("fc."):
            assert torch.equal(value, source[name]), name
        assert torch.equal(value, model.encoder_k.state_dict()[name])


@pytest.mark.parametrize("prefix", ["encoder_q.", "module.encoder_q.", ""])
def test_init_from__our_official_and_torchvision_layouts(prefix, tmp_path):
    torch.manual_seed(1)
    source = resnet18().state_dict()
    everything = {prefix + name: value for name, value in source.items()}
    if prefix:
        everything |= {
            prefix.replace("_q", "_k") + "conv1.weight": torch.zeros(64, 3, 7, 7),
            "queue": torch.ones(16, 4),
        }
    torch.save(
        {"state_dict": everything, "optimizer": {}} if prefix else everything, tmp_path / "a.pth"
    )
    model = MoCo(resnet18, dim=16, queue_size=8)
    queue = model.queue.clone()
    start_from(model, str(tmp_path / "a.pth"))
    assert_starts_equal(model, source, head=True)
    assert torch.equal(model.queue, queue)


def test_init_from__another_head_stays_fresh_and_supervised_takes_the_trunk(tmp_path):
    source = resnet18(num_classes=16).state_dict()
    torch.save(
        {"state_dict": {f"encoder_q.{name}": value for name, value in source.items()}},
        tmp_path / "v1.pth",
    )
    v2 = MoCo(resnet18, dim=16, queue_size=8, mlp=True)
    fc = v2.encoder_q.fc[2].weight.clone()
    start_from(v2, str(tmp_path / "v1.pth"))
    assert_starts_equal(v2, source, head=False)
    assert torch.equal(v2.encoder_q.fc[2].weight, fc)
    classifier = Supervised(resnet18, num_classes=3)
    start_from(classifier, str(tmp_path / "v1.pth"))
    assert torch.equal(
        classifier.encoder_q.layer4[1].bn2.running_var, source["layer4.1.bn2.running_var"]
    )


def test_init_from__refusals(tmp_path):
    torch.save(
        {
            "state_dict": {
                f"encoder_q.{n}": v
                for n, v in build_encoder("resnet34", num_classes=16).state_dict().items()
            }
        },
        tmp_path / "r34.pth",
    )
    with pytest.raises(
        InputError, match="covers 100 of 100 backbone tensors of resnet18. .* Unused .80."
    ):
        start_from(MoCo(resnet18, dim=16, queue_size=8), str(tmp_path / "r34.pth"))
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="holds no ResNet"):
        start_from(MoCo(resnet18, dim=16, queue_size=8), str(tmp_path / "other.pth"))
