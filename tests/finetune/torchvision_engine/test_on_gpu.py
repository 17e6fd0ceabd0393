"""What only a CUDA device can show: its operators against the CPU's, fp16 with loss scaling, SyncBN
over NCCL.

Skipped without one, see tests/conftest.py. The CPU's numbers, which other tests hold to
Detectron2's, are the reference. The same tests with the CPU in the GPU's place pass, fp16 apart,
which a CPU does not scale; no mutation was tried on a GPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from detector_cases import draw_images, draw_weights, make_config
from torch.nn.parallel import DistributedDataParallel

from moco_transfer.finetune import build_model, sync_norm, trainer
from moco_transfer.finetune.torchvision_engine.build import TorchvisionEngine
from moco_transfer.finetune.torchvision_engine.roi_pool import CellGrid, roi_align
from moco_transfer.runtime.device import Precision

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# The last is as thin as they get; one reaches out of the image.
ROIS = [[0, 3, 5, 9, 30], [1, 0, 0, 80, 64], [0, 60, 50, 95, 80], [1, 1, 30, 79, 31.5]]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("step", [1, 2])
def test_roi_align__equals_the_cpus__forward_and_backward(aligned, step):
    grid, rois = CellGrid(5, 1 / 4, 0, aligned), torch.tensor(ROIS, dtype=torch.float32)
    found = []
    for device in ("cpu", DEVICE):
        feature = (
            torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
            .to(device)
            .requires_grad_()
        )
        pooled = roi_align(feature, rois.to(device), grid, step=step)
        (
            pooled * torch.arange(pooled.numel(), device=device).view(pooled.shape).sin()
        ).sum().backward()
        found.append((pooled.detach().cpu(), feature.grad.cpu()))
    for ours, cpus in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, cpus, rtol=1e-4, atol=1e-4)


def run_of(case: str, device: str, *, amp: bool) -> trainer.FineTuning:
    cfg = make_config(
        case, MODEL__DEVICE=device, SOLVER__AMP__ENABLED=amp, SOLVER__BASE_LR=0.001, SEED=0
    )
    engine = TorchvisionEngine(cfg, torch.device(device))
    model = engine.build_model()
    model.load_state_dict(draw_weights(model))
    name = "fp32" if not amp else "fp16" if device == "cuda" else "bf16"
    run = trainer.FineTuning(engine, model, {}, precision=Precision(name, "as asked"))
    run.wrapped.train()
    run.begin_iteration(0)
    return run


@pytest.mark.parametrize("case", ["r18_c4_mask", "r18_fpn_mask", "r18_fpn_keypoint"])
def test_step__fp32_losses_are_the_cpus(case, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    reference = trainer.step(run_of(case, "cpu", amp=False), draw_images())
    losses = trainer.step(run_of(case, DEVICE, amp=False), draw_images())
    assert losses.keys() == reference.keys()
    for name, loss in losses.items():
        assert loss.is_cuda and float(loss) == pytest.approx(float(reference[name]), rel=1e-3), name


def test_step__fp16_with_loss_scaling():
    reference = trainer.step(run_of("r18_fpn_mask", "cpu", amp=False), draw_images())
    run = run_of("r18_fpn_mask", DEVICE, amp=True)
    assert run.scaler.is_enabled() and run.precision.name == "fp16"
    dtypes = set()
    run.model.backbone.register_forward_hook(
        lambda module, inputs, output: dtypes.update(value.dtype for value in output.values())
    )
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    losses = [trainer.step(run, draw_images()) for _ in range(12)][0]
    assert torch.float16 in dtypes
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(float(reference[name]), rel=0.1, abs=0.02), (
            name
        )  # 11 bits, and proposals that change places
    # The scale starts high: the first steps may be left out for their overflow, not all.
    scale = run.scaler.get_scale()
    assert 0 < scale < 2.0**17
    assert any(not torch.equal(value, before[name]) for name, value in run.model.named_parameters())
    assert all(value.isfinite().all() for value in run.model.parameters())
    state = run.state()["scaler"]
    run.scaler.load_state_dict(state)
    assert run.scaler.get_scale() == scale


@pytest.fixture
def nccl(tmp_path):
    """A process group of one process: what is called is called, though nothing travels."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_syncbn_over_nccl__is_built_wrapped_and_stepped(nccl, monkeypatch):
    cfg = make_config(
        "r18_fpn", MODEL__DEVICE=DEVICE, MODEL__RESNETS__NORM="SyncBN", MODEL__FPN__NORM="SyncBN"
    )
    losses = []
    for ranks in (
        1,
        2,
    ):  # with two, the layers go through torch's own forward, which then finds one
        monkeypatch.setattr(sync_norm, "get_world_size", lambda ranks=ranks: ranks)
        model = build_model(cfg)
        model.load_state_dict(draw_weights(model))
        wrapped = DistributedDataParallel(
            model.to(DEVICE), device_ids=[0], broadcast_buffers=False
        ).train()
        found = wrapped(draw_images())
        sum(found.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        losses.append({name: float(loss.detach()) for name, loss in found.items()})
    assert sync_norm.describe_norm(model, 2, torch.device(DEVICE)).startswith(
        "SyncBN over 2 ranks (nccl)"
    )
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus__end_with_equal_weights(tmp_path, repository):
    """The script that the CPU's test of two processes runs, on GPUs."""
    import os
    import subprocess
    import sys

    from generated_images import write_voc_scenes

    write_voc_scenes(tmp_path / "scenes", splits={"train": 6, "test": 3}, size=64, seed=0)
    flag = f"own=voc:{tmp_path / 'scenes'}:train:{tmp_path / 'scenes' / 'classes.txt'}"
    words = """SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 SOLVER.STEPS (3,)
        INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SEED 0 DATALOADER.NUM_WORKERS 0"""
    settings = [
        *words.split(),
        "OUTPUT_DIR",
        str(tmp_path / "run"),
        "DATASETS.TRAIN",
        "('own',)",
        "DATASETS.TEST",
        "('own',)",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    script = [
        str(repository / "tests" / "cli" / "two_processes.py"),
        "train",
        "demo_R_18_FPN",
        flag,
    ]
    done = subprocess.run(
        [*command, *script, *settings],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )
    assert done.returncode == 0 and "EQUAL" in done.stdout, done.stderr[-3000:]
