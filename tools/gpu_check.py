#!/usr/bin/env python
"""The checks of tools/gpu_check.sh, each a command whose last line is JSON.

python tools/gpu_check.py CHECK [--tiny] [--out FOLDER]
python tools/gpu_check.py table gpu_check.jsonl [--page docs/performance.md]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BEGIN, END = "<!-- gpu_check -->\n", "<!-- /gpu_check -->\n"
VERB = (sys.executable, "-m", "moco_transfer")


class Sizes(NamedTuple):
    """How large the checks are."""

    device: str = "cuda"
    arch: str = "resnet50"
    size: int = 224
    batch: int = 256
    queue: int = 65536
    repeats: int = 10
    images: int = 2000


TINY = Sizes("cpu", "resnet18", 32, 16, 64, repeats=1, images=64)


def run_of(sizes: Sizes, *words: object) -> Any:
    """Return a pre-training run of moco_v2_R_50_200ep, in bf16, and a batch on its device."""
    from count_launches import NoImages, batch_of

    from moco_transfer.config import load_pretrain_config
    from moco_transfer.pretrain.plan import plan_pretrain
    from moco_transfer.pretrain.run import build_run

    settings = {
        "MODEL.ARCH": sizes.arch,
        "DATA.IMAGE_SIZE": sizes.size,
        "DATA.BATCH_SIZE_TOTAL": sizes.batch,
        "MOCO.QUEUE_SIZE": sizes.queue,
        "TRAIN.DEVICE": sizes.device,
        "TRAIN.PRECISION": "bf16",
    }
    overrides = [str(word) for pair in settings.items() for word in pair] + list(map(str, words))
    cfg = load_pretrain_config("moco_v2_R_50_200ep", overrides)
    run = build_run(plan_pretrain(cfg, source=NoImages()))
    run.model.train()
    batch = batch_of(run.plan)
    return run, {n: t if n == "colours" else t.to(run.plan.device) for n, t in batch.items()}


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def measured(sizes: Sizes, call: Callable[[], Any]) -> dict[str, float]:
    """Return medians of a step: ``ms`` until the device has finished, ``host_ms`` until it was
    asked to; images/s; and the peak of its memory.
    """
    import torch

    cuda = sizes.device == "cuda"
    for _ in range(4 if cuda else 1):
        call()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    whole, host = [], []
    for _ in range(sizes.repeats):
        wait(sizes.device)
        since = time.perf_counter()
        call()
        host.append(time.perf_counter() - since)
        wait(sizes.device)
        whole.append(time.perf_counter() - since)
    seconds = statistics.median(whole)
    row = {"ms": round(1000 * seconds, 2), "images_per_sec": round(sizes.batch / seconds)}
    row["host_ms"] = round(1000 * statistics.median(host), 2)
    if cuda:
        row["peak_GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        torch.cuda.empty_cache()
    return row


def environment(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Return what the machine is, and how fast it copies and multiplies."""
    import torch
    import torchvision

    from moco_transfer.runtime.device import runs_triton

    device = torch.device(sizes.device)
    large = sizes.device == "cuda"
    data = torch.empty(2**30 if large else 2**20, dtype=torch.uint8, device=device)
    matrix = torch.randn(*(2 * [8192 if large else 64]), device=device, dtype=torch.bfloat16)
    once, taken = sizes._replace(batch=1), {}
    for name, call in {"copy": data.clone, "multiply": lambda: matrix @ matrix}.items():
        taken[name] = measured(once, call)["ms"] / 1000 or 1e-9
    return {
        "gpu": torch.cuda.get_device_name() if large else "none",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "triton": runs_triton(device),
        "copy_TB_s": round(2 * len(data) / taken["copy"] / 1e12, 2),
        "bf16_TFLOP_s": round(2 * len(matrix) ** 3 / taken["multiply"] / 1e12),
    }


