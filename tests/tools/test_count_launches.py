"""The launches of a pre-training step, counted with a small network.

Not tried under a mutation.
"""

from __future__ import annotations

import importlib.util

import pytest

SMALL = "MODEL.ARCH resnet18 DATA.IMAGE_SIZE 16 DATA.BATCH_SIZE_TOTAL 8 MOCO.QUEUE_SIZE 64"


@pytest.fixture
def tool(repository):
    spec = importlib.util.spec_from_file_location(
        "count_launches", repository / "tools" / "count_launches.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_launches__do_not_depend_on_the_groups_and_stay_few(tool):
    found = [tool.count([*SMALL.split(), "MOCO.BN_GROUP_SIZE", size]) for size in ("4", "2")]
    assert found[0] == found[1]
    # 20 layers of BN and of convolution in each encoder.
    assert found[0]["split_batch_norm"] == 3 * 40
    assert found[0]["split_batch_norm_backward"] == 3 * 20
    assert found[0]["convolution"] == 40
    assert found[0].total() <= 600
