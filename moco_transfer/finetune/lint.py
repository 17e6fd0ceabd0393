"""The linter of the hand-over: does the config suit these weights? Each finding names its fix.

A frozen BN, a swapped colour order, a learning rate of another batch still give an AP. Rules:
    frozen-norm, frozen-layers, fpn-norm, res5-norm, per-process-norm
        He et al. 2019, arXiv:1911.05722 Sec. 4.2 (and facebookresearch/moco issues 23 and 34):
        features of self-supervised pre-training have other statistics than supervised ones, so
        every layer is trained, BN is trained and synchronised, and new layers (FPN) have BN as
        well. Detectron2's defaults freeze, which suits supervised weights.
    colour-order, pixel-mean, pixel-std, pixel-scale, stride
        Pixel statistics travel with the weights (their stamp).
    batch-and-lr
        The linear rule (Goyal et al. 2017, arXiv:1706.02677), from the batch and learning rate that
        the config was written with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.pixels import IMAGENET_MEAN
from ..models.resnets import BASIC_BLOCKS
from ..runtime.errors import InputError
from .handover import RANDOM, SELF_SUPERVISED, UNKNOWN, InitialWeights

_PIXEL_TOLERANCE = 1e-2  # on the 0-255 scale: files round 0.485 * 255 differently
_LR_RANGE = 2.0  # a learning rate set by hand may differ from the linear rule by less than this
_FROZEN = ("FrozenBN", "")
_FEW_IMAGES = 8  # BN over fewer is noisy

Settings = Mapping[str, Any]  # a config, flattened: {"MODEL.RESNETS.NORM": "SyncBN", …}


@dataclass(frozen=True)
class Finding:
    """A reason not to start a run.

    Attributes:
        name: Short name, recorded in results.json when it was overruled; "" for a plain fault.
        sentence: What is wrong and the fix.
        option: The option that starts the run nevertheless; "" where there is none.
    """

    name: str
    sentence: str
    option: str = "--force"


class PlanError(InputError):
    """A run that cannot start; ``findings`` holds every reason."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        if len(findings) == 1:
            forced = " Or start with --force, which results.json and the table record."
            super().__init__(findings[0].sentence + forced * (findings[0].option == "--force"))
            return
        lines = [f"{len(findings)} things to fix before this run can start:"]
        for number, finding in enumerate(findings, start=1):
            name = f"{finding.name}: " if finding.name else ""
            lines.append(f"  {number}. {name}{finding.sentence}")
        options = " and ".join(dict.fromkeys(f.option for f in findings if f.option))
        overrule = f" {options} overrules what it can, and is recorded." if options else ""
        super().__init__("\n".join([*lines, f"Nothing was written.{overrule}"]))


@contextlib.contextmanager
def collecting(findings: list[Finding]) -> Iterator[None]:
    """Turn an InputError of the block into findings."""
    try:
        yield
    except PlanError as error:
        findings += error.findings
    except InputError as error:
        finding = Finding("", str(error), option="")
        if finding not in findings:  # two readers of a data set fail in the same words
            findings.append(finding)


def lint(
    settings: Settings,
    weights: InitialWeights,
    *,
    world_size: int,
    reference: tuple[int, float] | None,
    eval_only: bool = False,
) -> list[Finding]:
    """Compare a config with the weights that it starts from.

    Args:
        settings: The config as the user wrote it, not yet scaled to the number of processes.
        weights: From ``handover.read_weights``.
        world_size: Number of processes.
        reference: SOLVER.IMS_PER_BATCH and BASE_LR that the config was written with; None skips
            the rule.
        eval_only: Only the pixels matter then.

    Returns:
        All findings, in the order in which a reader would fix them.
    """
    pairs = [*_colours(settings, weights), *_pixels(settings, weights)]
    if not eval_only:
        if weights.kind in (RANDOM, SELF_SUPERVISED, UNKNOWN):
            pairs += _norms(settings, weights)
        pairs += _per_process_norms(settings, world_size)
        pairs += _batch_and_lr(settings, *reference) if reference is not None else []
    return [Finding(name, sentence) for name, sentence in pairs]


