#!/usr/bin/env python
"""Count the operators that a pre-training step starts: on a GPU each is a launch or more.

    python tools/count_launches.py [KEY VALUE ...]

The step is the one that `moco-transfer pretrain` takes, of moco_v2_R_50_200ep in bf16 (batch 256 on
one device, 8 groups of batch statistics), on random views of 32 px on a CPU: the number does not
depend on the images' size. Views of tensors and memory are not counted. An operator of this project
counts as the kernels that it launches on a GPU, any other as one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from moco_transfer.config import load_pretrain_config  # noqa: E402
from moco_transfer.data.views.augmentation import RECIPES, draw_parameters  # noqa: E402
from moco_transfer.data.views.view_colours import colour_row  # noqa: E402
from moco_transfer.pretrain.plan import PretrainPlan, plan_pretrain  # noqa: E402
from moco_transfer.pretrain.run import build_run, step  # noqa: E402

SETTINGS = "DATA.IMAGE_SIZE 32 TRAIN.DEVICE cpu TRAIN.PRECISION bf16".split()
KERNELS = {"split_batch_norm": 3, "split_batch_norm_backward": 3, "finish_views": 4}
_MEMORY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Launches(TorchDispatchMode):
    """Counts operators by name in ``found``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count one operator and run it."""
        name = func.overloadpacket.__name__
        aliases = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and name not in _MEMORY:
            self.found[name] += KERNELS.get(name, 1)
        return func(*args, **(kwargs or {}))


class NoImages:
    """As many as ImageNet has, none of which is read."""

    class_names = ()
    pixel_change = ""

    def __len__(self) -> int:
        return 1_281_167


def batch_of(plan: PretrainPlan) -> dict[str, torch.Tensor]:
    """Return random views with drawn colours, as a data worker makes them."""
    rng, n, recipe = (
        np.random.default_rng(0),
        plan.batch_size_total,
        RECIPES[plan.view_maker.recipe],
    )
    num_views, size = plan.view_maker.num_views, plan.view_maker.size
    generator = torch.Generator().manual_seed(0)
    shape = num_views, n, size, size, 3
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    batch = {"views": views.permute(0, 1, 4, 2, 3), "index": torch.arange(n)}
    batch["label"] = torch.zeros(n, dtype=torch.int64)
    if plan.view_maker.is_fast:
        drawn = [draw_parameters(rng, 400, 500, recipe, (0.2, 1.0)) for _ in range(num_views * n)]
        rows = [colour_row(parameters, recipe.grey_first) for parameters in drawn]
        batch["colours"] = torch.tensor(rows).view(num_views, n, -1)
    return batch


def count(overrides: list[str]) -> collections.Counter[str]:
    """Return the launches of a step by operator."""
    plan = plan_pretrain(
        load_pretrain_config("moco_v2_R_50_200ep", SETTINGS + overrides), source=NoImages()
    )
    run, batch = build_run(plan), batch_of(plan)
    run.model.train()
    step(run, batch)  # the first makes the optimiser's state
    with Launches() as launches:
        step(run, batch)
    return launches.found


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to change")
    found = count(parser.parse_args().overrides)
    for name, number in found.most_common(20):
        print(f"{number:6}  {name}")
    print(json.dumps({"launches": found.total(), "operators": len(found)}))


if __name__ == "__main__":
    main()
