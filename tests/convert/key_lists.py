"""Key lists of other projects' checkpoints: written down from a file that the project's own code
saved, made small again for a test.

A list is a text in ``key_lists/``: comments that name the project, its commit and how the file came
about; then one line for each leaf of the file. ``/`` goes down into a dict or a list, what follows
is the key as it is, dots included:

    epoch = 3
    state_dict/module.base_encoder.* = q torchvision resnet18         a whole backbone: its role,
    how it is named, what it is model/roi_heads.* = q detectron2 resnet18 res5
    some of its parts only state_dict/module.predictor.0.weight = float32 512x256
    hyper_parameters = object argparse.Namespace pathlib.PosixPath    an object, with the classes
    that its pickle names

A backbone is folded into one line only when its names and shapes are exactly those of that network,
so nothing is lost. Of an optimizer's state and of Lightning's loops the first two entries stand for
all, and no folder's name is kept.

``write_list`` needs the project's code and was run outside of this repository; ``build`` is what
the tests use.
"""

from __future__ import annotations

import ast
import io
import math
import pickle
import pickletools
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from moco_transfer.convert.key_maps import detectron2_name

FOLDER = Path(__file__).with_name("key_lists")
LARGEST_SIDE = (
    4  # of a tensor that is no backbone's: lists have the real shapes, the tests' files small ones
)
NAMINGS = ("torchvision", "sequential", "detectron2")


def names() -> list[str]:
    """Return the names of all lists."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def lines(name: str) -> list[str]:
    """Return the lines of a list, without its comments."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def build(name: str, roles: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Any]:
    """Return a checkpoint with the keys of a list, to be saved with torch.save.

    Args:
        name: Of the list.
        roles: Role ("q", "k") -> torchvision's name -> tensor, of the network that the list names.
    """
    top: dict[str, Any] = {}
    for line in lines(name):
        path, value = line.split(" = ", 1)
        *folders, key = path.split("/")
        node = top
        for folder in folders:
            node = node.setdefault(folder, {})
        if key.endswith("*"):
            role, naming, _arch, *parts = value.split(" ")
            node |= {
                f"{key[:-1]}{own}": tensor
                for own, tensor in _named(roles[role], naming, parts).items()
            }
        else:
            node[key] = _leaf(value)
    return _with_lists(top)


def _leaf(value: str) -> Any:
    if value.startswith("object "):
        classes = [
            full_name
            for full_name in value.split(" ")[1:]
            if not full_name.startswith(("numpy.", "_codecs."))
        ]
        return [
            *map(_instance, classes),
            *([np.zeros(2)] if " numpy." in value else []),
        ]  # numpy's own reconstructors
    match = re.fullmatch(r"((?:b?float|u?int|bool)\d*)((?: \d+(?:x\d+)*)?)", value)
    if match is None:
        return ast.literal_eval(value)
    shape = [min(int(side), LARGEST_SIDE) for side in match[2].strip().split("x") if side]
    return torch.ones(shape).to(getattr(torch, match[1]))


def _instance(full_name: str) -> Any:
    """Return an object whose pickle names a class that need not be installed."""
    module_name, name = full_name.rsplit(".", 1)
    parts = module_name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    module = sys.modules[module_name]
    if (
        full_name == "__builtin__.getattr"
    ):  # protocol 2's name of the built-in, as mmengine's HistoryBuffer names its methods
        return _Named("collections", "getattr")
    if not isinstance(getattr(module, name, None), type):
        setattr(module, name, type(name, (), {"__module__": module_name, "__qualname__": name}))
    return _Named(module_name, name)


class _Named:
    """Pickles as an empty object of another class."""

    def __init__(self, module: str, name: str) -> None:
        self.where = module, name

    def __reduce__(self) -> tuple:
        if self.where[1] == "getattr":
            return getattr, (OrderedDict, "keys")
        return getattr(sys.modules[self.where[0]], self.where[1]), ()


def _with_lists(node: Any) -> Any:
    """Turn dicts with the keys [0], [1] … into lists, and keys such as <3> into integers."""
    if not isinstance(node, dict):
        return node
    made = {
        int(key[1:-1]) if re.fullmatch(r"<\d+>", key) else key: _with_lists(value)
        for key, value in node.items()
    }
    return (
        list(made.values())
        if made and all(re.fullmatch(r"\[\d+\]", str(key)) for key in made)
        else made
    )


