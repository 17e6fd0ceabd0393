"""From a pre-trained checkpoint to a backbone file for the detector."""

from __future__ import annotations

import argparse
import os

from .options import DESCRIPTIONS


def run(args: argparse.Namespace) -> int:
    """Convert or inspect; returns 0."""
    from ..convert import convert_checkpoint, describe  # imports torch, which takes seconds
    from ..runtime.errors import InputError

    if (args.inspect is None) != (args.src is not None and args.dst is not None):
        raise InputError("Expected SRC to read and DST to write, or --inspect FILE.")
    if args.inspect is not None:
        print(describe(args.inspect, encoder=args.encoder, source_format=args.source_format))
        return 0
    report = convert_checkpoint(
        args.src,
        args.dst,
        to=args.to,
        encoder=args.encoder,
        source_format=args.source_format,
        verify=args.verify,
        arch=args.arch,
        input_channels=args.input_channels,
    )
    print(report.table())
    print(f"{'wrote':<13} {report.output} ({report.to}, sha256 {report.sha256})")
    print(f"Next: {_next_step(report.to, str(report.output), report.arch, args.input_channels)}")
    return 0


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
