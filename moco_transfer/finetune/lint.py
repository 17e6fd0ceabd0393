"""The linter of the hand-over: does the config suit these weights? Each finding names its fix.

A frozen BN, a swapped colour order, a learning rate of another batch still give an AP. The rules,
their sources and sentences are in ``findings.yaml``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config.schema_file import SEGMENTOR
from ..models.pixels import IMAGENET_MEAN
from ..models.resnets import BASIC_BLOCKS
from ..runtime.errors import InputError
from .handover import DETECTOR, InitialWeights

TEXTS: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("findings.yaml").read_text(encoding="utf-8")
)
_PIXEL_TOLERANCE = 1e-2  # on the 0-255 scale: files round 0.485 * 255 differently
_LR_RANGE = 2.0  # a learning rate set by hand may differ from the linear rule by less than this
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
    if weights.kind == DETECTOR and not weights.pixels and not eval_only:
        pairs.append(("unknown-pixels", TEXTS["unknown-pixels"].format(path=weights.path)))
    if not eval_only:
        pairs += _norms(settings, weights)
        pairs += _per_process_norms(settings, world_size)
        pairs += _batch_and_lr(settings, *reference) if reference is not None else []
    return [Finding(name, sentence, "--force") for name, sentence in pairs]


Pairs = Iterator[tuple[str, str]]  # name and sentence of findings


def _norms(settings: Settings, weights: InitialWeights) -> Pairs:
    whose, rules = TEXTS["whose"].get(weights.kind), TEXTS["norms"]
    if _is_segmentor(settings):
        rules = {k: rule for k, rule in rules.items() if k != "res5-norm"}
        rules |= TEXTS["norms_of_segmentor"]
    for name, rule in rules.items():
        value = settings[rule["key"]]
        applies = whose is not None and (name != "fpn-norm" or _has_fpn(settings))
        if applies and value in rule["wrong"]:
            needs = whose.format(path=weights.path)
            yield name, TEXTS["norm"].format(**rule, value=value, whose=needs)


def _is_segmentor(settings: Settings) -> bool:
    return settings["MODEL.META_ARCHITECTURE"] == SEGMENTOR


def _has_fpn(settings: Settings) -> bool:
    return "fpn" in settings["MODEL.BACKBONE.NAME"]


def _per_process_norms(settings: Settings, world_size: int) -> Pairs:
    keys = ["MODEL.RESNETS.NORM", "MODEL.FPN.NORM"][: 1 + _has_fpn(settings)]
    keys += ["MODEL.SEM_SEG_HEAD.NORM"] * _is_segmentor(settings)
    wrong = [key for key in keys if settings[key] == "BN"]
    if world_size > 1 and wrong:
        name, fix = "per-process-norm", " and ".join(f"{key} SyncBN" for key in wrong)
        facts = {"keys": " and ".join(wrong), "world_size": world_size, "fix": fix}
        yield name, TEXTS[name].format(**facts)


def _pixels(settings: Settings, weights: InitialWeights) -> Pairs:
    facts: dict[str, Any]
    known, order, mean = weights.pixels, settings["INPUT.FORMAT"], settings["MODEL.PIXEL_MEAN"]
    for name, rule in TEXTS["pixels"].items():
        ours, theirs = settings[rule["key"]], known.get(rule["field"])
        if name == "stride" and known.get("arch") in BASIC_BLOCKS:  # which have no 1x1 convolution
            continue
        if theirs is not None and not _equal(ours, theirs):
            facts = {"ours": _shown(ours), "theirs": _shown(theirs), "path": weights.path}
            facts["twin"] = TEXTS["twin"] if name == "colour-order" else ""
            yield name, TEXTS["pixel"].format(**rule, **facts)
    for other, imagenet in (("RGB", IMAGENET_MEAN), ("BGR", IMAGENET_MEAN[::-1])):
        if known.get("format") is None and other != order and _equal(mean, imagenet):
            facts = {"order": order, "other": other, "mean": _shown(imagenet[::-1])}
            yield "colour-order", TEXTS["colour-order"].format(**facts)
    if 0 < max(mean) <= 1 and known.get("pixel_mean") is None:
        facts = {"mean": list(mean), "scaled": _shown([255 * float(v) for v in mean])}
        yield "pixel-scale", TEXTS["pixel-scale"].format(**facts)


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
        facts = {"batch": batch, "lr": lr, "by_rule": by_rule, "room": room}
        written = {"written_batch": written_batch, "written_lr": written_lr}
        yield "batch-and-lr", TEXTS["batch-and-lr"].format(**facts, **written)


def remarks(settings: Settings, *, world_size: int) -> list[str]:
    """Return what is legal and may surprise in a config that was scaled to the number of processes,
    one sentence each.
    """
    norm, batch = settings["MODEL.RESNETS.NORM"], settings["SOLVER.IMS_PER_BATCH"]
    max_iter, warmup = settings["SOLVER.MAX_ITER"], settings["SOLVER.WARMUP_ITERS"]
    has_steps = settings["SOLVER.LR_SCHEDULER_NAME"] == "WarmupMultiStepLR"
    beyond = [step for step in settings["SOLVER.STEPS"] if step >= max_iter and has_steps]
    is_trained = norm not in ("FrozenBN", "", "GN")
    few = is_trained and batch < _FEW_IMAGES
    alone = world_size == 1 and norm != "BN"
    repeats = settings["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    found = {
        "few_images": few and not alone,
        "few_images_of_one_process": few and alone,
        "running_averages": is_trained and not settings["TEST.PRECISE_BN.ENABLED"],
        "steps": bool(beyond),
        "repeats": repeats and settings["DATALOADER.REPEAT_THRESHOLD"] <= 0,
        "warmup": warmup > max_iter / 2,
    }
    facts = {"norm": norm, "batch": batch, "max_iter": max_iter, "warmup": warmup}
    facts["steps"] = ", ".join(map(str, beyond))
    if _is_segmentor(settings) and settings["INPUT.CROP.ENABLED"]:
        crop, stride = [*settings["INPUT.CROP.SIZE"]], settings["MODEL.SEM_SEG_HEAD.COMMON_STRIDE"]
        fitting = [max(0, round((side - 1) / stride)) * stride + 1 for side in crop]
        found["crop"] = crop != fitting
        facts |= {"crop": crop, "stride": stride, "fitting": fitting}
    return [TEXTS["remarks"][name].format(**facts) for name, holds in found.items() if holds]
