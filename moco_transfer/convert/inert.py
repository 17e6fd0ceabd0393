"""Bookkeeping objects of other projects' checkpoints, replaced by empty stand-ins so that the
tensors beside them can be read.

Lightning, mmengine, timm and others keep arguments, paths and histories next to the state dict.
torch's weights-only reader refuses a file with any such class. Each name below resolves to a class
of this module that takes whatever it is given and keeps nothing; the class named is never imported.
A name that is not here is refused, so that a file that asks for a program is refused in words and
not read as if nothing were wrong with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

INERT = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
    "pathlib._local.Path",
    # mmengine's HistoryBuffer names its methods by it; the stand-in looks nothing up
    "builtins.getattr",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
    "typing.Any",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.StringNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.BooleanNode",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "classy_vision.generic.util.Timer",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
)

# These are filled item by item afterwards, which the reader does for a plain dict only.
INERT_DICTS = ("collections.defaultdict",)


@functools.cache
def inert_globals() -> list[tuple[Callable[..., Any], str]]:
    """Return (stand-in, full name) pairs for ``torch.serialization.safe_globals``."""
    return [(_stand_in(name), name) for name in INERT] + [
        (_empty_dict, name) for name in INERT_DICTS
    ]


def _stand_in(full_name: str) -> type:
    def new(cls: type, *_args: Any, **_kwargs: Any) -> Any:
        return object.__new__(cls)

    def ignore(_self: Any, *_args: Any, **_kwargs: Any) -> None:
        return None

    return type(
        "Inert",
        (),
        {
            "__new__": new,
            "__init__": ignore,
            "__setstate__": ignore,
            "__doc__": f"Stands in for {full_name}.",
        },
    )


def _empty_dict(*_args: Any) -> dict:
    return {}
