"""What a machine refuses becomes one sentence with numbers and the cure, and never a hang.

Small file systems are mounted in a namespace of their own, where the system allows one.

Seen red under: the queue's own handling of its errors (training waits for ever); torch.save to a
path (it does not say why it failed); Python's own hook for exceptions in ``__del__``.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from generated_images import write_pool, write_voc_scenes

from moco_transfer.cli import main as cli
from moco_transfer.runtime import machine
from moco_transfer.runtime.checkpoint import CheckpointFolder
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.machine import check_shared_memory, explain

REPOSITORY = Path(__file__).resolve().parents[2]
DETECTOR = """DATALOADER.NUM_WORKERS 2 SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.005 SOLVER.MAX_ITER 2
    SOLVER.STEPS (1,) INPUT.MIN_SIZE_TRAIN 64 INPUT.MIN_SIZE_TEST 64 MODEL.FPN.OUT_CHANNELS 16
    MODEL.ROI_BOX_HEAD.FC_DIM 16 TEST.PRECISE_BN.ENABLED False MODEL.DEVICE cpu SEED 0""".split()
PRETRAINING = """DATA.IMAGE_SIZE 64 DATA.BATCH_SIZE_TOTAL 8 MOCO.QUEUE_SIZE 16 MOCO.BN_GROUP_SIZE 4
    SOLVER.EPOCHS 1 DATA.NUM_WORKERS 2""".split()


@pytest.fixture
def mounted():
    """Run a command with a small file system at a folder; skips where that is not allowed."""

    def run(folder: object, size: str, command: list[object], timeout: float = 120):
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        mount = f'mount -t tmpfs -o size={size} tmpfs "{folder}"'
        try:
            subprocess.run(["unshare", *user, "-m", "sh", "-c", mount], check=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here ({error})")
        words = ["unshare", *user, "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        return subprocess.run(
            [*words, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )

    return run


def moco_transfer(*words: object) -> list[object]:
    return [sys.executable, "-m", "moco_transfer", *words]


@pytest.fixture
def detection(tmp_path) -> list[object]:
    """Return the words of a small fine-tuning run, without OUTPUT_DIR."""
    write_voc_scenes(tmp_path / "voc", splits={"train": 4, "test": 2}, size=64, seed=0)
    flags = []
    for split in ("train", "test"):
        classes = tmp_path / "voc" / "classes.txt"
        flags += ["--dataset", f"own_{split}=voc:{tmp_path / 'voc'}:{split}:{classes}"]
    sets = ["DATASETS.TRAIN", "own_train", "DATASETS.TEST", "own_test"]
    return ["train", "--config-file", "demo_R_18_FPN", "--force", *flags, *sets, *DETECTOR]


def one_line(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("moco-transfer ")]
    assert "Traceback" not in done.stderr and len(lines) == 1, done.stderr[-2000:]
    return lines[0]


def test_train__shared_memory_too_small_for_its_workers(mounted, detection, tmp_path):
    out = tmp_path / "out"
    done = mounted("/dev/shm", "100k", moco_transfer(*detection, "OUTPUT_DIR", out))
    sentence = one_line(done)
    assert done.returncode == 2 and "DATALOADER.NUM_WORKERS 0" in sentence
    # 2 images of 3 x 64 x 64 numbers of 4 bytes; 2 workers with 2 batches each
    assert "about 0.1 MB" in sentence and "4 are prepared" in sentence and "0.1 MB free" in sentence
    assert "--shm-size" in sentence and not out.exists()


def test_pretrain__shared_memory_too_small_for_its_workers(mounted, tmp_path):
    write_pool(tmp_path / "pool", count=24, size=40, seed=0)
    words = ["pretrain", "--config-file", "demo_moco", "DATA.ROOT", tmp_path / "pool", *PRETRAINING]
    out = tmp_path / "out"
    done = mounted("/dev/shm", "256k", moco_transfer(*words, "OUTPUT_DIR", out))
    sentence = one_line(done)
    # 2 views of 8 images of 3 x 64 x 64 bytes; 2 workers with 4 batches each
    assert done.returncode == 2 and "about 0.2 MB" in sentence and "8 are prepared" in sentence
    assert "DATA.NUM_WORKERS 0" in sentence and not out.exists()


def test_check_shared_memory__offers_as_many_workers_as_fit(monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 64 * 1024 * 1024)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    check_shared_memory(8e6, batches=2, key="N", num_workers=4)
    with pytest.raises(InputError, match=r"64\.0 MB in all.*8\.4 MB free.*N 1 or N 0"):
        monkeypatch.setattr(machine, "free_bytes", lambda folder: int(8.4e6))
        check_shared_memory(4e6, batches=2, key="N", num_workers=8)
    check_shared_memory(4e6, batches=2, key="N", num_workers=0)
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 64 * 1024 * 1024)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="16 are prepared"):
        check_shared_memory(8e6, batches=2, key="N", num_workers=4)


LOADER = """
    import resource, sys, torch
    from torch.utils.data import DataLoader
    from moco_transfer.runtime.machine import explain
    from moco_transfer.runtime.stop import prepare_worker

    class Items:
        def __len__(self): return 64
        def __getitem__(self, i): {item}

    loader = DataLoader(Items(), batch_size=None, num_workers=1, worker_init_fn=prepare_worker)
    try:
        kept = [item for item in loader]
    except Exception as error:
        print(explain(error, {{"workers": "WORKERS"}}))
