"""What must not be converted: each gives one sentence that names what is wrong, and an existing
destination stays.

Seen red under: coverage gaps only logged; the destination opened before the checks; a NaN let
    through.
"""

import io
import os
import pickle

import pytest
import torch

from moco_transfer.cli.main import main
from moco_transfer.convert import convert_checkpoint
from moco_transfer.runtime.errors import InputError, MissingFileError

ENCODER = "module.encoder_q."
OLD = b"an earlier file"


@pytest.fixture
def refuses(tmp_path):
    """Return a function that expects a refusal and checks that the destination and its folder are
    as they were.
    """
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.pkl").write_bytes(OLD)

    def check(source, *words, error=InputError, **options):
        with pytest.raises(error) as caught:
            convert_checkpoint(source, folder / "old.pkl", **options)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 2000
        for word in (*words, str(source)):
            assert word in message, message
        assert (folder / "old.pkl").read_bytes() == OLD
        assert [path.name for path in folder.iterdir()] == ["old.pkl"]

    return check


def changed(official_small, **changes):
    """Return the official checkpoint with tensors of encoder_q replaced, added, or (None) taken
    out.
    """
    state = dict(official_small["state_dict"])
    for name, tensor in changes.items():
        if tensor is None:
            del state[f"{ENCODER}{name}"]
        else:
            state[f"{ENCODER}{name}"] = tensor
    return {**official_small, "state_dict": state}


def test_refuses__a_missing_tensor(saved, refuses, official_small):
    source = saved(changed(official_small, **{"layer2.0.bn1.running_var": None}))
    refuses(
        source,
        "covers 99 of 100 backbone tensors of resnet18",
        "Missing (1): ",
        f"{ENCODER}layer2.0.bn1.running_var",
        "Unused (0)",
    )


def test_refuses__an_extra_tensor(saved, refuses, official_small):
    source = saved(changed(official_small, **{"layer2.0.conv3.weight": torch.zeros(1)}))
    refuses(source, "Missing (0)", "Unused (1): ", f"{ENCODER}layer2.0.conv3.weight")


def test_refuses__an_extra_tensor_of_unknown_name(saved, refuses, official_small):
    source = saved(changed(official_small, **{"attention.weight": torch.zeros(1)}))
    refuses(source, "Unused (1): ", f"{ENCODER}attention.weight")


def test_refuses__a_tensor_of_another_shape(saved, refuses, official_small):
    source = saved(changed(official_small, **{"conv1.weight": torch.zeros(64, 3, 5, 5)}))
    refuses(
        source, "Misshapen (1): ", f"{ENCODER}conv1.weight is (64, 3, 5, 5), expected (64, 3, 7, 7)"
    )


def test_refuses__several_gaps_at_once(saved, refuses, official_small):
    gaps = {
        "bn1.bias": None,
        "layer4.1.conv2.weight": torch.zeros(2, 2, 3, 3),
        "layer9.weight": torch.zeros(1),
    }
    refuses(
        saved(changed(official_small, **gaps)),
        "Missing (1)",
        "bn1.bias",
        "Misshapen (1)",
        "layer4.1.conv2.weight",
        "Unused (1)",
        "layer9",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses__values_that_are_not_finite(saved, refuses, official_small, value):
    weight = official_small["state_dict"][f"{ENCODER}layer1.0.conv1.weight"].clone()
    weight[3, 4, 1, 1] = value
    refuses(
        saved(changed(official_small, **{"layer1.0.conv1.weight": weight})),
        "1 tensors",
        "layer1.0.conv1.weight",
        "NaN or infinite",
    )


def test_refuses__integers_for_weights(saved, refuses, official_small):
    weight = torch.zeros(64, 64, 3, 3, dtype=torch.int8)
    refuses(
        saved(changed(official_small, **{"layer1.0.conv1.weight": weight})),
        "expected floating-point",
    )


def test_refuses__another_architecture_than_asked_for(saved, refuses, official_small):
    refuses(saved(official_small), "backbone tensors of resnet34", "Missing (80)", arch="resnet34")


def test_refuses__a_prefix_that_no_layout_has(saved, refuses, official_small):
    state = {
        name.replace("encoder_q", "encoder_z"): t
        for name, t in official_small["state_dict"].items()
        if "encoder_k" not in name
    }
    refuses(
        saved({"state_dict": state}), "state_dict.module.encoder_z.", "'encoder_q.'", "First keys: "
    )


def test_refuses__an_encoder_that_is_not_there(saved, refuses, official_small):
    state = {
        name: tensor for name, tensor in official_small["state_dict"].items() if "encoder_q" in name
    }
    refuses(saved({"state_dict": state}), "no encoder 'k'", "--encoder q", encoder="k")


def test_refuses__another_network(saved, refuses):
    refuses(
        saved({"features.0.weight": torch.zeros(64, 3, 3, 3)}),
        "holds no ResNet",
        "features.0.weight",
    )


def test_refuses__no_tensor(saved, refuses):
    refuses(saved({"state_dict": {}, "epoch": 3}), "holds no tensor", "state_dict, epoch")
    refuses(saved([1, 2]), "holds a list")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
def test_refuses__a_truncated_checkpoint(tmp_path, refuses, official_small, share, legacy):
    source = tmp_path / "cut.pth.tar"
    torch.save(official_small, source, _use_new_zipfile_serialization=not legacy)
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    refuses(source, "truncated or damaged")


def test_refuses__a_flipped_byte(saved, refuses, official_small):
    source = saved(official_small)
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    refuses(source, "fails its checksum")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is a text\n" * 9, "is no checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is an image"),
        # fmt: skip
        (b"PK\x03\x04" + bytes(99), "truncated or damaged"),
    ],
)
def test_refuses__files_that_are_no_checkpoint(tmp_path, refuses, content, words):
    source = tmp_path / "file.pth"
    source.write_bytes(content)
    refuses(source, words)


