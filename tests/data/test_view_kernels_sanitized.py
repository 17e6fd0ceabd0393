"""view_kernels.c under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own.

Seen red under: a row less of scratch memory for the blur. That the sanitizers run is seen by a crop
beyond its image, which they must stop.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("view_kernels_runs.py")
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# setup.py's, which say what the source relies on.
FLAGS = """-O1 -g -shared -fPIC -fno-wrapv -fno-math-errno -fno-trapping-math -ffinite-math-only
    -fno-signed-zeros""".split()


@pytest.fixture(scope="module")
def run(repository, tmp_path_factory):
    compiler = shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs GCC and its sanitizers on Linux")
    library = tmp_path_factory.mktemp("sanitized") / "view_kernels.so"
    source = repository / "moco_transfer" / "data" / "views" / "view_kernels.c"
    command = [compiler, *FLAGS, *CHECKS, str(source), "-o", str(library), "-lm"]
    built = subprocess.run(command, capture_output=True, text=True)
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in ("libasan.so", "libubsan.so")
    ]
    runtimes = [each.stdout.strip() for each in found]
    if built.returncode or not all(map(os.path.isabs, runtimes)):
        pytest.skip(f"the sanitizers are not installed: {built.stderr[:200]}")
    path = os.pathsep.join(filter(None, [str(repository), os.environ.get("PYTHONPATH")]))
    more = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": path}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), str(library), *words]
        return subprocess.run(command, env=os.environ | more, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_view_kernels__every_shape_under_sanitizers(run):
    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "840 crops, 160 views in view_kernels.so" in done.stdout


@pytest.mark.slow
def test_view_kernels__the_sanitizers_stop_a_read_beyond_an_image(run):
    done = run("overrun")
    assert done.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "mt_crop_resize" in done.stderr
