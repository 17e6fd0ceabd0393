"""Published weights by name, from a mirror in a folder and from one behind http, without a network.

Seen red under: the hash not checked; the mirror's path without the host's folders; a failed
    download passed on as URLError.
"""

import functools
import hashlib
import http.server
import pickle
import socket
import threading
from urllib.parse import urlparse

import numpy as np
import pytest
import torch

from moco_transfer.cli.main import main
from moco_transfer.convert import convert_checkpoint, load_backbone, zoo
from moco_transfer.convert.key_maps import WRITE_NAME, detectron2_name
from moco_transfer.models import backbone_shapes
from moco_transfer.runtime.errors import InputError, MissingFileError


@pytest.fixture
def mirror(tmp_path, monkeypatch, official_small):
    """A folder with moco_v2_200ep whose hash is what the zoo expects, as MOCO_TRANSFER_MIRROR;
    iopath's cache is empty.
    """
    published = zoo.ZOO["moco_v2_200ep"]
    path = tmp_path / "mirror" / urlparse(published.url).path.lstrip("/")
    path.parent.mkdir(parents=True)
    torch.save(official_small, path)
    digest = hashlib.md5(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(zoo.ZOO, "moco_v2_200ep", zoo.Published(published.url, "md5", digest))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(zoo.MIRROR, str(tmp_path / "mirror"))
    return tmp_path / "mirror"


@pytest.fixture
def server(mirror, monkeypatch):
    """The mirror behind http on this machine; gives the list of paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            asked.append(self.path)

    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(mirror))
    )
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv(zoo.MIRROR, f"http://127.0.0.1:{httpd.server_port}")
    yield asked
    httpd.shutdown()
    httpd.server_close()


def test_zoo__the_published_hashes():
    assert {name: (entry.algorithm, entry.digest) for name, entry in zoo.ZOO.items()} == {
        "moco_v1_200ep": ("md5", "b251726a"),
        "moco_v2_200ep": ("md5", "59fd9945"),
        "moco_v2_800ep": ("md5", "a04e12f8"),
        "torchvision/R-50": ("sha256", "0676ba61"),
        "MSRA/R-50": ("sha256", ""),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "ResNet50_Weights.IMAGENET1K_V2",
            zoo.Published(
                "https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "sha256", "11ad3fa6"
            ),
        ),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", zoo.ZOO["MSRA/R-50"]),
        (
            "http://host/a/model_final_b275ba.pkl",
            zoo.Published("http://host/a/model_final_b275ba.pkl", "md5", "b275ba"),
        ),
        ("moco_v2.pkl", None),
        ("out/moco/checkpoint_0200.pth", None),
    ],
)
def test_published__names_and_paths(name, expected):
    assert zoo.published(name) == expected


def test_published__a_misspelt_name_of_torchvision():
    with pytest.raises(InputError, match="Resnet50_Weights.IMAGENET1K_V1"):
        zoo.published("Resnet50_Weights.IMAGENET1K_V1")


def test_convert__a_misspelt_published_name(tmp_path):
    with pytest.raises(MissingFileError, match="'moco_v2_800ep'"):
        convert_checkpoint("mocov2_800ep", tmp_path / "out.pkl")
    with pytest.raises(MissingFileError, match=r"other\.pth does not exist"):
        convert_checkpoint("other.pth", tmp_path / "out.pkl")


def test_convert__a_name_from_a_folder(mirror, tmp_path):
    report = convert_checkpoint("moco_v2_200ep", tmp_path / "m.pkl", verify=False)
    assert (report.source_format, report.stamp["source"]) == (
        "moco",
        "moco_v2_200ep_pretrain.pth.tar",
    )


def test_load_backbone__a_name_is_converted_on_the_way(server, tmp_path, small):
    weights = load_backbone("moco_v2_200ep")
    assert (
        weights.kind,
        weights.arch,
        weights.stamp["source_format"],
        weights.stamp["encoder"],
    ) == ("backbone", "resnet18", "moco", "q")
    assert np.array_equal(weights.arrays["stem.conv1.weight"], small["conv1.weight"].numpy())
    assert load_backbone("moco_v2_200ep").sha256 == weights.sha256
    assert len(server) == 1  # the second time it came from the cache


def test_local_file__a_wrong_hash_is_refused(mirror, monkeypatch):
    monkeypatch.setitem(
        zoo.ZOO, "moco_v2_200ep", zoo.Published(zoo.ZOO["moco_v2_200ep"].url, "md5", "00000000")
    )
    with pytest.raises(
        InputError,
        match=(
            r"is not the published moco_v2_200ep: its md5 begins with \w{8}, expected 00000000;"
            r" copy"
        ),
    ):
        zoo.local_file("moco_v2_200ep")
    assert list(mirror.rglob("moco_v2_200ep_pretrain.pth.tar"))  # the user's own copy stays


def test_local_file__a_download_with_a_wrong_hash_is_not_kept(server, mirror, monkeypatch):
    right = zoo.ZOO["moco_v2_200ep"]
    monkeypatch.setitem(zoo.ZOO, "moco_v2_200ep", zoo.Published(right.url, "md5", "00000000"))
    for _ in range(2):
        with pytest.raises(InputError, match="expected 00000000; it was deleted"):
            zoo.local_file("moco_v2_200ep")
    monkeypatch.setitem(zoo.ZOO, "moco_v2_200ep", right)
    assert zoo.local_file("moco_v2_200ep").is_file()
    assert len(server) == 3


@pytest.mark.parametrize(
    ("name", "arch"),
    [("ResNet18_Weights.IMAGENET1K_V1", "resnet18"), ("ResNet18_Weights.DEFAULT", "resnet18")],
)
def test_convert__a_name_of_torchvisions_weights(mirror, tmp_path, monkeypatch, r18, name, arch):
    """The file's name ends with the hash that torchvision published; a file of that name with other
    bytes is refused.
    """
    published = zoo.published(name)
    assert (published.algorithm, published.digest) == (
        "sha256",
        "f37072fd",
    ) and published.url.endswith("resnet18-f37072fd.pth")
    path = mirror / urlparse(published.url).path.lstrip("/")
    path.parent.mkdir(parents=True)
    torch.save(r18, path)
    with pytest.raises(InputError, match=f"is not the published {name}: its sha256 begins with"):
        convert_checkpoint(name, tmp_path / "t.pkl")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(zoo, "published", lambda _name: published._replace(digest=digest))
    report = convert_checkpoint(name, tmp_path / "t.pkl")
    assert (report.source_format, report.arch, report.stamp["source"]) == (
        "torchvision",
        arch,
        "resnet18-f37072fd.pth",
    )
    assert report.differences


def test_convert__msra_by_name_is_caffe2(mirror, tmp_path, small):
    """MSRA's R-50.pkl has Caffe2's names, BGR and strides in the 1x1 convolutions; fine-tuning
    takes it as MODEL.WEIGHTS.
    """
    blobs = {
        WRITE_NAME["caffe2"](name): torch.ones(()).expand(shape).numpy()
        for name, shape in backbone_shapes("resnet50").items()
    }
    path = mirror / "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(blobs, protocol=2))
    weights = load_backbone("MSRA/R-50")
    assert (weights.arch, weights.stamp["format"], weights.stamp["stride_in_1x1"]) == (
        "resnet50",
        "BGR",
        True,
    )
    assert weights.arrays.keys() == {detectron2_name(name) for name in backbone_shapes("resnet50")}


def test_convert__a_name_from_an_address_of_a_folder(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv(zoo.MIRROR, f"file://{mirror}/")
    assert convert_checkpoint("moco_v2_200ep", tmp_path / "m.pkl", verify=False).arch == "resnet18"
    monkeypatch.setenv(zoo.MIRROR, "s3://bucket")
    with pytest.raises(
        InputError, match="s3://bucket.*MOCO_TRANSFER_MIRROR is no folder and no http address"
    ):
        zoo.local_file("moco_v2_200ep")


def test_command__without_a_network_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv(zoo.MIRROR, "http://127.0.0.1:1")
    assert main(["convert", "moco_v2_800ep", str(tmp_path / "m.pkl")]) == 2
    lines = capsys.readouterr().err.split("\n")  # before the last one, iopath's progress bar
    assert (
        lines[-2].startswith("moco-transfer convert: Cannot download moco_v2_800ep from")
        and "MOCO_TRANSFER_MIRROR" in lines[-2]
    )
    assert not (tmp_path / "m.pkl").exists()


def test_local_file__without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv(zoo.MIRROR, "http://127.0.0.1:1")
    with pytest.raises(
        InputError, match=r"Cannot download moco_v1_200ep from http://127.0.0.1:1/moco/"
    ):
        zoo.local_file("moco_v1_200ep")
    monkeypatch.setenv(zoo.MIRROR, str(tmp_path))
    with pytest.raises(
        InputError, match="moco_v1_200ep_pretrain.pth.tar, needed for moco_v1_200ep"
    ):
        zoo.local_file("moco_v1_200ep")


def test_local_file__a_host_that_is_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "TIMEOUT_SEC", 0.2)
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as silent:  # takes the connection, and never answers
        monkeypatch.setenv(zoo.MIRROR, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match="Cannot download moco_v1_200ep .*timed out"):
            zoo.local_file("moco_v1_200ep")
    assert socket.getdefaulttimeout() is None


def test_local_file__says_when_nothing_was_published_to_check(mirror, caplog):
    path = mirror / "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert zoo.local_file("MSRA/R-50") == path
    assert "MSRA/R-50 has no published hash" in caplog.text
