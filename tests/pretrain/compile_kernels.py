"""Compile every Triton kernel of the package for two GPUs, and print the size of each, bytes."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from moco_transfer.data.views import view_colours_triton
from moco_transfer.pretrain.split_norm import triton_kernels

CONSTANTS = {
    triton_kernels: {"G": 8, "STEPS": 8, "ROWS": 64, "CHANNELS": 64, "SLICES": 256},
    view_colours_triton: {
        **{"STEPS": 5, "PIXELS": 1024, "BLOCKS": 64},
        **{"REACH": 6, "ALONG_X": True, "VALUES": 1024},
    },
}
TYPES = dict.fromkeys("N pixels P C LENGTH size width blocks first".split(), "i32")
TYPES |= dict.fromkeys("x y dy dx".split(), "*bf16") | {"views": "*u8", "eps": "fp32"}
TYPES |= {f"{c}_{s}": "fp32" for c in ("red", "green", "blue") for s in ("by", "plus")}
# Called by the others, not launched.
HELPERS = {"_group", "_slice", "_block", "_to_grey", "_clip", "_hue_channel", "_step"}

for capability in (80, 90):
    for module, constants in CONSTANTS.items():
        for name, kernel in vars(module).items():
            if not isinstance(kernel, JITFunction) or name in HELPERS:
                continue
            fixed = {a: constants[a] for a in kernel.arg_names if a in constants}
            types = {
                a: "constexpr" if a in fixed else TYPES.get(a, "*fp32") for a in kernel.arg_names
            }
            target = GPUTarget("cuda", capability, 32)
            made = triton.compile(ASTSource(kernel, types, fixed), target=target)
            print(capability, name, len(made.asm["cubin"]))