def equal(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Compare the losses of 20 steps in fp32 with the CPU's."""
    import torch

    from moco_transfer.pretrain.run import step

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    small, curves = sizes._replace(arch="resnet18", size=32, batch=16, queue=256), {}
    for device in ("cpu", sizes.device):
        words = "TRAIN.PRECISION", "fp32", "MOCO.BN_GROUP_SIZE", 4
        run, batch = run_of(small._replace(device=device), *words)
        losses = []
        for iteration in range(20):
            torch.manual_seed(iteration)
            losses.append(float(step(run, batch)["loss"]))
        curves[device] = losses
    apart = max(abs(a - b) for a, b in zip(curves["cpu"], losses, strict=True))
    if apart > 0.02:
        raise SystemExit(f"the losses differ by {apart}: {curves}")
    return {"steps": 20, "most_apart": round(apart, 6), "last_loss": round(losses[-1], 4)}


def step(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Measure our step and the published one (tools/bench_published.py), in fp32 and in bf16."""
    import torch
    from bench_published import PublishedStep

    from moco_transfer.pretrain.run import step as take

    torch.backends.cudnn.benchmark = True
    rows: dict[str, Any] = {}
    for precision in ("bf16", "fp32"):
        rows[f"ours_{precision}"] = measured(
            sizes, functools.partial(take, *run_of(sizes, "TRAIN.PRECISION", precision))
        )
    published = PublishedStep(sizes.arch, queue_size=sizes.queue, device=sizes.device)
    images = torch.randn(2, sizes.batch, 3, sizes.size, sizes.size, device=sizes.device)
    for name in ("bf16", "fp32"):
        with torch.autocast(sizes.device, dtype=torch.bfloat16, enabled=name == "bf16"):
            rows[f"published_{name}"] = measured(sizes, lambda: published(*images))
    for name in ("bf16", "fp32"):
        times = rows[f"published_{name}"]["ms"] / rows["ours_bf16"]["ms"]
        rows[f"ours_bf16_times_published_{name}"] = round(times, 2)
    return rows


def profile(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Profile our step, whole and without its parts."""
    import torch

    from moco_transfer.pretrain.run import step as take

    torch.backends.cudnn.benchmark = True
    rows: dict[str, Any] = {}
    for name, words in {
        "step": (),
        "without_groups": ("MOCO.BN_GROUP_SIZE", 0),
        "without_colours": ("DATA.PIPELINE", "reference"),
        "one_of_8_ranks": ("DATA.BATCH_SIZE_TOTAL", max(8, sizes.batch // 8)),
    }.items():
        run, batch = run_of(sizes, *words)
        batch_size = sizes._replace(batch=run.plan.batch_size_total)
        rows[name] = measured(batch_size, functools.partial(take, run, batch))
        with torch.profiler.profile() as profiler:
            take(run, batch)
            wait(sizes.device)
        kernels = [e for e in profiler.events() if e.device_type.name == "CUDA"]
        times: dict[str, float] = {}
        for kernel in kernels:
            times[kernel.name[:60]] = times.get(kernel.name[:60], 0) + kernel.device_time / 1000
        top = sorted(times.items(), key=lambda item: -item[1])[:8]
        rows[name] |= {"kernels": len(kernels), "busy_ms": round(sum(times.values()), 2)}
        rows[name]["top_ms"] = {key: round(value, 2) for key, value in top}
        print(name, rows[name], flush=True)
    return rows


def images(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Write smooth random JPEGs of about ImageNet's size."""
    import numpy as np
    from PIL import Image

    folder = out / "images"
    folder.mkdir(exist_ok=True)

    def write(i: int) -> int:
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        large = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (large + rng.integers(-12, 13, large.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i}.jpg", quality=92)
        return (folder / f"{i}.jpg").stat().st_size

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes_of_files = list(pool.map(write, range(sizes.images)))
    return {
        "images": len(sizes_of_files),
        "mean_kB": round(sum(sizes_of_files) / 1000 / len(sizes_of_files)),
    }


def small_run(sizes: Sizes, out: Path, name: str, *words: object) -> list[str]:
    """Return the words of a run of seconds on the images."""
    if not (out / "images").exists():
        images(sizes._replace(images=64), out)
    text = f"""DATA.ROOT {out / "images"} DATA.LAYOUT flat DATA.IMAGE_SIZE 32 SOLVER.MAX_ITER 8
        DATA.BATCH_SIZE_TOTAL 16 MOCO.QUEUE_SIZE 64 MOCO.BN_GROUP_SIZE 4 TRAIN.DEVICE {sizes.device}
        TRAIN.CHECKPOINT_PERIOD_ITERS 3 TRAIN.KEEP_CHECKPOINTS 0 TRAIN.LOG_PERIOD 2
        DATA.NUM_WORKERS 0 LOGGERS () OUTPUT_DIR {out / name}"""
    shutil.rmtree(out / name, ignore_errors=True)
    config = ["pretrain", "--config-file", "moco_v2_R_18_96px"]
    return [*config, *text.split(), *map(str, words)]


def resume(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Compare a run with one that was continued from its middle; then convert its weights."""
    import torch

    whole, cut = small_run(sizes, out, "whole"), small_run(sizes, out, "cut")
    subprocess.run([*VERB, *whole], check=True)
    shutil.copytree(out / "whole", out / "cut")
    first = next((out / "cut").glob("*iter00000003.pth"))
    (out / "cut" / "last_checkpoint").write_text(first.name)
    subprocess.run([*VERB, *cut[:3], "--resume", *cut[3:]], check=True)
    last = [sorted((out / name).glob("checkpoint_*.pth"))[-1] for name in ("whole", "cut")]
    states = [torch.load(p, weights_only=True, map_location="cpu")["state_dict"] for p in last]
    apart = max(
        float((a - states[1][n]).abs().max()) for n, a in states[0].items() if a.is_floating_point()
    )
    subprocess.run([*VERB, "convert", str(last[1]), str(out / "backbone.pkl")], check=True)
    return {"equal_bits": apart == 0, "most_apart": apart}


def ranks(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Start two processes for one device: they train, or end with one sentence."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    words = ["-m", "moco_transfer", *small_run(sizes, out, "ranks")]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True)
    sentences = ("error:", "moco-transfer ")
    ours = [line for line in done.stderr.splitlines() if line.startswith(sentences)]
    print(done.stderr[-3000:])
    if done.returncode and not ours:
        raise SystemExit("two processes on one device end with a traceback")
    return {"trained": done.returncode == 0, "said": ours[:2]}


def kernels(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Run what has kernels of its own, once."""
    from moco_transfer.pretrain.run import step as take

    small = sizes._replace(arch="resnet18", size=32, batch=16, queue=64)
    take(*run_of(small, "MOCO.BN_GROUP_SIZE", 4))
    wait(sizes.device)
    return {}


def sanitizer(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Look for wrong addresses with compute-sanitizer, and for races between streams with torch's
    own sanitizer, in a step and in a run.
    """
    tool, row = shutil.which("compute-sanitizer"), {"compute_sanitizer": "absent"}
    if tool is not None:
        again = [sys.executable, __file__, "kernels", *(["--tiny"] if sizes == TINY else [])]
        subprocess.run([tool, "--error-exitcode", "3", *again], check=True)
        row["compute_sanitizer"] = "no error"
    race = os.environ | {"TORCH_CUDA_SANITIZER": "1"} if sizes.device == "cuda" else None
    subprocess.run([*VERB, *small_run(sizes, out, "races")], check=True, env=race)
    return row | {"races_between_streams": "none" if race else "not looked for on a CPU"}


def compiled(sizes: Sizes, out: Path) -> dict[str, Any]:
    """Measure our step with TRAIN.COMPILE and without."""
    import torch

    from moco_transfer.pretrain.run import step as take

    if sizes.device == "cpu":
        torch.compiler.set_stance("force_eager")  # compiling takes minutes
    torch.backends.cudnn.benchmark = True
    return {
        str(value): measured(sizes, functools.partial(take, *run_of(sizes, "TRAIN.COMPILE", value)))
        for value in (False, True)
    }


def line(name: str, rc: str, seconds: str, log: str) -> dict[str, Any]:
    """Return a check's line."""
    text = [row for row in Path(log).read_text(errors="replace").splitlines() if row.strip()]
    data: Any = {"end": [row[:200] for row in text[-3:]]}
    for row in reversed(text):
        if row.startswith("{"):
            data = json.loads(row)
            break
    return {"check": name, "rc": int(rc), "sec": int(seconds), "data": data}


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items() if k != "top_ms")
    if isinstance(value, list):
        return "; ".join(map(_words, value))
    return str(value).replace("|", "/")


def table(results: Path, page: Path) -> None:
    """Write the lines of a run of gpu_check.sh into a page, between its two marks."""
    rows = [json.loads(row) for row in results.read_text().splitlines() if row.startswith("{")]
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    made = "\n| check | result | s |\n|---|---|---:|\n"
    for row in rows:
        failed = f"**failed ({row['rc']})** " if row["rc"] else ""
        data = row["data"]
        nested = isinstance(data, dict) and all(isinstance(v, dict) for v in data.values())
        parts = data.items() if nested and data else [("", data)]
        text = "<br>".join(f"{k}: {_words(v)}" if k else _words(v) for k, v in parts)
        made += f"| {row['check']} | {failed}{text} | {row['sec']} |\n"
    page.write_text(head + BEGIN + made + "\n" + END + tail, encoding="utf-8")


CHECKS: tuple[Callable[[Sizes, Path], dict[str, Any]], ...] = (
    *(environment, equal, step, profile, images, resume, ranks, kernels, sanitizer, compiled),
)


def main() -> None:
    """Carry out a check, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    by_name = {check.__name__: check for check in CHECKS}
    parser.add_argument("what", choices=[*by_name, "line", "table"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for files")
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args()
    if args.what == "line":
        print(json.dumps(line(*args.rest)))
    elif args.what == "table":
        table(Path(args.rest[0]), args.page)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        found = by_name[args.what](TINY if args.tiny else Sizes(), args.out.resolve())
        print(json.dumps(found))


if __name__ == "__main__":
    main()
