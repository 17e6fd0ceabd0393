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
    """A reason not to start a run, with its fix.

    Attributes:
        name: Recorded in results.json when it was overruled; "" for a plain fault.
        option: The option that starts the run nevertheless; "" where there is none.
    """

    name: str
    sentence: str
    option: str = ""


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
        finding = Finding("", str(error))
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
    """Compare a config, as written and not scaled, with the weights that it starts from.

    ``reference`` is SOLVER.IMS_PER_BATCH and BASE_LR that the config was written with; None skips
    the rule. For ``eval_only`` the pixels alone matter.
    """
    pairs = [*_pixels(settings, weights)]
    if not eval_only:
        if weights.kind in (RANDOM, SELF_SUPERVISED, UNKNOWN):
            pairs += _norms(settings, weights)
        pairs += _per_process_norms(settings, world_size)
        pairs += _batch_and_lr(settings, *reference) if reference is not None else []
    return [Finding(name, sentence, "--force") for name, sentence in pairs]


Pairs = Iterator[tuple[str, str]]  # name and sentence of findings


def _norms(settings: Settings, weights: InitialWeights) -> Pairs:
    whose = {
        RANDOM: "random initialisation needs",
        SELF_SUPERVISED: f"{weights.path} was trained without labels and needs",
        UNKNOWN: f"{weights.path} does not say how it was trained (--init supervised says that it"
        " had labels), and weights without supervision need",
    }[weights.kind]
    norm, fpn_norm = settings["MODEL.RESNETS.NORM"], settings["MODEL.FPN.NORM"]
    freeze_at, heads = settings["MODEL.BACKBONE.FREEZE_AT"], settings["MODEL.ROI_HEADS.NAME"]
    has_fpn, better_heads = "fpn" in settings["MODEL.BACKBONE.NAME"], "Res5ROIHeadsExtraNorm"
    for name, is_wrong, key, need, fix in (
        ("frozen-norm", norm in _FROZEN, "RESNETS.NORM", "BN that is trained", "SyncBN"),
        ("frozen-layers", freeze_at > 0, "BACKBONE.FREEZE_AT", "every layer trained", 0),
        ("fpn-norm", has_fpn and fpn_norm in _FROZEN, "FPN.NORM", "BN in the FPN", "SyncBN"),
        ("res5-norm", heads == "Res5ROIHeads", "ROI_HEADS.NAME", "BN behind res5", better_heads),
    ):
        if is_wrong:
            got = f"MODEL.{key} is {settings[f'MODEL.{key}']!r}"
            yield name, f"{got}, but {whose} {need}. Set MODEL.{key} {fix}."


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


def _pixels(settings: Settings, weights: InitialWeights) -> Pairs:
    known, order = weights.pixels, settings["INPUT.FORMAT"]
    for name, key, field in (
        ("colour-order", "INPUT.FORMAT", "format"),
        ("pixel-mean", "MODEL.PIXEL_MEAN", "pixel_mean"),
        ("pixel-std", "MODEL.PIXEL_STD", "pixel_std"),
        ("stride", "MODEL.RESNETS.STRIDE_IN_1X1", "stride_in_1x1"),
    ):
        ours, theirs = settings[key], known.get(field)
        if name == "stride" and known.get("arch") in BASIC_BLOCKS:  # which have no 1x1 convolution
            continue
        if theirs is not None and not _equal(ours, theirs):
            twin = (
                " (configs named *_msra are BGR, the others RGB)" if key == "INPUT.FORMAT" else ""
            )
            yield (
                name,
                f"{weights.path} was trained with {field} {_shown(theirs)}, but the config says"
                f" {key} {_shown(ours)}. Set {key} {_shown(theirs)}{twin}.",
            )
    mean = settings["MODEL.PIXEL_MEAN"]
    for of, imagenet in (("RGB", IMAGENET_MEAN), ("BGR", IMAGENET_MEAN[::-1])):
        if known.get("format") is None and of != order and _equal(mean, imagenet):
            yield (
                "colour-order",
                f"INPUT.FORMAT is {order!r}, but MODEL.PIXEL_MEAN is ImageNet's in the order {of}."
                f" Set INPUT.FORMAT {of}, or MODEL.PIXEL_MEAN {_shown(imagenet[::-1])}.",
            )
    if 0 < max(mean) <= 1 and known.get("pixel_mean") is None:
        yield (
            "pixel-scale",
            f"MODEL.PIXEL_MEAN {list(mean)} is for pixels of 0-1, here they are 0-255. Set"
            f" MODEL.PIXEL_MEAN {_shown([255 * float(v) for v in mean])}.",
        )


def _equal(ours: Any, theirs: Any) -> bool:
    if not isinstance(theirs, (list, tuple)):
        return ours == theirs
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(abs(a - b) <= _PIXEL_TOLERANCE for a, b in pairs)


def _shown(value: Any) -> str:
    """Return a value as a command line takes it."""
    if isinstance(value, (list, tuple)):
        return f'"{[round(float(v), 3) for v in value]}"'
    return str(value)


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
    """Return what is legal and may surprise in a config that was scaled to the number of processes,
    one sentence each.
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
        steps = ", ".join(map(str, beyond))
        found.append(f"SOLVER.STEPS {steps} lie beyond SOLVER.MAX_ITER {max_iter} and never come.")
    if warmup > max_iter / 2:
        found.append(f"SOLVER.WARMUP_ITERS {warmup} is more than half of {max_iter} iterations.")
    return found
