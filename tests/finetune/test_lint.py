"""The linter: what does not suit the weights is found, with its fix, and what suits them is left
alone.

Independent source of the rules: arXiv:1911.05722 Sec. 4.2 and moco issues 23 and 34
    (self-supervised weights), Detectron2's own default
config (supervised weights: FrozenBN, FREEZE_AT 2, an FPN without norm), arXiv:1706.02677 (linear
rule).

Seen red under: supervised weights linted too; unknown let through; FREEZE_AT > 2; empty FPN norm
    passes; std not
compared; lr by the inverse; factor 2 allowed; room without own lr; force overrules coverage; basic
blocks' stride checked; half a pair counts.
"""

from __future__ import annotations

import pytest

from moco_transfer.config import (
    available,
    flatten_config,
    load_detection_config,
    reference_batch_and_lr,
)
from moco_transfer.finetune.handover import InitialWeights
from moco_transfer.finetune.lint import Finding, PlanError, lint, remarks

RGB = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
    "arch": "resnet50",
}
MSRA = {
    "format": "BGR",
    "pixel_mean": [103.53, 116.28, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
    "stride_in_1x1": True,
    "arch": "resnet50",
}
FPN, C4, DC5 = "coco_R_50_FPN_1x", "pascal_voc_R_50_C4_24k", "pascal_voc_R_50_DC5_24k"


def settings(config, *overrides):
    return flatten_config(load_detection_config(config, [str(word) for word in overrides]))


def weights(kind="self-supervised", pixels=RGB):
    return InitialWeights(
        "" if kind == "random" else "moco.pkl", kind, None, None, {} if kind == "random" else pixels
    )


def names(config, *overrides, kind="self-supervised", pixels=RGB, world_size=1, **more):
    found = lint(
        settings(config, *overrides),
        weights(kind, pixels),
        world_size=world_size,
        reference=reference_batch_and_lr(config),
        **more,
    )
    assert all(
        finding.sentence.endswith((".", ").")) and "\n" not in finding.sentence for finding in found
    )
    return [finding.name for finding in found]


@pytest.mark.parametrize(
    "config",
    sorted(
        n.split("/")[1]
        for n in available()
        if n.startswith("detection/") and not n.endswith("_msra")
    ),
)
@pytest.mark.parametrize("kind", ["random", "self-supervised", "supervised", "unknown"])
def test_lint__shipped_configs_suit_every_kind_of_weights(config, kind):
    assert names(config, kind=kind, world_size=8) == []


@pytest.mark.parametrize(
    "config", sorted(n.split("/")[1] for n in available() if n.endswith("_msra") and "/" in n)
)
def test_lint__msra_twins_suit_msras_weights_alone(config):
    assert names(config, kind="supervised", pixels=MSRA) == []
    assert names(config, kind="supervised") == ["colour-order", "pixel-mean", "pixel-std", "stride"]
    assert names(config.removesuffix("_msra"), kind="supervised", pixels=MSRA) == [
        "colour-order",
        "pixel-mean",
        "pixel-std",
        "stride",
    ]


@pytest.mark.parametrize("kind", ["random", "self-supervised", "unknown"])
@pytest.mark.parametrize(
    ("config", "overrides", "name", "fix"),
    [
        (FPN, ["MODEL.RESNETS.NORM", "FrozenBN"], "frozen-norm", "Set MODEL.RESNETS.NORM SyncBN."),
        (C4, ["MODEL.RESNETS.NORM", "FrozenBN"], "frozen-norm", "Set MODEL.RESNETS.NORM SyncBN."),
        (DC5, ["MODEL.RESNETS.NORM", ""], "frozen-norm", "Set MODEL.RESNETS.NORM SyncBN."),
        (C4, ["MODEL.BACKBONE.FREEZE_AT", "2"], "frozen-layers", "Set MODEL.BACKBONE.FREEZE_AT 0."),
        (FPN, ["MODEL.FPN.NORM", ""], "fpn-norm", "Set MODEL.FPN.NORM SyncBN."),
        (FPN, ["MODEL.FPN.NORM", "FrozenBN"], "fpn-norm", "Set MODEL.FPN.NORM SyncBN."),
        (
            C4,
            ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"],
            "res5-norm",
            "Set MODEL.ROI_HEADS.NAME Res5ROIHeadsExtraNorm.",
        ),
    ],
)
def test_lint__norms_of_weights_without_supervision(kind, config, overrides, name, fix):
    cfg = settings(config, *overrides)
    (finding,) = lint(cfg, weights(kind), world_size=1, reference=None)
    assert finding.name == name and finding.sentence.endswith(fix)
    assert (
        lint(cfg, weights("supervised"), world_size=1, reference=None) == []
    )  # Detectron2's default suits those
    assert lint(cfg, weights("detector"), world_size=1, reference=None) == []
    key, value = fix.removeprefix("Set ").removesuffix(".").split(" ")
    assert names(config, *overrides, key, value, kind=kind) == []  # the fix removes it


def test_lint__detectron2s_defaults__everything_at_once(tmp_path):
    (tmp_path / "plain.yaml").write_text("VERSION: 2\n")
    cfg = settings(tmp_path / "plain.yaml")
    found = lint(cfg, weights(), world_size=1, reference=None)
    assert [f.name for f in found] == [
        *("colour-order", "pixel-mean", "pixel-std", "stride"),
        *("frozen-norm", "frozen-layers", "res5-norm"),
    ]
    assert lint(cfg, weights("supervised", MSRA), world_size=1, reference=None) == []
    lines = str(PlanError(found)).splitlines()
    assert lines[0].startswith("7 things to fix")
    assert [line.split(":")[0].split(". ")[1] for line in lines[1:8]] == [f.name for f in found]
    assert "--force" in lines[8]


def test_plan_error__one_finding_is_one_sentence_and_a_gap_names_its_own_option():
    one = Finding("stride", "Wrong. Set X.", "--force")
    gap = Finding("coverage", "x covers 1 of 2.", "--allow-partial")
    assert str(PlanError([one])).startswith("Wrong. Set X. Or start with --force")
    assert str(PlanError([gap])) == "x covers 1 of 2."
    assert "--force and --allow-partial" in str(PlanError([one, gap]))
    assert PlanError([one, gap]).findings == (one, gap)


def test_lint__pixels():
    def sentences(*overrides, pixels):
        found = lint(settings(C4, *overrides), weights(pixels=pixels), world_size=1, reference=None)
        return [finding.sentence for finding in found]

    (order,) = sentences(pixels={**RGB, "format": "BGR", "pixel_mean": None, "pixel_std": None})
    assert order.startswith("moco.pkl was trained with format BGR")
    assert "Set INPUT.FORMAT BGR" in order and "_msra" in order
    (mean,) = sentences("MODEL.PIXEL_MEAN", "[123.675, 116.28, 100.0]", pixels=RGB)
    assert "[123.675, 116.28, 100.0]" in mean
    assert mean.endswith('Set MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]".')
    assert sentences("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", pixels=RGB)[0].endswith(
        'Set MODEL.PIXEL_STD "[58.395, 57.12, 57.375]".'
    )
    assert sentences(pixels={**RGB, "pixel_std": [58.4, 57.12, 57.375]}) == []  # rounding
    assert sentences(pixels={**RGB, "pixel_std": [58.41, 57.12, 57.375]}) != []
    assert sentences("MODEL.RESNETS.STRIDE_IN_1X1", "True", pixels=RGB)[0].endswith(
        "Set MODEL.RESNETS.STRIDE_IN_1X1 False."
    )
    assert (
        sentences(pixels={"stride_in_1x1": True, "arch": "resnet18"}) == []
    )  # basic blocks have no 1x1 convolution to stride in


def test_lint__pixels_that_contradict_themselves_where_the_weights_say_nothing():
    def found(*overrides):
        return [
            f.sentence
            for f in lint(
                settings(C4, *overrides), weights("unknown", {}), world_size=1, reference=None
            )
        ]

    assert found() == []
    assert found("INPUT.FORMAT", "BGR")[0].startswith(
        "INPUT.FORMAT is 'BGR', but MODEL.PIXEL_MEAN is ImageNet's in the order RGB."
    )
    assert found("MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]")[0].startswith(
        "INPUT.FORMAT is 'RGB', but MODEL.PIXEL_MEAN is ImageNet's in"
    )
    (small,) = found(
        "MODEL.PIXEL_MEAN", "[0.485, 0.456, 0.406]", "MODEL.PIXEL_STD", "[0.229, 0.224, 0.225]"
    )
    assert small.endswith(
        'for pixels of 0-1, here they are 0-255. Set MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]".'
    )


def test_lint__statistics_of_each_process_alone():
    assert names(
        FPN, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", world_size=2, kind="supervised"
    ) == ["per-process-norm"]
    assert names(FPN, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", world_size=1) == []
    assert names(FPN, "MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", world_size=2) == []


@pytest.mark.parametrize(
    ("overrides", "set_to"),
    [
        (["SOLVER.IMS_PER_BATCH", "8"], "0.01"),
        (
            ["SOLVER.IMS_PER_BATCH", "12"],
            "0.015",
        ),  # without a learning rate of its own the rule is exact
        (["SOLVER.IMS_PER_BATCH", "32"], "0.04"),
        (["SOLVER.BASE_LR", "0.2"], "0.02"),
        (["SOLVER.BASE_LR", "0.04"], "0.02"),
        (["SOLVER.BASE_LR", "0.01"], "0.02"),
        (["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.02"], "0.01"),
        (["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.01"], None),
        (["SOLVER.BASE_LR", "0.03"], None),  # a sweep has some room
        (["SOLVER.BASE_LR", "0.011"], None),
        (["SOLVER.REFERENCE_WORLD_SIZE", "4"], None),
    ],
)
def test_lint__batch_and_learning_rate(overrides, set_to):
    found = lint(
        settings(C4, *overrides), weights(), world_size=1, reference=reference_batch_and_lr(C4)
    )
    assert [f.name for f in found] == (["batch-and-lr"] if set_to else [])
    if set_to:
        assert "the config was written for batch 16 with 0.02" in found[0].sentence
        assert f"Set SOLVER.BASE_LR {set_to}" in found[0].sentence
        assert names(C4, *overrides, "SOLVER.BASE_LR", set_to) == []  # the fix removes it


def test_reference__a_file_of_the_users_that_changes_half_of_the_pair_has_none_of_its_own(tmp_path):
    base = available()["detection/" + C4]
    (tmp_path / "half.yaml").write_text(f"_BASE_: {base}\nSOLVER: {{IMS_PER_BATCH: 2}}\n")
    (tmp_path / "whole.yaml").write_text(
        f"_BASE_: {base}\nSOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.02}}\n"
    )
    assert reference_batch_and_lr(tmp_path / "half.yaml") == (16, 0.02)
    assert names(tmp_path / "half.yaml") == ["batch-and-lr"]
    assert reference_batch_and_lr(tmp_path / "whole.yaml") == (2, 0.02)
    assert names(tmp_path / "whole.yaml") == []
    assert reference_batch_and_lr("own_R_18_FPN_small") == (4, 0.01)


def test_lint__eval_only_looks_at_the_pixels_alone():
    overrides = [
        "MODEL.RESNETS.NORM",
        "FrozenBN",
        "SOLVER.IMS_PER_BATCH",
        "1",
        "INPUT.FORMAT",
        "BGR",
    ]
    assert names(C4, *overrides, kind="detector", eval_only=True) == ["colour-order"]


def test_remarks__what_is_legal_and_may_surprise():
    def sentences(*overrides, world_size=8):
        return remarks(settings(C4, *overrides), world_size=world_size)

    assert sentences() == []
    assert sentences("SOLVER.IMS_PER_BATCH", 2, world_size=1) == [
        "MODEL.RESNETS.NORM SyncBN in one process is plain BN; BN over 2 images is noisy"
        " (published runs: 16): seeds differ more."
    ]
    assert sentences("SOLVER.MAX_ITER", 20000) == [
        "SOLVER.STEPS 22000 lie beyond SOLVER.MAX_ITER 20000 and never come."
    ]
    assert sentences("SOLVER.WARMUP_ITERS", 13000)[0].startswith(
        "SOLVER.WARMUP_ITERS 13000 is more than half"
    )
    assert sentences("TEST.PRECISE_BN.ENABLED", False)[0].startswith(
        "TEST.PRECISE_BN.ENABLED is False"
    )
    sampler = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    assert sentences(*sampler)[0].startswith("DATALOADER.REPEAT_THRESHOLD is 0")
    assert sentences(*sampler, "DATALOADER.REPEAT_THRESHOLD", 0.001) == []