def test_refuses__a_folder_and_a_file_that_does_not_exist(tmp_path, refuses):
    refuses(tmp_path, "directory")
    refuses(tmp_path / "nowhere.pth", "does not exist", error=MissingFileError)


def test_refuses__unknown_names(saved, refuses, official_small):
    source = saved(official_small)
    for option, value in (
        ("to", "caffe"),
        ("encoder", "both"),
        ("arch", "resnet19"),
        ("source_format", "mocco"),
    ):
        with pytest.raises(InputError, match=value):
            convert_checkpoint(source, source.with_name("new.pkl"), **{option: value})


def test_refuses__to_write_over_its_source(saved, official_small):
    source = saved(official_small)
    before = source.read_bytes()
    with pytest.raises(InputError, match="is the source itself"):
        convert_checkpoint(source, source)
    assert source.read_bytes() == before


def test_refuses__a_destination_that_cannot_be_written(saved, tmp_path, official_small):
    (tmp_path / "file").write_bytes(b"")
    source = saved(official_small)
    for dst in (tmp_path, tmp_path / "file" / "below.pkl", "/proc/no/such.pkl"):
        with pytest.raises(InputError):
            convert_checkpoint(source, dst)


@pytest.mark.parametrize(
    ("to", "name"),
    [("detectron2", "old.pkl"), ("torchvision", "old.pth"), ("timm", "old.safetensors")],
)
def test_refuses__when_nothing_more_can_be_written(
    saved, official_small, to, name, tmp_path, capsys
):
    """A limit of 5 MB on the size of files ends every writer as a full disk would: in the middle of
    the data.
    """
    resource = pytest.importorskip("resource", reason="limits on the size of files are POSIX's")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / name
    target.write_bytes(OLD)
    source = saved(official_small)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, before[1]))
    try:
        status = main(["convert", str(source), str(target), "--to", to])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert (
        status == 2
        and error.count("\n") == 1
        and f"Cannot write {target}: File too large; nothing was changed." in error
    )
    assert target.read_bytes() == OLD and [path.name for path in target.parent.iterdir()] == [name]


class Malicious:
    """A pickle of it runs a command that leaves a file behind, when the plain pickle module loads
    it.
    """

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path

    def __reduce__(self):
        return os.system, (f"touch {self.tmp_path / 'ran'}",)


def saved_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


