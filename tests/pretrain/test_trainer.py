"""The loop itself, without BN: one batch, its micro-batches, and two processes with half of it each
end with the same numbers.

Whole runs of ``run.train``: optimiser with momentum and weight decay, schedule, checkpoint,
metrics.json. Without BN mathematics asks for equality; what is left is rounding. End to end takes
no micro-batches: they would change its negatives.

Seen red under: a micro-batch's loss not weighted; gradients averaged over processes in the first
    micro-batch instead of the last; a micro-batch
taken for a step of its own; the bank's negatives drawn for the part's own images alone; lr not
set.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from moco_transfer.pretrain.end_to_end import EndToEnd
from moco_transfer.pretrain.memory_bank import MemoryBank
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.run import LossModule, Pretraining, train
from moco_transfer.pretrain.supervised import Supervised
from moco_transfer.pretrain.watch import UnreadableImages, Watch
from moco_transfer.runtime.device import Compute
from moco_transfer.runtime.distributed import get_rank, get_world_size
from moco_transfer.runtime.metrics import MetricsFile
from moco_transfer.runtime.progress import Meter

from .tiny_encoder import TinyEncoder
from .two_processes import run_in_two_processes

BATCH, STEPS, PICTURES, CLASSES = 8, 5, 20, 3
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
LR, MOMENTUM, WEIGHT_DECAY = 0.3, 0.9, 0.01
KINDS = ["moco", "moco_symmetric", "memory_bank", "end_to_end", "supervised"]


class Encoder(TinyEncoder):
    """In float64, so that equal means equal."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "memory_bank":
        model = MemoryBank(Encoder, num_images=PICTURES, dim=5, num_negatives=7, temperature=0.2)
    elif kind == "end_to_end":
        model = EndToEnd(Encoder, dim=5, temperature=0.2)
    elif kind == "supervised":
        model = Supervised(Encoder, num_classes=CLASSES)
    else:
        model = MoCo(
            Encoder,
            dim=5,
            queue_size=11,
            momentum=0.9,
            temperature=0.2,
            symmetric=kind == "moco_symmetric",
        )
    return model.double()


def batch_of(step: int) -> dict:
    """The whole batch of a step; its images 2 and 5 are the same one, as when an unreadable
    image is replaced.

    Of two processes with two micro-batches each the first sees image 2 in its second, the other
    image 5 in its first.
    """
    generator = torch.Generator().manual_seed(100 + step)
    index = torch.randperm(PICTURES, generator=generator)[:BATCH]
    index[5] = index[2]
    return {
        "views": torch.randint(0, 256, (2, BATCH, 3, 2, 2), generator=generator, dtype=torch.uint8),
        "label": torch.randint(0, CLASSES, (BATCH,), generator=generator),
        "index": index,
        "unreadable": [],
        "given_up": 0,
    }


def own_part(batch: dict) -> dict:
    n = BATCH // get_world_size()
    own = slice(get_rank() * n, (get_rank() + 1) * n)
    return batch | {
        "views": batch["views"][:, own],
        "label": batch["label"][own],
        "index": batch["index"][own],
    }


def lr_at(iteration: int) -> float:
    return LR / (1 + iteration)