"""


def program(item: str, before: str = "") -> str:
    return before + textwrap.dedent(LOADER).format(item=item)


def test_worker__that_cannot_hand_over_a_batch_ends_instead_of_hanging(mounted):
    command = [sys.executable, "-c", program("return torch.ones(100_000)")]
    done = mounted("/dev/shm", "1m", command, timeout=60)
    assert "Shared memory is too small" in done.stdout and "WORKERS to 0" in done.stdout


def run(text: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    return done.stdout


def test_worker__too_many_open_files():
    pytest.importorskip("resource", reason="limits of a process are POSIX's")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
    sentence = run(program("return [torch.ones(1)] * 1 + [torch.ones(2)]", limit))
    assert "Too many open files" in sentence and "40" in sentence and "ulimit -n" in sentence


def test_worker__killed_by_the_system():
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    sentence = run(program(kill))
    assert "Killed" in sentence and "GiB" in sentence and "WORKERS" in sentence


@pytest.mark.parametrize(
    ("said", "is_shown"),
    [("DataLoader worker (pid 7) is killed by signal: Killed. ", False), ("another", True)],
)
def test_worker__killed_while_it_ends(monkeypatch, tmp_path, capsys, said, is_shown):
    class Loader:
        def __del__(self):
            raise RuntimeError(said)

    monkeypatch.setattr(sys, "unraisablehook", None)
    cli.main(["report", str(tmp_path)])
    loader = Loader()
    del loader
    assert ("Traceback" in capsys.readouterr().err) is is_shown


def test_worker__another_ends_while_the_error_is_told(monkeypatch, tmp_path, capsys):
    said = "DataLoader worker (pid 7) is killed by signal: Killed. "

    def torchs(signum, frame):
        raise RuntimeError(said)

    def run(args):
        raise RuntimeError(said)

    def telling(error, settings):
        os.kill(os.getpid(), signal.SIGCHLD)
        return explain(error, settings)

    monkeypatch.setattr("moco_transfer.cli.report.run", run)
    monkeypatch.setattr(cli, "explain", telling)
    signal.signal(signal.SIGCHLD, torchs)
    try:
        assert cli.main(["report", str(tmp_path)]) == 1
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert "worker" in capsys.readouterr().err


def test_explain__a_worker_that_ends_while_its_batch_is_taken():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(EOFError) as caught:
        ours.recv_bytes()
    assert "A data worker has ended" in explain(caught.value)
    assert explain(EOFError()) is None


def test_explain__memory_of_a_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    sentence = explain(caught.value, {"memory": "THE KEY"})
    assert str(4 << 58) in sentence and "GiB" in sentence and sentence.endswith("Lower THE KEY.")


def test_explain__memory_of_a_gpu():
    error = torch.OutOfMemoryError(  # as PyTorch 2.11 writes it
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 3 has a total capacity of 15.77 GiB of"
        " which 1.20 GiB is free. Including non-PyTorch memory, this process has 14.57 GiB memory"
        " in use. Of the allocated memory 13.00 GiB is allocated by PyTorch, and 1.00 GiB is"
        " reserved by PyTorch but unallocated."
    )
    sentence = explain(error)
    assert all(fact in sentence for fact in ("GPU 3", "15.77 GiB", "14.57 GiB", "2.50 GiB"))


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be", "Lower THE KEY"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "Lower THE KEY"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", "CUDA_VISIBLE_DEVICES"),
        ("CUDA error: no kernel image is available for execution", "doctor"),
        ("NCCL error: Duplicate GPU detected : rank 0 and rank 1 both on 1a000", "LOCAL_RANK"),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)", "not answered"),
        ("Application timeout caused pair closure", "not answered"),
    ],
)
def test_explain__what_a_gpus_libraries_say(said, fact):
    sentence = explain(RuntimeError(said), {"memory": "THE KEY"})
    assert fact in sentence and "\n" not in sentence


def test_explain__a_file_is_named_whatever_its_name():
    full = OSError(errno.ENOSPC, "No space left on device", "/data/heartbeat/1.jpg")
    assert "Cannot read or write /data/heartbeat/1.jpg" in str(explain(full))


def test_explain__leaves_errors_of_this_program_alone():
    for error in (ValueError("x"), KeyError("y"), FileNotFoundError(2, "gone"), RuntimeError("z")):
        assert explain(error) is None


@pytest.mark.parametrize(
    ("verb", "key"), [("pretrain", "DATA.BATCH_SIZE_TOTAL"), ("train", "SOLVER.IMS_PER_BATCH")]
)
def test_command__names_the_setting_to_lower(monkeypatch, capsys, verb, key):
    def fail(args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(f"moco_transfer.cli.{verb}.run", fail)
    assert cli.main([verb, "--config-file", "x"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and key in printed and "2.50 GiB" in printed


def test_train__disk_full_at_a_checkpoint(mounted, detection, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    words = [*detection, "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", small / "out"]
    done = mounted(small, "20m", moco_transfer(*words))
    sentence = one_line(done)
    assert done.returncode == 2 and f"{small}/out/checkpoint_0000002.pth" in sentence
    assert "No space left on device" in sentence and "bytes had been written" in sentence


def test_checkpoint__refused_by_the_system_leaves_the_one_before(tmp_path):
    resource = pytest.importorskip("resource", reason="limits on the size of files are POSIX's")
    folder = CheckpointFolder(tmp_path)
    first = folder.save({"x": torch.zeros(10)}, "0001")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"checkpoint_0002.pth: File too large.* bytes had"):
            folder.save({"x": torch.zeros(100_000)}, "0002")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert folder.last() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_0001.pth", "last_checkpoint"]
