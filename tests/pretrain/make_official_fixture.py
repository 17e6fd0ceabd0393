"""Write fixtures/official_moco.json: the official MoCo's losses over 20 steps on the CPU, and its
state-dict layout.

    python tests/pretrain/make_official_fixture.py PATH_OF_facebookresearch/moco_AT_7397dfe

The official model asks for CUDA and DistributedDataParallel; here ``.cuda()`` stays on the CPU and
the processes speak gloo. It also loads our state dict there, and saves one of its own that is
loaded here, both strictly.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from pretrain.official_case import QUEUE_SIZE, VARIANTS, SmallNet, fill, run_steps  # noqa: E402
from pretrain.two_processes import run_in_two_processes  # noqa: E402


def official_model(path: str, variant: str, encoder=SmallNet) -> torch.nn.Module:
    sys.path.insert(0, path)
    import moco.builder

    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
    settings = VARIANTS[variant]
    model = moco.builder.MoCo(
        encoder, K=QUEUE_SIZE, m=0.999, T=settings["temperature"], mlp=settings["mlp"]
    ).double()
    fill(model)
    return model


def losses_of(rank: int, path: str, world_size: int) -> dict[str, list[float]]:
    group = None
    if world_size == 1:  # the official code needs a group; each process is one of its own
        groups = [torch.distributed.new_group([r]) for r in range(2)]
        group = groups[rank]
        torch.distributed.get_world_size = lambda *a, **k: 1
        torch.distributed.get_rank = lambda *a, **k: 0
        for name in ("all_gather", "broadcast"):
            original = getattr(torch.distributed, name)
            setattr(
                torch.distributed,
                name,
                lambda *a, original=original, **k: _alone(original, rank, group, *a, **k),
            )
    found = {}
    for variant in VARIANTS:
        model = official_model(path, variant)
        forward = model if world_size == 1 else torch.nn.parallel.DistributedDataParallel(model)
        found[variant] = run_steps(
            model,
            forward,
            F.cross_entropy,
            rank=0 if world_size == 1 else rank,
            world_size=world_size,
        )
    return found


def _alone(original, rank, group, *args, **kwargs):
    kwargs["group"] = group
    if "src" in kwargs:
        kwargs["src"] = rank
    return original(*args, **kwargs)


def main() -> None:
    path = sys.argv[1]
    out: dict = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "source": "facebookresearch/moco@7397dfe moco/builder.py",
    }
    for world_size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            out[f"losses_{world_size}"] = run_in_two_processes(
                losses_of, Path(folder), path, world_size
            )[:world_size]
    resnet = torchvision.models.resnet18
    model = official_model(path, "v2", resnet)
    out["layout"] = {
        name: [list(value.shape), str(value.dtype)]
        for name, value in model.float().state_dict().items()
    }

    from moco_transfer.pretrain.moco import MoCo

    ours = MoCo(resnet, queue_size=QUEUE_SIZE, temperature=0.2, mlp=True)
    model.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(official_model(path, "v2", resnet).state_dict(), strict=True)
    print("loads there and here, strictly")
    (HERE / "fixtures" / "official_moco.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
