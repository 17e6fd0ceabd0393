"""The examples of docs/own-loops.md, executed in order, have the losses of ``pretrain``.

Seen red under: views of an index drawn from (0, index); the seed not handed to the views;
``finish`` giving the second view first; ``collate`` joining along the wrong dimension; the page
without "iteration" in its seed; queries enqueued in place of keys.
"""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from generated_images import write_pool
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from moco_transfer.cli.main import main
from moco_transfer.config import load_pretrain_config
from moco_transfer.data.views.order import EpochBatches
from moco_transfer.data.views.two_views import TwoViews, collate
from moco_transfer.pretrain import MoCo
from moco_transfer.pretrain.info_nce import info_nce
from moco_transfer.pretrain.plan import plan_pretrain
from moco_transfer.pretrain.run import pretrain
from moco_transfer.pretrain.shuffle import SplitBatchNorm2d
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.seed import seed_everything

from .two_processes import run_in_two_processes

# What makes the page's loops long, and what it is here.
SHORT = {
    "size=96": "size=32",
    "(images, 64,": "(images, 16,",
    "batch_size_total=64": "batch_size_total=16",
    "group_size=32": "group_size=8",
    "num_workers=2, ": "",
}
SMALL = "DATA.IMAGE_SIZE 32 DATA.BATCH_SIZE_TOTAL 16 MOCO.BN_GROUP_SIZE 8 SOLVER.BASE_LR 0.12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder with 40 images: two batches and a half."""
    root = tmp_path_factory.mktemp("loops")
    write_pool(root / "images", count=40, size=40, seed=0)
    return root


def losses_of(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def page(folder, repository) -> dict:
    """The names that the page's examples leave, and ``command``, its command line."""
    text = (repository / "docs" / "own-loops.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict = {"command": re.search(r"^    moco-transfer (pretrain .*)", text, re.M)[1]}
    unused = set(SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks:
            for long, short in SHORT.items():
                unused -= {long} if long in block else set()
                block = block.replace(long, short)
            exec(block, names)
    assert len(blocks) == 3 and not unused
    return names


def test_example__has_the_losses_of_pretrain(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(shlex.split(f"{page['command']} {SMALL}")) == 0
    expected = losses_of(folder / "out" / "same")
    assert page["losses"] == expected and len(set(expected)) == 4


def test_example__writes_a_checkpoint_that_convert_takes(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["convert", "moco.pth", "backbone.pkl", "--no-verify"]) == 0


def test_parts__make_the_loss_and_the_queue_of_moco(page):
    """Against ``MoCo.forward``, with a momentum of 1."""
    model: MoCo = page["model"].eval()
    page["queue"] = queue = model.queue.clone()
    page["queue_ptr"] = pointer = model.queue_ptr.clone()
    im_q, im_k = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last).chunk(2)
    model.momentum = 1.0
    torch.manual_seed(1)
    loss = page["step_loss"](model.encoder_q, model.encoder_k, im_q, im_k)
    torch.manual_seed(1)
    assert torch.equal(loss, info_nce(model(im_q, im_k)[0]))
    assert torch.equal(queue, model.queue) and torch.equal(pointer, model.queue_ptr)


def in_process(rank: int, images: str, out: str) -> list[list[float]]:
    """Return this process's losses of the page's loop, and the means of ``pretrain``'s."""
    dataset = TwoViews(images, size=32)
    places = {"rank": rank, "world_size": 2}
    order = EpochBatches(len(dataset), batch_size_total=16, epochs=2, seed=0, **places)
    norm = partial(SplitBatchNorm2d, group_size=4)
    seed_everything(0, "weights")
    encoder = partial(torchvision.models.resnet18, norm_layer=norm)
    model = MoCo(encoder, queue_size=256, momentum=0.99, temperature=0.2, mlp=True)
    model.to(memory_format=torch.channels_last)
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    how = {"momentum": 0.9, "weight_decay": 1e-4, "fused": True}
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), 0.0075, **how)
    losses = []
    loader = DataLoader(dataset, batch_sampler=order, collate_fn=collate)
    for iteration, batch in enumerate(loader):
        seed_everything(0, "iteration", iteration)
        loss = info_nce(parallel(*dataset.finish(batch))[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    words = f"DATA.ROOT {images} OUTPUT_DIR {out} SOLVER.EPOCHS 2 SOLVER.SCHEDULE step SOLVER.STEPS"
    words += f" () TRAIN.PRECISION fp32 TRAIN.LOG_PERIOD 1 DATA.NUM_WORKERS 0 LOGGERS () {SMALL}"
    words = words.replace("GROUP_SIZE 8", "GROUP_SIZE 4")
    pretrain(plan_pretrain(load_pretrain_config("moco_v2_R_18_96px", words.split())))
    return [losses, losses_of(Path(out))]


@pytest.mark.slow
def test_example__in_two_processes(folder, tmp_path):
    images, out = str(folder / "images"), str(tmp_path / "out")
    (first, logged), (second, _) = run_in_two_processes(in_process, tmp_path, images, out)
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert len(means) == 4 and first != second
    assert means == pytest.approx(logged, rel=1e-6)


def test_dataset__draws_anew_and_repeats_with_the_seed(folder):
    dataset = TwoViews(folder / "images", size=32)

    def views(*, workers: int = 0, images=dataset) -> list[torch.Tensor]:
        torch.manual_seed(0)
        loader = DataLoader(images, 10, num_workers=workers, collate_fn=collate)
        return [dataset.finish(batch)[0] for _ in range(2) for batch in loader]

    first, again = views(), views()
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first[:4], first[4:]))  # the second epoch
    workers = views(workers=2)
    assert not any(torch.equal(a, b) for i, a in enumerate(workers) for b in workers[:i])
    assert len(views(images=Subset(dataset, range(12)))) == 4


def test_collate__joins_single_images(folder):
    dataset = TwoViews(folder / "images", size=32, seed=3)
    places = [(0, 5), (1, 5), (0, 6)]
    whole = dataset.__getitems__(places)[0]
    joined = collate([dataset[place] for place in places])
    for name in ("views", "colours", "label", "index"):
        assert torch.equal(joined[name], whole[name]), name
    assert all(map(torch.equal, dataset.finish(joined), dataset.finish(whole)))
    assert joined["index"].tolist() == [5, 5, 6]
    other = TwoViews(folder / "images", size=32, seed=4).__getitems__(places)[0]
    assert not torch.equal(other["views"], whole["views"])


def test_dataset__says_what_is_wrong(folder, tmp_path):
    with pytest.raises(InputError, match=r"'v3'.*v1, v2"):
        TwoViews(folder / "images", augmentation="v3")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    dataset = TwoViews(tmp_path, size=32)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        dataset[0]
