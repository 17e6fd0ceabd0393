"""Convert a pre-trained checkpoint into a backbone file for the detector, with every tensor
accounted for.

Reads SRC, recognises whose checkpoint it is by its keys, and writes DST only when no tensor of the
backbone is missing, left over or misshapen and both files compute the same features of an image.
Otherwise it says what is wrong, ends with status 2 and leaves DST as it was. No code inside SRC is
ever run.
"""

from __future__ import annotations

import argparse

FORMATS = (
    "moco, moco_v3, torchvision, timm, lightly, solo_learn, vissl, openselfsup (and mmselfsup),"
    " densecl, swav, byol, simsiam, dino, detectron2, caffe2, backbone, encoder"
)

EPILOG = f"""examples:
  A checkpoint of moco-transfer pretrain, or an official MoCo v1/v2 file, for Detectron2 and for moco-transfer train:
    moco-transfer convert out/moco_v2/checkpoint_0200.pth out/moco_v2/backbone.pkl
  The momentum (key) encoder instead of the trained one:
    moco-transfer convert moco_v2_800ep_pretrain.pth.tar backbone_k.pkl --encoder k
  Published weights by name, downloaded once and checked against their hash (a name can be MODEL.WEIGHTS as well):
    moco-transfer convert moco_v2_800ep backbone.pkl
    moco-transfer convert ResNet50_Weights.IMAGENET1K_V2 supervised.pkl
  Back to torchvision, or on to timm:
    moco-transfer convert backbone.pkl resnet50.pth --to torchvision
    moco-transfer convert backbone.pkl resnet50.safetensors --to timm
  A run of ours for the official tools (main_lincls.py, convert-pretrain-to-detectron2.py): both encoders, heads, queue:
    moco-transfer convert out/moco_v2/checkpoint_0200.pth official.pth.tar --to moco
  The backbone of a fine-tuned detector:
    moco-transfer convert out/voc/moco/checkpoint_0024000.pth backbone.pth --to torchvision
  What a file is, what it was trained on, and what it covers:
    moco-transfer convert --inspect backbone.pkl

names of published weights:
  moco_v1_200ep, moco_v2_200ep, moco_v2_800ep, torchvision/R-50, MSRA/R-50, torchvision's own (ResNet50_Weights.IMAGENET1K_V2),
  detectron2://... and any http(s) address. MOCO_TRANSFER_MIRROR names a folder or an address to ask instead of their hosts, with
  the files under the same paths; FVCORE_CACHE is where downloads are kept.

layouts (--from): {FORMATS};
  or the prefix of the encoder's keys in the file, such as state_dict.tower.visual.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``convert``."""
    parser.add_argument(
        "src", nargs="?", metavar="SRC", help="checkpoint to read, or a name of published weights"
    )
    parser.add_argument(
        "dst", nargs="?", metavar="DST", help="file to write; its folder is made when it is missing"
    )
    parser.add_argument(
        "--to",
        default="detectron2",
        metavar="TARGET",
        help=(
            "detectron2 (.pkl, default), torchvision (.pth), timm (.safetensors), moco (.pth.tar,"
            " for the tools of facebookresearch/moco)"
        ),
    )
    parser.add_argument(
        "--encoder",
        default="q",
        choices=("q", "k"),
        help="q: the trained encoder (default); k: its momentum copy",
    )
    parser.add_argument(
        "--from",
        dest="source_format",
        metavar="FORMAT",
        help="the layout of SRC, when its keys can be read in two ways",
    )
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help="the network, e.g. resnet50, instead of the one that its shapes tell",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=(
            "compare the features res2 to res5 of both files, and write nothing when they differ"
            " (default: yes up to 1 GB)"
        ),
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="the image to compare the features of, instead of a generated one",
    )
    parser.add_argument("--inspect", metavar="FILE", help="say what FILE is and write nothing")


def run(args: argparse.Namespace) -> int:
    """Convert or inspect; returns the exit status."""
    # torch takes seconds to import; --help need not wait for it.
    from ..convert import convert_checkpoint, describe
    from ..runtime.errors import InputError

    if args.inspect is not None:
        if args.src is not None:
            raise InputError("--inspect takes one file and writes nothing: leave SRC and DST out.")
        print(describe(args.inspect, encoder=args.encoder, source_format=args.source_format))
        return 0
    if args.image is not None and args.verify is False:
        raise InputError(
            "--image names what to compare the features of, and --no-verify compares nothing:"
            " leave one of them out."
        )
    if args.src is None or args.dst is None:
        raise InputError(
            "Expected SRC and DST: the checkpoint to read and the file to write (or --inspect"
            " FILE)."
        )
    report = convert_checkpoint(
        args.src,
        args.dst,
        to=args.to,
        encoder=args.encoder,
        source_format=args.source_format,
        verify=args.image or args.verify,
        arch=args.arch,
    )
    print(report.table())
    print(f"{'wrote':<13} {report.output} ({report.to}, sha256 {report.sha256})")
    print(_next_step(report.to, report.output, report.arch))
    return 0


def _next_step(to: str, output: object, arch: str) -> str:
    if to == "detectron2":
        return (
            f"Next: moco-transfer train --config-file {_config(arch)} MODEL.WEIGHTS {output}"
            f" OUTPUT_DIR out/{arch}"
        )
    if to == "moco":
        return (
            f"Next, in a checkout of facebookresearch/moco: python main_lincls.py -a {arch}"
            f" --pretrained {output} … or python detection/convert-pretrain-to-detectron2.py"
            f" {output} backbone.pkl"
        )
    if to == "torchvision":
        load = f"model.load_state_dict(torch.load({str(output)!r}, weights_only=True))"
        return (
            f"Next: model = {_TORCHVISION.get(arch, f'torchvision.models.{arch}()')}; model.fc ="
            f" torch.nn.Identity(); {load}"
        )
    name, width = ("resnext50_32x4d", "base_width=8, ") if arch == "resnext50_32x8d" else (arch, "")
    return (
        f"Next: model = timm.create_model({name!r}, {width}num_classes=0,"
        f" checkpoint_path={str(output)!r})"
    )


# How to make the networks that torchvision has no function for.
_TORCHVISION = {
    "resnext50_32x8d": "torchvision.models.resnet50(groups=32, width_per_group=8)",
    "resnet50_w2x": "moco_transfer.models.build_encoder('resnet50_w2x', num_classes=1)",
    "resnet50_w4x": "moco_transfer.models.build_encoder('resnet50_w4x', num_classes=1)",
}


def _config(arch: str) -> str:
    """Return the name of a VOC config for the depth of ``arch`` that comes with the package, or
    what to look for.
    """
    from ..config import available

    depth = arch.removeprefix("wide_").removeprefix("resnet").removeprefix("resnext").split("_")[0]
    names = [
        name
        for name in sorted(available())
        if name.startswith("pascal_voc_") and f"_R_{depth}_" in name and "_msra" not in name
    ]
    is_plain = arch == f"resnet{depth}"  # the configs are for plain ResNets
    return names[0] if names and is_plain else "YOUR_CONFIG.yaml"
