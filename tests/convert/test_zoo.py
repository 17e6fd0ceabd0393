"""Published weights by name, from a mirror in a folder and from one behind http, without a network.

Seen red under: the hash not checked; the mirror's path without the host's folders; a failed download passed on as URLError.
"""

import functools
import hashlib
import http.server
import threading
from urllib.parse import urlparse

import numpy as np
import pytest
import torch

from moco_transfer.convert import convert_checkpoint, load_backbone, zoo
from moco_transfer.runtime.errors import InputError


@pytest.fixture
def mirror(tmp_path, monkeypatch, official_small):
    """A folder with moco_v2_200ep whose hash is what the zoo expects, as MOCO_TRANSFER_MIRROR; iopath's cache is empty."""
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

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(mirror)))
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
            zoo.Published("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "sha256", "11ad3fa6"),
        ),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", zoo.ZOO["MSRA/R-50"]),
        ("http://host/a/model_final_b275ba.pkl", zoo.Published("http://host/a/model_final_b275ba.pkl", "md5", "b275ba")),
        ("moco_v2.pkl", None),
        ("out/moco/checkpoint_0200.pth", None),
    ],
)
def test_published__names_and_paths(name, expected):
    assert zoo.published(name) == expected


def test_published__a_misspelt_name_of_torchvision():
    with pytest.raises(InputError, match="Did you mean 'ResNet50_Weights.IMAGENET1K_V1'"):
        zoo.published("Resnet50_Weights.IMAGENET1K_V1")


def test_convert__a_name_from_a_folder(mirror, tmp_path):
    report = convert_checkpoint("moco_v2_200ep", tmp_path / "m.pkl", verify=False)
    assert (report.source_format, report.stamp["source"]) == ("moco", "moco_v2_200ep_pretrain.pth.tar")


def test_load_backbone__a_name_is_converted_on_the_way(server, tmp_path, small):
    weights = load_backbone("moco_v2_200ep")
    assert (weights.kind, weights.arch, weights.stamp["source_format"], weights.stamp["encoder"]) == (
        "backbone",
        "resnet18",
        "moco",
        "q",
    )
    assert np.array_equal(weights.arrays["stem.conv1.weight"], small["conv1.weight"].numpy())
    assert load_backbone("moco_v2_200ep").sha256 == weights.sha256
    assert len(server) == 1  # the second time it came from the cache


def test_local_file__a_wrong_hash_is_refused(mirror, monkeypatch):
    monkeypatch.setitem(zoo.ZOO, "moco_v2_200ep", zoo.Published(zoo.ZOO["moco_v2_200ep"].url, "md5", "00000000"))
    with pytest.raises(InputError, match=r"is not the published moco_v2_200ep: its md5 begins with \w{8}, expected 00000000"):
        zoo.local_file("moco_v2_200ep")


def test_local_file__without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv(zoo.MIRROR, "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"Cannot download moco_v1_200ep from http://127.0.0.1:1/moco/.* pass the file"):
        zoo.local_file("moco_v1_200ep")
    monkeypatch.setenv(zoo.MIRROR, str(tmp_path))
    with pytest.raises(InputError, match="The mirror .* has no .*moco_v1_200ep_pretrain.pth.tar"):
        zoo.local_file("moco_v1_200ep")


def test_local_file__says_when_nothing_was_published_to_check(mirror, caplog):
    path = mirror / "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert zoo.local_file("MSRA/R-50") == path
    assert "no hash of it was published" in caplog.text
