"""SGD, groups, clipping and the learning rate against Detectron2's, live and as committed numbers.

Seen red under: warm-up from 0 instead of the factor; a step one iteration late; the cosine always
    started after the warm-up; no decay on
biases instead of on norms; clipping not each parameter for itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detector_cases import SCHEDULES, make_config, make_solver_config
from torch import nn

from moco_transfer.config import load_detection_config
from moco_transfer.finetune.torchvision_engine.build import (
    build_learning_rate,
    build_model,
    build_optimizer,
    set_lr,
)
from moco_transfer.runtime.errors import InputError

FIXTURE = Path(__file__).parent / "fixtures" / "learning_rates.json"


def our_sequence(cfg) -> list[float]:
    lr_at = build_learning_rate(cfg)
    return [lr_at(iteration) for iteration in range(cfg.SOLVER.MAX_ITER)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate__equals_committed_sequence(name):
    assert our_sequence(make_solver_config(name)) == pytest.approx(
        json.loads(FIXTURE.read_text())[name], rel=1e-12
    )


@pytest.mark.detectron2
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate__equals_detectron2_live(name):
    from make_detectron2_fixtures import learning_rates

    cfg = make_solver_config(name)
    assert our_sequence(cfg) == pytest.approx(learning_rates(cfg), rel=1e-12)


def test_learning_rate__published_voc_schedule_by_hand():
    # pascal_voc_R_50_C4_24k: lr .02, 100 iterations of warm-up from 1/1000, steps at 18k and 22k.
    lr_at = build_learning_rate(load_detection_config("pascal_voc_R_50_C4_24k"))
    assert lr_at(0) == pytest.approx(0.02 * 0.001)
    assert lr_at(50) == pytest.approx(0.02 * (0.5 + 0.5 * 0.001))
    assert [lr_at(i) for i in (100, 17999)] == pytest.approx([0.02, 0.02])
    assert [lr_at(i) for i in (18000, 21999)] == pytest.approx([0.002, 0.002])
    assert [lr_at(i) for i in (22000, 23999)] == pytest.approx([0.0002, 0.0002])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"STEPS": (30, 20)}, "SOLVER.STEPS is .30, 20."),
        ({"STEPS": (0, 20)}, "SOLVER.STEPS is .0, 20."),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 1.0}, "SOLVER.BASE_LR_END is 1.0"),
        ({"MAX_ITER": 0}, "SOLVER.MAX_ITER is 0"),
    ],
)
def test_learning_rate__refuses(settings, words):
    with pytest.raises(InputError, match=words):
        build_learning_rate(make_solver_config("multistep", **settings))


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (g["lr"], g["weight_decay"])
        for g in optimizer.param_groups
        for p in g["params"]
    }


@pytest.mark.detectron2
@pytest.mark.parametrize("case", ["r18_fpn_mask", "r50_c4_msra", "r18_fpn_gn_frozen"])
@pytest.mark.parametrize(
    "bias", [{}, {"SOLVER__BIAS_LR_FACTOR": 2.0, "SOLVER__WEIGHT_DECAY_BIAS": 0.0}]
)
def test_groups__equal_detectron2s(case, bias):
    from detectron2.solver import build_optimizer as detectron2_optimizer

    cfg = make_config(
        case, SOLVER__BASE_LR=0.02, SOLVER__WEIGHT_DECAY=1e-4, SOLVER__WEIGHT_DECAY_NORM=0.0, **bias
    )
    model = build_model(cfg)
    ours, theirs = (
        by_name(model, build_optimizer(cfg, model)),
        by_name(model, detectron2_optimizer(cfg, model)),
    )
    assert ours == theirs
    assert (
        len(set(ours.values())) > 1 or case == "r50_c4_msra"
    )  # without biases and trained norms there is one group


def test_groups__norms_without_decay_shared_parameters_once():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict(
        {
            "a": shared,
            "b": shared,
            "norm": nn.BatchNorm2d(2),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    settings = {
        "BASE_LR": 0.5,
        "WEIGHT_DECAY": 0.1,
        "WEIGHT_DECAY_NORM": 0.0,
        "BIAS_LR_FACTOR": 2.0,
    }
    optimizer = build_optimizer(make_solver_config("multistep", **settings), model)
    groups = optimizer.param_groups
    found = {(g["weight_decay"], g["lr_factor"]): len(g["params"]) for g in groups}
    assert found == {(0.1, 1.0): 1, (0.1, 2.0): 1, (0.0, 1.0): 1, (0.0, 2.0): 1}
    set_lr(optimizer, 0.25)
    assert sorted(g["lr"] for g in groups) == [0.25, 0.25, 0.5, 0.5]


def test_clip__each_parameter_for_itself():
    def clipped(kind: str, limit: float) -> list[torch.Tensor]:
        """Two gradients, read after a step that clips them; a third parameter has none."""
        model = nn.ParameterList([torch.zeros(2), torch.zeros(2), torch.zeros(1)])
        model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
        clip = {"ENABLED": True, "CLIP_TYPE": kind, "CLIP_VALUE": limit, "NORM_TYPE": 2.0}
        settings = {f"SOLVER__CLIP_GRADIENTS__{key}": value for key, value in clip.items()}
        build_optimizer(make_config("r18_fpn", **settings), model).step()
        return [model[0].grad, model[1].grad]

    a, b = clipped("norm", 1.0)
    torch.testing.assert_close(a, torch.tensor([0.6, 0.8]))  # norm 5 -> 1
    torch.testing.assert_close(b, torch.tensor([0.3, 0.4]))  # norm .5 stays
    a, b = clipped("value", 0.35)
    torch.testing.assert_close(a, torch.tensor([0.35, 0.35]))
    torch.testing.assert_close(b, torch.tensor([0.3, 0.35]))


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "clip",
    [
        {"CLIP_TYPE": "value", "CLIP_VALUE": 0.3},
        {"CLIP_TYPE": "norm", "CLIP_VALUE": 0.5, "NORM_TYPE": 1.0},
    ],
)
def test_steps__equal_detectron2s_optimizer_with_clipping(clip):
    """Three steps with groups, momentum, decay and clipping: the weights stay Detectron2's."""
    from detectron2.solver import build_optimizer as detectron2_optimizer

    settings = {
        "BASE_LR": 0.1,
        "WEIGHT_DECAY": 0.01,
        "WEIGHT_DECAY_NORM": 0.0,
        "BIAS_LR_FACTOR": 2.0,
        "WEIGHT_DECAY_BIAS": 0.0,
    }
    clipping = {f"SOLVER__CLIP_GRADIENTS__{key}": value for key, value in clip.items()} | {
        "SOLVER__CLIP_GRADIENTS__ENABLED": True
    }
    cfg = make_config(
        "r18_fpn", **{f"SOLVER__{key}": value for key, value in settings.items()}, **clipping
    )
    results = []
    for build in (build_optimizer, detectron2_optimizer):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
        optimizer = build(cfg, model)
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-6, atol=1e-7)