def _named(state: Mapping[str, Any], naming: str, parts: list[str]) -> dict[str, Any]:
    """Return a backbone under the names of a naming, less the classifier; of ``parts`` (stem, res2
    …) alone where there are any.
    """
    own = {
        _renamed(name, naming): value for name, value in state.items() if not name.startswith("fc.")
    }
    return {name: value for name, value in own.items() if not parts or name.split(".")[0] in parts}


def _renamed(name: str, naming: str) -> str:
    if naming == "torchvision":
        return name
    if naming == "detectron2":
        return detectron2_name(name)
    head, rest = name.split(".", 1)
    return f"{CHILDREN.index(head)}.{rest}"


CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")


def write_list(
    name: str, content: Mapping[str, Any], *, header: str, roles: Mapping[str, str]
) -> None:
    """Write the list of a checkpoint.

    Args:
        name: Of the list.
        content: What the project's code saved.
        header: Project, commit, what was saved by which code.
        roles: Path with prefix (``state_dict/module.encoder_q.``) -> "q" or "k", for every backbone
            in the file; "q res5" for a part.
    """
    leaves = dict(_leaves(content, ""))
    rows = []
    folded: set[str] = set()
    for prefix, role in roles.items():
        role, *parts = role.split(" ")
        naming, arch, own = _recognise(
            {p[len(prefix) :]: v for p, v in leaves.items() if p.startswith(prefix)}, parts
        )
        first = next(
            path for path in leaves if path.startswith(prefix) and path[len(prefix) :] in own
        )
        leaves = {
            (f"{prefix}*" if path == first else path): value for path, value in leaves.items()
        }
        folded |= {f"{prefix}{key}" for key in own}
        leaves[f"{prefix}*"] = " ".join([role, naming, arch, *parts])
    for path, value in leaves.items():
        if path not in folded:
            rows.append(f"{path} = {value if path.endswith('*') else _text(value)}")
    comments = "".join(f"# {line}\n" for line in header.strip().splitlines())
    (FOLDER / f"{name}.txt").write_text(comments + "\n".join(rows) + "\n", encoding="utf-8")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = (
        list(node.items())
        if isinstance(node, Mapping)
        else [(f"[{i}]", item) for i, item in enumerate(node)]
    )
    is_state = all(isinstance(key, int) for key, _ in items) or (
        isinstance(node, (list, tuple)) and "ptimizer" in path
    )
    if is_state or path.startswith("loops/"):
        items = items[:2]
    for key, value in items:
        here = f"{path}{f'<{key}>' if isinstance(key, int) else key.replace('/', '_')}"
        if type(value).__name__ in ("dict", "OrderedDict", "list", "tuple") and value:
            yield from _leaves(value, f"{here}/")
        else:
            yield here, value


def _recognise(tensors: Mapping[str, Any], parts: list[str]) -> tuple[str, str, set[str]]:
    for arch in ("resnet18", "resnet50"):
        with torch.device("meta"):
            state = torchvision.models.get_model(arch).state_dict()
        for naming in NAMINGS:
            wanted = {name: tensor.shape for name, tensor in _named(state, naming, parts).items()}
            if wanted and all(
                getattr(tensors.get(name), "shape", None) == shape for name, shape in wanted.items()
            ):
                return naming, arch, set(wanted)
    raise ValueError(f"no ResNet under this prefix: {list(tensors)[:5]}")


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return (
            f"{str(value.dtype).removeprefix('torch.')} {'x'.join(map(str, value.shape))}".strip()
        )
    if value is None or type(value) in (bool, int, float, str, dict, list, tuple):
        short = ("" if value.startswith("/") else value[:40]) if isinstance(value, str) else value
        return repr(short if not isinstance(value, float) or math.isfinite(value) else 0.0)
    return "object " + " ".join(_globals(value))


def _globals(value: Any) -> list[str]:
    """Return the classes and functions that an object's pickle names."""
    buffer = io.BytesIO()
    pickle.dump(value, buffer, protocol=2)
    found = [
        str(argument).replace(" ", ".")
        for op, argument, _ in pickletools.genops(buffer.getvalue())
        if op.name == "GLOBAL"
    ]
    return list(dict.fromkeys(found))
