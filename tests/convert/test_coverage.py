"""Coverage by hand.

Seen red under: unused compared the wrong way round; misshapen counted as matched;
    num_batches_tracked not left out.
"""

import numpy as np
import torch

from moco_transfer.convert import coverage

EXPECTED = {"a": (2, 3), "b": (4,), "c": (), "d": (1,)}


def test_coverage__each_name_in_one_list():
    have = {
        "b": np.zeros(4),
        "a": torch.zeros(3, 2),
        "x": (7,),
        "c": (),
        "b.num_batches_tracked": (),
    }
    covered = coverage(have, EXPECTED)
    assert covered.missing == ("d",)
    assert covered.unused == ("x",)
    assert covered.misshapen == {"a": ((3, 2), (2, 3))}
    assert covered.matched == ("b", "c")
    assert not covered.is_complete


def test_coverage__complete_without_or_with_batch_counters():
    assert coverage(EXPECTED, EXPECTED).is_complete
    assert coverage(EXPECTED, {**EXPECTED, "bn.num_batches_tracked": ()}).is_complete
    assert coverage({**EXPECTED, "bn.num_batches_tracked": ()}, EXPECTED).is_complete


def test_sentence__says_what_where_and_what_to_do():
    text = coverage({"a": (2, 3), "b": (5,), "x": (1,)}, EXPECTED).sentence("moco.pkl", "resnet50")
    assert (
        text
        == "moco.pkl covers 1 of 4 backbone tensors of resnet50. Missing (2): c, d. Unused (1): x."
        " Misshapen (1): b is (5,), expected (4,). Refusing to start from a partly random"
        " backbone; re-run tools/convert.py or pass --allow-partial to record it in"
        " results.json."
    )


def test_sentence__counts_what_it_does_not_list():
    many = {f"t{index}": () for index in range(53)}
    assert (
        "Missing (53): t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, … and 43 more. Unused (0)."
        in coverage({}, many).sentence("f", "r")
    )
