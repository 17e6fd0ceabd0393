"""The linter of the hand-over: does the config suit these weights? Each finding is an error with
its fix, all of them at once.

In this field the expensive bug is silent: a frozen BN, a swapped colour order, a learning rate of
    another batch still give an AP. What
the linter looks at and where each rule comes from:
    frozen-norm, frozen-layers, fpn-norm, res5-norm, per-process-norm
        He et al. 2019, arXiv:1911.05722 Sec. 4.2: features of self-supervised pre-training have
        other statistics than those of supervised pre-training, so every layer is trained, BN is
        trained and synchronised, and new layers (FPN) have BN as well. facebookresearch/moco issues
        23 and 34 tell what happens otherwise. Detectron2's defaults freeze, which suits supervised
        weights.
    colour-order, pixel-mean, pixel-std, pixel-scale, stride
        Pixel statistics travel with the weights (their stamp).
    batch-and-lr
        The linear rule (Goyal et al. 2017, arXiv:1706.02677), from the batch and learning rate that
        the config was written with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from ..runtime.errors import InputError
from .handover import RANDOM, SELF_SUPERVISED, UNKNOWN, InitialWeights

_PIXEL_TOLERANCE = 1e-2  # on the 0-255 scale: files round 0.485 * 255 differently
_IMAGENET_MEAN_RGB = (123.675, 116.28, 103.53)
_BASIC_BLOCKS = ("resnet18", "resnet34")  # no 1x1 convolution that could have a stride
# a learning rate that was set by hand may differ from the linear rule by less than this factor
_LR_RANGE = 2.0
_FROZEN = ("FrozenBN", "")
_FEW_PICTURES = 8  # BN over fewer is noisy


@dataclass(frozen=True)
class Finding:
    """What is wrong.

    Attributes:
        name: Short name, recorded in results.json when it was overruled.
        sentence: What is wrong and the fix.
        option: The option that goes on all the same.
    """

    name: str
    sentence: str
    option: str = "--force"


def lint(
    cfg: CfgNode,
    weights: InitialWeights,
    *,
    world_size: int,
    reference: tuple[int, float] | None,
    eval_only: bool = False,
) -> list[Finding]:
    """Compare a config with the weights that it starts from.

    Args:
        cfg: A merged detection config, as the user wrote it (not yet scaled to the number of
            processes).
        weights: From ``handover.read_weights``.
        world_size: Number of processes.
        reference: SOLVER.IMS_PER_BATCH and BASE_LR that the config was written with; None leaves
            the rule out.
        eval_only: Only the pixels matter then.

    Returns:
        All findings, in the order in which a reader would fix them.
    """
    findings = list(_pixels(cfg, weights))
    if not eval_only:
        if weights.kind in (RANDOM, SELF_SUPERVISED, UNKNOWN):
            findings += _norms(cfg, weights)
        findings += _per_process_norms(cfg, world_size)
        if reference is not None:
            findings += _batch_and_lr(cfg, *reference)
    return findings


def settle(findings: Sequence[Finding], weights: InitialWeights, *, force: bool) -> list[Finding]:
    """Refuse the run for its findings, or tell which of them were overruled.

    Args:
        findings: What :func:`lint` found, and a gap in the coverage.
        weights: For the message.
        force: Overrule those that ``--force`` can overrule.

    Returns:
        What was overruled; the names go into results.json.

    Raises:
        InputError: With every finding that was not overruled.
    """
    overruled = [finding for finding in findings if force and finding.option == "--force"]
    standing = [finding for finding in findings if finding not in overruled]
    if len(standing) == 1:
        ending = (
            ""
            if standing[0].option != "--force"
            else " Or go on with --force, which results.json and the table record."
        )
        raise InputError(standing[0].sentence + ending)
    if standing:
        lines = "\n".join(
            f"  {number}. {finding.name}: {finding.sentence}"
            for number, finding in enumerate(standing, start=1)
        )
        options = " and ".join(dict.fromkeys(finding.option for finding in standing))
        raise InputError(
            f"{len(standing)} things do not go together in this config and"
            f" {_name(weights)}:\n{lines}\nMend them, or go on with {options}, which results.json"
            " and the table record."
        )
    return overruled


def remarks(cfg: CfgNode, *, world_size: int) -> list[str]:
    """Return what is legal and may surprise, one sentence each.

    Args:
        cfg: The config, scaled to the number of processes.
        world_size: Number of processes.
    """
    said = []
    solver, resnets = cfg.SOLVER, cfg.MODEL.RESNETS
    if resnets.NORM not in (*_FROZEN, "GN") and solver.IMS_PER_BATCH < _FEW_PICTURES:
        alone = (
            f"MODEL.RESNETS.NORM {resnets.NORM} in one process is plain BN; "
            if world_size == 1 and resnets.NORM != "BN"
            else ""
        )
        said.append(
            f"{alone}BN over {solver.IMS_PER_BATCH} images is noisy (published runs: 16): seeds"
            " differ more."
        )
    if not cfg.TEST.PRECISE_BN.ENABLED and resnets.NORM not in (*_FROZEN, "GN"):
        said.append(
            "TEST.PRECISE_BN.ENABLED is False: the evaluation takes BN's running averages, which"
            " lag behind the weights."
        )
    beyond = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if beyond and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        said.append(
            f"SOLVER.STEPS {', '.join(map(str, beyond))} lie beyond SOLVER.MAX_ITER"
            f" {solver.MAX_ITER} and never come."
        )
    if solver.WARMUP_ITERS > solver.MAX_ITER / 2:
        said.append(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is more than half of the run of"
            f" {solver.MAX_ITER} iterations."
        )
    heads = {
        "ROI_BOX_HEAD": cfg.MODEL.ROI_BOX_HEAD.NORM,
        "ROI_MASK_HEAD": cfg.MODEL.ROI_MASK_HEAD.NORM if cfg.MODEL.MASK_ON else "",
    }
    for name, norm in heads.items():
        if norm:
            said.append(
                f"MODEL.{name}.NORM {norm}: MoCo's heads have no norm (moco issue 34), so published"
                " numbers do not compare."
            )
    return said


def _name(weights: InitialWeights) -> str:
    return f"{weights.path} ({weights.kind} weights)" if weights.path else "random initialisation"


def _whose(weights: InitialWeights) -> str:
    if weights.kind == UNKNOWN:
        return (
            f"{weights.path} does not say how it was trained (--init supervised says that it had"
            " labels), and weights without supervision need"
        )
    return (
        "random initialisation needs"
        if weights.kind == RANDOM
        else f"{weights.path} was trained without labels and needs"
    )


def _norms(cfg: CfgNode, weights: InitialWeights) -> Iterable[Finding]:
    model, whose = cfg.MODEL, _whose(weights)
    if model.RESNETS.NORM in _FROZEN:
        has = (
            "is FrozenBN, which keeps BN as it was pre-trained"
            if model.RESNETS.NORM
            else "is empty"
        )
        yield Finding(
            "frozen-norm",
            f"MODEL.RESNETS.NORM {has}, but {whose} BN that is trained. Set MODEL.RESNETS.NORM"
            " SyncBN.",
        )
    if model.BACKBONE.FREEZE_AT > 0:
        yield Finding(
            "frozen-layers",
            f"MODEL.BACKBONE.FREEZE_AT is {model.BACKBONE.FREEZE_AT}, but {whose} every layer"
            " trained. Set MODEL.BACKBONE.FREEZE_AT 0.",
        )
    if "fpn" in model.BACKBONE.NAME and model.FPN.NORM in _FROZEN:
        yield Finding(
            "fpn-norm",
            f"MODEL.FPN.NORM is {model.FPN.NORM!r}, but {whose} BN in the FPN as well. Set"
            " MODEL.FPN.NORM SyncBN.",
        )
    if model.ROI_HEADS.NAME == "Res5ROIHeads":
        yield Finding(
            "res5-norm",
            f"MODEL.ROI_HEADS.NAME 'Res5ROIHeads' has no norm behind res5, but {whose} one. Set"
            " MODEL.ROI_HEADS.NAME Res5ROIHeadsExtraNorm.",
        )


def _per_process_norms(cfg: CfgNode, world_size: int) -> Iterable[Finding]:
    norms = {"MODEL.RESNETS.NORM": cfg.MODEL.RESNETS.NORM}
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        norms["MODEL.FPN.NORM"] = cfg.MODEL.FPN.NORM
    wrong = [key for key, norm in norms.items() if norm == "BN"]
    if world_size > 1 and wrong:
        fix = " and ".join(f"{key} SyncBN" for key in wrong)
        yield Finding(
            "per-process-norm",
            f"{' and '.join(wrong)} 'BN' takes its statistics from each of the {world_size}"
            f" processes' own images alone. Set {fix}.",
        )


def _pixels(cfg: CfgNode, weights: InitialWeights) -> Iterable[Finding]:
    known, order = weights.pixels, cfg.INPUT.FORMAT
    was = f"{weights.path} was trained"
    if known.get("format") and known["format"] != order:
        yield Finding(
            "colour-order",
            f"{was} on {known['format']} images, but the config says INPUT.FORMAT {order!r}. "
            f"Set INPUT.FORMAT {known['format']} with its pixel"
            f" statistics{_twin(known['format'])}.",
        )
    elif (
        not known.get("format")
        and order == "BGR"
        and _near(cfg.MODEL.PIXEL_MEAN, _IMAGENET_MEAN_RGB)
    ):
        yield Finding(
            "colour-order",
            "INPUT.FORMAT is 'BGR', but MODEL.PIXEL_MEAN is ImageNet's in the order RGB. Set"
            " INPUT.FORMAT RGB.",
        )
    elif (
        not known.get("format")
        and order == "RGB"
        and _near(cfg.MODEL.PIXEL_MEAN, _IMAGENET_MEAN_RGB[::-1])
    ):
        fix = '"[123.675, 116.28, 103.53]"'
        yield Finding(
            "colour-order",
            "INPUT.FORMAT is 'RGB', but MODEL.PIXEL_MEAN is ImageNet's in the order BGR. Set"
            f" MODEL.PIXEL_MEAN {fix}.",
        )
    for name, key, values in (
        ("mean", "MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN),
        ("std", "MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD),
    ):
        theirs = known.get(f"pixel_{name}")
        if theirs and not _near(values, theirs):
            shown = [round(float(v), 3) for v in theirs]
            yield Finding(
                f"pixel-{name}",
                f"{was} with pixel {name} {shown}, but the config says {key}"
                f' {[round(float(v), 3) for v in values]}. Set {key} "{shown}".',
            )
    if 0 < max(cfg.MODEL.PIXEL_MEAN) <= 1 and not known.get("pixel_mean"):
        scaled = [round(255 * float(v), 3) for v in cfg.MODEL.PIXEL_MEAN]
        yield Finding(
            "pixel-scale",
            f"MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)} is for pixels of 0-1, here they are"
            f" 0-255. Set it to {scaled}.",
        )
    stride, stride_wanted = cfg.MODEL.RESNETS.STRIDE_IN_1X1, known.get("stride_in_1x1")
    if (
        stride_wanted is not None
        and known.get("arch") not in _BASIC_BLOCKS
        and bool(stride) != bool(stride_wanted)
    ):
        yield Finding(
            "stride",
            f"{weights.path} has its stride in the {'1x1' if stride_wanted else '3x3'}"
            f" convolutions, but the config says MODEL.RESNETS.STRIDE_IN_1X1 {stride}. Set"
            f" MODEL.RESNETS.STRIDE_IN_1X1 {bool(stride_wanted)}.",
        )


def _near(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return (
        len(ours) == len(theirs)
        and max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= _PIXEL_TOLERANCE
    )


def _twin(order: str) -> str:
    return (
        ", or use the *_msra.yaml twin of the config"
        if order == "BGR"
        else ", or the config without _msra"
    )


def _batch_and_lr(cfg: CfgNode, batch: int, lr: float) -> Iterable[Finding]:
    """Hold the batch and the learning rate to the linear rule; a rate that was set by hand has some
    room.
    """
    solver = cfg.SOLVER
    by_rule = lr * solver.IMS_PER_BATCH / batch
    set_by_hand = abs(solver.BASE_LR - lr) > 1e-9 * lr
    allowed = _LR_RANGE if set_by_hand else 1.0 + 1e-6
    if not by_rule / allowed < solver.BASE_LR < by_rule * allowed:
        room = (
            f" (by hand, less than a factor of {_LR_RANGE:g} away from it)" if set_by_hand else ""
        )
        yield Finding(
            "batch-and-lr",
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} with SOLVER.BASE_LR {solver.BASE_LR:g}"
            f" does not go together: the config was written for batch {batch} with {lr:g}, and the"
            f" learning rate grows with the batch. Set SOLVER.BASE_LR {by_rule:g}{room}.",
        )