Pairs = Iterator[tuple[str, str]]  # name and sentence of findings


def _norms(settings: Settings, weights: InitialWeights) -> Pairs:
    whose = {
        RANDOM: "random initialisation needs",
        SELF_SUPERVISED: f"{weights.path} was trained without labels and needs",
        UNKNOWN: f"{weights.path} does not say how it was trained (--init supervised says that it"
        " had labels), and weights without supervision need",
    }[weights.kind]
    norm, freeze_at = settings["MODEL.RESNETS.NORM"], settings["MODEL.BACKBONE.FREEZE_AT"]
    fpn_norm = settings["MODEL.FPN.NORM"]
    if norm in _FROZEN:
        got = "is FrozenBN, which keeps BN as it was pre-trained" if norm else "is empty"
        fix = "BN that is trained. Set MODEL.RESNETS.NORM SyncBN."
        yield "frozen-norm", f"MODEL.RESNETS.NORM {got}, but {whose} {fix}"
    if freeze_at > 0:
        fix = "every layer trained. Set MODEL.BACKBONE.FREEZE_AT 0."
        yield "frozen-layers", f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but {whose} {fix}"
    if "fpn" in settings["MODEL.BACKBONE.NAME"] and fpn_norm in _FROZEN:
        fix = "BN in the FPN as well. Set MODEL.FPN.NORM SyncBN."
        yield "fpn-norm", f"MODEL.FPN.NORM is {fpn_norm!r}, but {whose} {fix}"
    if settings["MODEL.ROI_HEADS.NAME"] == "Res5ROIHeads":
        got = "MODEL.ROI_HEADS.NAME 'Res5ROIHeads' has no norm behind res5"
        fix = "one. Set MODEL.ROI_HEADS.NAME Res5ROIHeadsExtraNorm."
        yield "res5-norm", f"{got}, but {whose} {fix}"


def _per_process_norms(settings: Settings, world_size: int) -> Pairs:
    keys = ["MODEL.RESNETS.NORM"]
    keys += ["MODEL.FPN.NORM"] if "fpn" in settings["MODEL.BACKBONE.NAME"] else []
    wrong = [key for key in keys if settings[key] == "BN"]
    if world_size > 1 and wrong:
        yield (
            "per-process-norm",
            f"{' and '.join(wrong)} 'BN' takes its statistics from each of the {world_size}"
            f" processes' own images alone. Set {' and '.join(f'{key} SyncBN' for key in wrong)}.",
        )


def _colours(settings: Settings, weights: InitialWeights) -> Pairs:
    order, trained = settings["INPUT.FORMAT"], weights.pixels.get("format")
    rgb = _near(settings["MODEL.PIXEL_MEAN"], IMAGENET_MEAN)
    bgr = _near(settings["MODEL.PIXEL_MEAN"], IMAGENET_MEAN[::-1])
    if trained and trained != order:
        twin = "the *_msra.yaml twin of the config" if trained == "BGR" else "the one without _msra"
        yield (
            "colour-order",
            f"{weights.path} was trained on {trained} images, but the config says INPUT.FORMAT"
            f" {order!r}. Set INPUT.FORMAT {trained} with its pixel statistics, or use {twin}.",
        )
    elif not trained and ((order == "BGR" and rgb) or (order == "RGB" and bgr)):
        mean = f'MODEL.PIXEL_MEAN "{list(IMAGENET_MEAN)}"'
        yield (
            "colour-order",
            f"INPUT.FORMAT is {order!r}, but MODEL.PIXEL_MEAN is ImageNet's in the order"
            f" {'RGB' if rgb else 'BGR'}. Set {'INPUT.FORMAT RGB' if rgb else mean}.",
        )


