"""Configs for the user's images, each value with a reason."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..suggest.facts import Objects


def run(args: argparse.Namespace) -> int:
    """Print both configs and the commands to run them; returns 0."""
    from ..runtime.files import atomic_write_text
    from ..suggest import facts
    from ..suggest.finetuning import suggest_finetuning
    from ..suggest.pretraining import suggest_pretraining

    given, output = _given(args.overrides), Path(args.output or "suggested")
    images, machine = facts.look_at_images(args.data, args.images), facts.look_at_machine(args.gpus)
    objects = _objects(args, given["finetune"])
    values = suggest_pretraining(images, machine, given["pretrain"], f"{output}/pretrain")
    header = f"Written by moco-transfer suggest for {machine.describe()}."
    texts = {"pretrain": values.text(header)}
    if objects is not None:
        how = machine, values["MODEL.ARCH"].value, given["finetune"], f"{output}/finetune"
        texts["finetune"] = suggest_finetuning(objects, *how).text(header)
    for name, text in texts.items():
        print(f"# --- {output / name}.yaml\n{text}")
        if args.output:
            atomic_write_text(output / f"{name}.yaml", text)
    print("# --- To run them:" if args.output else f"# --- To run them, add --output {output}:")
    checkpoint = _checkpoint({key: value.value for key, value in values.items()}, images.count)
    for command in _commands(args, output, checkpoint, objects, machine.gpus):
        print(shlex.join(["moco-transfer", *command]))
    if not args.dataset:
        print("# --- For a detector on data of your own add --dataset NAME=... (see --help).")
    return 0


def _given(words: list[str]) -> dict[str, dict[str, Any]]:
    """Return the user's values by step and key, read as the verbs read them."""
    from ..config import flatten_config, load_detection_config, load_pretrain_config
    from ..runtime.errors import InputError, UnknownKeyError, did_you_mean

    loaders: dict[str, tuple[Any, str]] = {
        "pretrain": (load_pretrain_config, "moco_v2_R_50_200ep"),
        "finetune": (load_detection_config, "Base-RCNN-FPN-BN"),
    }
    known = {step: flatten_config(load(name)) for step, (load, name) in loaders.items()}
    found: dict[str, list[str]] = {step: [] for step in known}
    if len(words) % 2:
        raise InputError(f"Values come in pairs KEY VALUE, got {len(words)}: {shlex.join(words)}.")
    for word, value in zip(words[::2], words[1::2], strict=True):
        prefix, _, rest = word.partition(".")
        key, steps = (rest, [prefix]) if prefix in known else (word, list(known))
        holding = [step for step in steps if key in known[step]]
        if not holding:
            names = [name for step in steps for name in known[step]]
            raise UnknownKeyError(f"command line: unknown key {word!r}.{did_you_mean(key, names)}")
        if len(holding) > 1:
            fix = f"Write pretrain.{key} or finetune.{key}."
            raise InputError(f"command line: {key} is a key of both configs. {fix}")
        found[holding[0]] += [key, value]
    settings = {s: flatten_config(load(name, found[s])) for s, (load, name) in loaders.items()}
    return {step: {key: settings[step][key] for key in found[step][::2]} for step in found}


def _objects(args: argparse.Namespace, given: dict[str, Any]) -> Objects | None:
    """Read the annotations that the words name, else those of DATA or of VOC, if they are there."""
    from ..data.annotations.catalog import builtin_datasets, datasets_root, parse_dataset_flag
    from ..suggest.facts import look_at_objects

    names = [parse_dataset_flag(flag) if "=" in flag else flag for flag in args.dataset]
    train, test = given.get("DATASETS.TRAIN", names[:1]), given.get("DATASETS.TEST", names[1:])
    if not train and args.data in builtin_datasets():
        train = [args.data]
    if not train and all((datasets_root() / f"VOC{year}").is_dir() for year in (2007, 2012)):
        train = ["voc_2007_trainval", "voc_2012_trainval"]
    if train and not test and train[0] in builtin_datasets():
        test = ["voc_2007_test" if "voc" in train[0] else train[0].replace("_train", "_val")]
    return look_at_objects(train, test or train) if train else None


def _checkpoint(settings: dict[str, Any], num_images: int) -> str:
    """Return the path of the last checkpoint that `pretrain` will write."""
    per_epoch = num_images // settings["DATA.BATCH_SIZE_TOTAL"]
    end = settings.get("SOLVER.MAX_ITER") or settings["SOLVER.EPOCHS"] * per_epoch
    name = f"{end // per_epoch:04d}" + (f"_iter{end:08d}" if end % per_epoch else "")
    return f"{settings['OUTPUT_DIR']}/checkpoint_{name}.pth"


def _commands(
    args: argparse.Namespace, output: Path, checkpoint: str, objects: Objects | None, gpus: int
) -> Iterator[list[str]]:
    processes = ["--num-gpus", str(gpus)] if gpus > 1 else []
    backbone, detector = f"{output}/backbone.pkl", f"{output}/finetune.yaml"
    yield ["pretrain", *processes, "--config-file", f"{output}/pretrain.yaml"]
    yield ["convert", checkpoint, backbone]
    if objects is not None:
        used = {*objects.train, *objects.test}
        own = [f for f in args.dataset if "=" in f and f.partition("=")[0] in used]
        flags = [word for flag in own for word in ("--dataset", flag)]
        yield ["train", *processes, "--config-file", detector, *flags, "MODEL.WEIGHTS", backbone]
        rows = ["--init", "random", "--init", f"moco={backbone}", "--seeds", "3"]
        where = ["--output", f"{output}/runs"]
        yield ["benchmark", *processes, "--tasks", detector, *rows, *flags, *where]