BAD_FILES = {
    "malicious.pkl": lambda tmp_path: pickle.dumps({"model": {"x": Malicious(tmp_path)}}),
    "malicious.pth": lambda tmp_path: saved_bytes(Malicious(tmp_path)),
    "truncated.pth": lambda _: saved_bytes({"state_dict": {"x": torch.ones(9999)}})[:20_000],
    "truncated.pkl": lambda _: pickle.dumps({"model": {"x": torch.ones(9999).numpy()}})[:20_000],
    "truncated.safetensors": lambda _: b"\x10\0\0\0\0\0\0\0{",
    "empty.pth": lambda _: b"",
    "text.pth": lambda _: b"to whom it may concern\n" * 99,
    "no_tensor.pth": lambda _: saved_bytes({"state_dict": {}, "epoch": 3}),
    "no_tensor.pkl": lambda _: pickle.dumps({"model": {}}),
    "folder": None,
    "nowhere.pth": None,
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_command__bad_files_give_one_sentence_and_status_2(tmp_path, name, capsys):
    """As typed: nothing on stdout, one line on stderr that names the file, status 2, an earlier
    destination as it was.
    """
    source, target = tmp_path / name, tmp_path / "out" / "old.pkl"
    target.parent.mkdir()
    target.write_bytes(OLD)
    if BAD_FILES[name] is not None:
        source.write_bytes(BAD_FILES[name](tmp_path))
    elif name == "folder":
        source.mkdir()
    assert main(["convert", str(source), str(target)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and str(source) in printed.err
    assert printed.err.startswith("moco-transfer convert: ") and "Traceback" not in printed.err
    assert target.read_bytes() == OLD and [path.name for path in target.parent.iterdir()] == [
        "old.pkl"
    ]
    assert not (tmp_path / "ran").exists()
    assert main(["convert", "--inspect", str(source)]) == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_refuses__a_folder_without_permission(saved, tmp_path, official_small):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(
        InputError, match="Cannot write .*Permission denied. Choose a folder that can be written to"
    ):
        convert_checkpoint(saved(official_small), tmp_path / "locked" / "b.pkl")


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        (
            "b.pth",
            "detectron2",
            (
                "has the ending of a torchvision file, expected .pkl for --to detectron2; rename"
                " it, or pass --to torchvision"
            ),
        ),
        (
            "b.pkl",
            "timm",
            "has the ending of a detectron2 file, expected .safetensors for --to timm",
        ),
        (
            "b.safetensors",
            "torchvision",
            "has the ending of a timm file, expected .pth or .pt for --to torchvision",
        ),
    ],
)
def test_refuses__an_ending_that_another_reader_would_take(
    saved, tmp_path, official_small, name, to, words
):
    with pytest.raises(InputError, match=words):
        convert_checkpoint(saved(official_small), tmp_path / name, to=to)
    assert not (tmp_path / name).exists()


def test_refuses__our_checkpoints_of_a_later_version(saved, refuses, official_small):
    refuses(
        saved({**official_small, "format": "moco_transfer.pretrain/2"}),
        "moco_transfer.pretrain/2",
        "reads moco_transfer.pretrain/1",
    )


@pytest.mark.parametrize(
    "pixels",
    [
        None,
        {"format": "RGB"},
        {"format": "HSV", "mean": [0.0] * 3, "std": [1.0] * 3},
        # fmt: skip
        {"format": "RGB", "mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]},
    ],
)
def test_refuses__pixels_that_make_no_sense(saved, refuses, official_small, pixels):
    refuses(
        saved({**official_small, "format": "moco_transfer.pretrain/1", "pixels": pixels}),
        "its pixels are",
        "RGB or BGR",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 9}, "schema 9"),
        ({"format": "HSV"}, "its pixels are"),
        # fmt: skip
        ({"stride_in_1x1": "no"}, "stride_in_1x1 'no'"),
    ],
)
def test_refuses__a_stamp_that_makes_no_sense(saved, refuses, small, change, words):
    stamp = {
        "schema": 1,
        "format": "RGB",
        "pixel_mean": [1.0] * 3,
        "pixel_std": [1.0] * 3,
        "stride_in_1x1": False,
    }
    state = {name: tensor for name, tensor in small.items()}
    refuses(saved({"model": state, "moco_transfer": {**stamp, **change}}), words)


def test_refuses__names_on_several_lines_are_shown_on_one(saved, refuses, official_small):
    refuses(
        saved(changed(official_small, **{"bad\nname\x1b[2J": torch.zeros(1)})), r"bad\nname\x1b[2J"
    )
    refuses(saved({"state_dict": {}, "two\nlines": 3}), r"two\nlines")
    refuses(saved({"x" * 2000: torch.zeros(1)}), "holds no ResNet")


def test_refuses__when_the_disk_is_full(saved, refuses, official_small, monkeypatch):
    def dump(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pickle, "dump", dump)
    source = saved(official_small)
    with pytest.raises(InputError, match=r"Cannot write .*old.pkl: No space left on device"):
        convert_checkpoint(source, source.parent / "out" / "old.pkl")
    assert (source.parent / "out" / "old.pkl").read_bytes() == OLD
