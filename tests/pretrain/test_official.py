"""Ours against facebookresearch/moco@7397dfe run on the CPU: losses over 20 steps, in one process
and in two with ShuffleBN.

The numbers are in fixtures/official_moco.json, written by make_official_fixture.py. Went red under:
the temperature dropped; queries enqueued; shuffling left out; queue_ptr named otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from moco_transfer.models import build_encoder
from moco_transfer.pretrain.info_nce import info_nce
from moco_transfer.pretrain.moco import MoCo

from .official_case import QUEUE_SIZE, VARIANTS, SmallNet, fill, run_steps
from .two_processes import run_in_two_processes

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "official_moco.json").read_text())


def our_model(variant: str) -> MoCo:
    model = MoCo(SmallNet, queue_size=QUEUE_SIZE, **VARIANTS[variant]).double()
    fill(model)
    return model


def our_losses(rank: int, world_size: int) -> dict[str, list[float]]:
    found = {}
    for variant in VARIANTS:
        model = our_model(variant)
        forward = (
            model
            if world_size == 1
            else nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        )
        found[variant] = run_steps(
            model,
            forward,
            lambda logits, target: info_nce(logits),
            rank=rank,
            world_size=world_size,
        )
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_official__one_process_same_losses_over_20_steps(variant):
    # One BN group here and there: with one process the official shuffle changes nothing.
    ours = our_losses(0, 1)[variant]
    assert ours == pytest.approx(OFFICIAL["losses_1"][0][variant], abs=1e-9)


def test_official__two_processes_with_shuffle_bn_same_losses_over_20_steps(tmp_path):
    found = run_in_two_processes(our_losses, tmp_path, 2)
    for rank in range(2):
        for variant in VARIANTS:
            assert found[rank][variant] == pytest.approx(
                OFFICIAL["losses_2"][rank][variant], abs=1e-9
            )
    assert found[0]["v1"] != pytest.approx(
        found[1]["v1"], abs=1e-3
    )  # the processes did see different images


def test_official__state_dict_has_the_same_names_shapes_and_types():
    ours = MoCo(
        lambda num_classes: build_encoder("resnet18", num_classes=num_classes),
        queue_size=QUEUE_SIZE,
        mlp=True,
    ).state_dict()
    assert {
        name: [list(value.shape), str(value.dtype)] for name, value in ours.items()
    } == OFFICIAL["layout"]
    assert torch.float32 == ours["queue"].dtype