def _pixels(settings: Settings, weights: InitialWeights) -> Pairs:
    known = weights.pixels
    for name in ("mean", "std"):
        key, theirs = f"MODEL.PIXEL_{name.upper()}", known.get(f"pixel_{name}")
        if theirs and not _near(settings[key], theirs):
            shown, got = ([round(float(v), 3) for v in vs] for vs in (theirs, settings[key]))
            yield (
                f"pixel-{name}",
                f"{weights.path} was trained with pixel {name} {shown}, but the config says {key}"
                f' {got}. Set {key} "{shown}".',
            )
    mean = settings["MODEL.PIXEL_MEAN"]
    if 0 < max(mean) <= 1 and not known.get("pixel_mean"):
        scaled = [round(255 * float(v), 3) for v in mean]
        yield (
            "pixel-scale",
            f"MODEL.PIXEL_MEAN {list(mean)} is for pixels of 0-1, here they are 0-255. Set it to"
            f" {scaled}.",
        )
    key, wanted = "MODEL.RESNETS.STRIDE_IN_1X1", known.get("stride_in_1x1")
    has_1x1 = known.get("arch") not in BASIC_BLOCKS
    if wanted is not None and has_1x1 and bool(settings[key]) != bool(wanted):
        yield (
            "stride",
            f"{weights.path} has its stride in the {'1x1' if wanted else '3x3'} convolutions, but"
            f" the config says {key} {settings[key]}. Set {key} {bool(wanted)}.",
        )


def _near(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(abs(a - b) <= _PIXEL_TOLERANCE for a, b in pairs)


def _batch_and_lr(settings: Settings, written_batch: int, written_lr: float) -> Pairs:
    batch, lr = settings["SOLVER.IMS_PER_BATCH"], settings["SOLVER.BASE_LR"]
    by_rule = written_lr * batch / written_batch
    by_hand = abs(lr - written_lr) > 1e-9 * written_lr
    allowed = _LR_RANGE if by_hand else 1.0 + 1e-6
    if not by_rule / allowed < lr < by_rule * allowed:
        room = f" (by hand, less than a factor of {_LR_RANGE:g} away from it)" if by_hand else ""
        yield (
            "batch-and-lr",
            f"SOLVER.IMS_PER_BATCH {batch} with SOLVER.BASE_LR {lr:g} does not match: the config"
            f" was written for batch {written_batch} with {written_lr:g}, and the learning rate"
            f" grows with the batch. Set SOLVER.BASE_LR {by_rule:g}{room}.",
        )


def remarks(settings: Settings, *, world_size: int) -> list[str]:
    """Return what is legal and may surprise, one sentence each.

    Args:
        settings: The config, scaled to the number of processes.
        world_size: Number of processes.
    """
    norm, batch = settings["MODEL.RESNETS.NORM"], settings["SOLVER.IMS_PER_BATCH"]
    max_iter, warmup = settings["SOLVER.MAX_ITER"], settings["SOLVER.WARMUP_ITERS"]
    has_steps = settings["SOLVER.LR_SCHEDULER_NAME"] == "WarmupMultiStepLR"
    beyond = [step for step in settings["SOLVER.STEPS"] if step >= max_iter and has_steps]
    is_trained = norm not in (*_FROZEN, "GN")
    found = []
    if is_trained and batch < _FEW_IMAGES:
        plain = f"MODEL.RESNETS.NORM {norm} in one process is plain BN; "
        found.append(
            f"{plain if world_size == 1 and norm != 'BN' else ''}BN over {batch} images is noisy"
            " (published runs: 16): seeds differ more."
        )
    if is_trained and not settings["TEST.PRECISE_BN.ENABLED"]:
        found.append(
            "TEST.PRECISE_BN.ENABLED is False: the evaluation takes BN's running averages, which"
            " lag behind the weights."
        )
    if beyond:
        found.append(
            f"SOLVER.STEPS {', '.join(map(str, beyond))} lie beyond SOLVER.MAX_ITER {max_iter} and"
            " never come."
        )
    if warmup > max_iter / 2:
        found.append(
            f"SOLVER.WARMUP_ITERS {warmup} is more than half of the run of {max_iter} iterations."
        )
    for head in ("ROI_BOX_HEAD", *(["ROI_MASK_HEAD"] if settings["MODEL.MASK_ON"] else [])):
        if head_norm := settings[f"MODEL.{head}.NORM"]:
            found.append(
                f"MODEL.{head}.NORM {head_norm}: MoCo's heads have no norm (moco issue 34), so"
                " published numbers do not compare."
            )
    return found
