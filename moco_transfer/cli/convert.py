"""From a pre-trained checkpoint to a backbone file for the detector."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import DESCRIPTIONS

if TYPE_CHECKING:
    from ..convert import ConversionReport


def run(args: argparse.Namespace) -> int:
    """Convert or inspect; returns 0."""
    from ..convert import convert_checkpoint, inspect  # imports torch, which takes seconds
    from ..convert.huggingface import WEIGHTS
    from ..runtime.errors import InputError

    if (args.inspect is None) != (args.src is not None and args.dst is not None):
        raise InputError("Expected SRC to read and DST to write, or --inspect FILE.")
    if args.inspect is not None:
        args.facts = inspect(args.inspect, encoder=args.encoder, source_format=args.source_format)
        print(args.facts.table())
        return 0
    if args.json:
        raise InputError("--json is for --inspect FILE.")
    is_hub = args.to == "hub"
    if not is_hub and (args.results or args.license or args.push):
        raise InputError("--results, --license and --push are for the model card: --to hub FOLDER.")
    if args.to == "onnx":
        return _write_onnx(args)
    report = convert_checkpoint(
        args.src,
        os.path.join(args.dst, WEIGHTS) if is_hub else args.dst,
        to="timm" if is_hub else args.to,
        encoder=args.encoder,
        source_format=args.source_format,
        verify=args.verify,
        arch=args.arch,
        input_channels=args.input_channels,
    )
    print(report.table())
    print(f"{'wrote':<13} {report.output} ({report.to}, sha256 {report.sha256})")
    if is_hub:
        _write_hub(args, report)
        return 0
    print(f"Next: {_next_step(report.to, str(report.output), report.arch, args.input_channels)}")
    return 0


def _write_onnx(args: argparse.Namespace) -> int:
    """Write a trained detector as ONNX, and check it."""
    from ..finetune.predict.onnx_file import write_onnx
    from ..runtime.errors import InputError

    if args.encoder != "q" or args.source_format or args.arch or args.input_channels != 3:
        raise InputError("--encoder, --from, --arch and --input-channels are for backbones.")
    checked = write_onnx(args.src, args.dst, verify=args.verify is not False)
    print(f"{'checked':<13} {checked}\n{'wrote':<13} {args.dst} (onnx)")
    print(f"Next: onnxruntime.InferenceSession({args.dst!r}); docs/engines.md has an example")
    return 0


def _write_hub(args: argparse.Namespace, report: ConversionReport) -> None:
    """Write config.json and the model card, and upload the folder if asked to."""
    from ..convert.hub import push, write_hub_files
    from ..convert.read import read_checkpoint

    folder = report.output.parent
    top = read_checkpoint(report.source).top
    config = top["config"] if isinstance(top.get("config"), str) else ""
    files = [file for path in args.results for file in sorted(Path(path).rglob("results.json"))]
    features = list(filter(None, map(_feature_line, files)))
    tables = _transfer_tables(args.results) if len(features) < len(files) else ""
    more: dict[str, Any] = {"config": config, "features": features, "tables": tables}
    write_hub_files(folder, report.stamp, licence=args.license, **more)
    print(f"Next: timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")
    if args.push:
        print(f"Uploaded: {push(folder, args.push)}")


def _feature_line(file: Path) -> dict[str, str] | None:
    """Return the line of a result of ``knn`` or ``linear``, None for another."""
    record = json.loads(file.read_text(encoding="utf-8"))
    kind = str(record.get("schema")).removeprefix("moco_transfer.").split("/")[0]
    if kind not in ("knn", "linear"):
        return None
    text = f"top-1 {record['top1']:.2f} %, top-5 {record['top5']:.2f} %"
    return {"name": {"knn": "kNN", "linear": "linear classifier"}[kind], "text": text}


def _transfer_tables(paths: Sequence[str]) -> str:
    from ..report import build_tables, read_runs, render_markdown
    from ..report.keep import without_places

    records, problems = read_runs(paths)
    return without_places(render_markdown(build_tables(records), problems))


def _next_step(to: str, output: str, arch: str, channels: int = 3) -> str:
    model = f"torchvision.models.{arch}()"
    if arch in ("resnext50_32x8d", "resnet50_w2x", "resnet50_w4x"):
        model = f"moco_transfer.models.build_encoder({arch!r}, num_classes=1)"
    if channels != 3:
        stem = "model.conv1.out_channels, 7, 2, 3, bias=False"
        model = f"{model}; model.conv1 = torch.nn.Conv2d({channels}, {stem})"
    timm = "'resnext50_32x4d', base_width=8" if arch == "resnext50_32x8d" else repr(arch)
    timm += f", in_chans={channels}" * (channels != 3)
    folder = os.path.dirname(output) or "."
    names = {"output": output, "folder": folder, "arch": arch, "model": model, "timm": timm}
    return str(DESCRIPTIONS["convert"]["next"][to].format(**names, config=_config(arch)))


def _config(arch: str) -> str:
    """Return a VOC config of the package for a plain ResNet of this depth, or a placeholder."""
    from ..config import available

    wanted = f"_R_{arch.removeprefix('resnet')}_"  # the configs are for plain ResNets
    names = (n for n in sorted(available()) if n.startswith("pascal_voc_") and "_msra" not in n)
    return next((name for name in names if wanted in name), "YOUR_CONFIG.yaml")