def run(kind: str, accumulate: int, folder: Path) -> Pretraining:
    model, cpu = build(kind), torch.device("cpu")
    loss = model.loss
    if get_world_size() > 1:
        loss = nn.parallel.DistributedDataParallel(LossModule(model), broadcast_buffers=False)
    plan = SimpleNamespace(
        mechanism=kind.split("_symmetric")[0],
        device=cpu,
        compute=Compute(cpu),
        channels_last=False,
        lr_at=lr_at,
        iterations_per_epoch=STEPS,
        max_iterations=STEPS,
        epochs=1,
        accumulate=accumulate,
        batch_size_total=BATCH,
        queue_size=11,
        num_negatives={"memory_bank": 7, "end_to_end": BATCH - 1, "supervised": 0}.get(kind, 11),
        pixels=(MEAN, STD),
        seed=7,
        header={},
        output_dir=folder,
        log_period=1,
        checkpoint_periods=[STEPS],
        knn=None,
        keep_checkpoints=0,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    made = Pretraining(
        plan,
        model,
        loss,
        torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        torch.amp.GradScaler("cpu", enabled=False),
        Meter(cpu),
        UnreadableImages(PICTURES, 0.0, []),
        Watch(negatives=0, patience_iterations=STEPS),
    )
    metrics = MetricsFile(folder / "metrics.json") if get_rank() == 0 else None
    assert train(made, [own_part(batch_of(s)) for s in range(STEPS)], metrics)
    return made


def outcome(kind: str, accumulate: int, folder: Path) -> dict:
    """Train; return what the run ends with and, on rank 0, what it logged."""
    folder.mkdir(parents=True, exist_ok=True)
    made = run(kind, accumulate, folder)
    momenta = [state["momentum_buffer"] for state in made.optimizer.state.values()]
    logged = []
    if get_rank() == 0:
        logged = [
            json.loads(line)["loss"] for line in (folder / "metrics.json").read_text().splitlines()
        ]
    return {"state": made.model.state_dict(), "momenta": momenta, "losses": logged}


def in_process(rank: int, folder: str) -> dict:
    return {
        f"{kind}/{accumulate}": outcome(kind, accumulate, Path(folder) / kind / str(accumulate))
        for kind in KINDS
        for accumulate in ([1] if kind == "end_to_end" else [1, 2, 4])
    }


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return run_in_two_processes(in_process, folder, str(folder))


def assert_equal(found: dict, expected: dict) -> None:
    assert found["state"].keys() == expected["state"].keys()
    for name, value in expected["state"].items():
        torch.testing.assert_close(
            found["state"][name],
            value,
            rtol=1e-9,
            atol=1e-11,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    torch.testing.assert_close(found["momenta"], expected["momenta"], rtol=1e-9, atol=1e-11)
    if found["losses"]:
        assert found["losses"] == pytest.approx(
            expected["losses"], rel=1e-6
        )  # means travel in float32


@pytest.mark.parametrize("kind", KINDS)
def test_train__two_processes_equal_one_with_the_whole_batch(kind, two_processes, tmp_path):
    expected = outcome(kind, 1, tmp_path)
    assert len(expected["losses"]) == STEPS and all(
        math.isfinite(loss) for loss in expected["losses"]
    )
    assert two_processes[0][f"{kind}/1"]["losses"]
    for found in two_processes:
        assert_equal(found[f"{kind}/1"], expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "end_to_end"])
def test_train__micro_batches_equal_one_batch_in_one_and_in_two_processes(
    kind, two_processes, tmp_path
):
    expected = outcome(kind, 1, tmp_path / "1")
    for accumulate in (2, 4, 8):
        assert_equal(outcome(kind, accumulate, tmp_path / str(accumulate)), expected)
    for found in two_processes:
        for accumulate in (2, 4):
            assert_equal(found[f"{kind}/{accumulate}"], expected)


def test_train__supervised_equals_a_plain_loop(tmp_path):
    """Softmax, cross-entropy, its gradient and SGD with momentum and weight decay by hand."""
    encoder = build("supervised").encoder_q
    names = [name for name, _ in encoder.named_parameters()]
    value = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in value.items()}
    mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (MEAN, STD))
    losses = []
    for step in range(STEPS):
        batch = batch_of(step)
        x = ((batch["views"][0].float() - mean) / std).double().flatten(1)
        hidden = torch.tanh(x @ value["body.weight"].T + value["body.bias"])
        logits = (
            (hidden @ value["fc.weight"].T + value["fc.bias"]).float().double()
        )  # the classifier's logits are float32
        probability = logits.exp() / logits.exp().sum(1, keepdim=True)
        target = torch.zeros(BATCH, CLASSES, dtype=torch.float64)
        target[torch.arange(BATCH), batch["label"]] = 1
        losses.append(-(target * probability.log()).sum(1).mean().item())
        to_logits = (probability - target) / BATCH
        to_hidden = (to_logits @ value["fc.weight"]) * (1 - hidden**2)
        gradient = {
            "fc.weight": to_logits.T @ hidden,
            "fc.bias": to_logits.sum(0),
            "body.weight": to_hidden.T @ x,
            "body.bias": to_hidden.sum(0),
        }
        for name in names:
            velocity[name] = MOMENTUM * velocity[name] + gradient[name] + WEIGHT_DECAY * value[name]
            value[name] = value[name] - lr_at(step) * velocity[name]
    found = outcome("supervised", 1, tmp_path)
    assert found["losses"] == pytest.approx(losses, rel=1e-6)
    for name in names:
        torch.testing.assert_close(
            found["state"][f"encoder_q.{name}"], value[name], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["moco", "memory_bank", "end_to_end"])
def test_logits__are_float32_under_autocast_and_not_only_by_type(kind):
    """Features come in bfloat16; similarities of them in bfloat16 would be 0.4 % apart, here they
    are float32's.
    """
    torch.manual_seed(0)
    model = {
        "moco": lambda: MoCo(TinyEncoder, dim=5, queue_size=11),
        "memory_bank": lambda: MemoryBank(
            TinyEncoder, num_images=PICTURES, dim=5, num_negatives=12
        ),
        "end_to_end": lambda: EndToEnd(TinyEncoder, dim=5),
    }[kind]()
    features = {}
    for name in ("encoder_q", "encoder_k"):
        if hasattr(model, name):
            getattr(model, name).register_forward_hook(
                lambda module, inputs, out, name=name: features.setdefault(name, []).append(out)
            )
    views = torch.randn(2, BATCH, 3, 2, 2)
    index = torch.arange(BATCH)
    bank = (
        model.queue.clone()
        if kind == "moco"
        else model.bank[BATCH:].T.clone()
        if kind == "memory_bank"
        else None
    )
    positive = model.bank[index].clone() if kind == "memory_bank" else None
    if kind == "memory_bank":
        model.begin_step(index)
    else:
        model.shuffle = False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = model(views[0], index) if kind == "memory_bank" else model(*views)
    assert logits.dtype == torch.float32
    assert all(out.dtype == torch.bfloat16 for outs in features.values() for out in outs)
    outs = [
        nn.functional.normalize(out.double(), dim=1)
        for out in features["encoder_q"] + features.get("encoder_k", [])
    ]
    q, k = outs[0], positive.double() if kind == "memory_bank" else outs[1]
    if kind == "end_to_end":
        similarities = q @ k.T
        expected = torch.stack(
            [
                torch.cat([row[i : i + 1], row[:i], row[i + 1 :]])
                for i, row in enumerate(similarities)
            ]
        )
    else:
        expected = torch.cat([(q * k).sum(1, keepdim=True), q @ bank.double()], dim=1)
    torch.testing.assert_close(logits.double() * 0.07, expected, rtol=0, atol=1e-6)
