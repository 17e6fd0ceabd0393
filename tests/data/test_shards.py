"""Tar shards: what they hold; local ones are read as a folder is, others as a stream: who reads
which, in which order, and what a damaged one does.

The images have one colour each, so a batch says which images it is made of.

Went red under: keys up to the last dot; no look for the end of the archive; the index kept for a
changed shard; the same shards for all processes, or for all workers; the same order in each epoch;
a resumed worker that takes the stream of its own number, gives used images again, or skips nothing;
blocks not shuffled, or all in the same order; views without the epoch; an unreadable image replaced
from the wrong place; a transfer opened again from the start, or its failure not asked for; an error
left to the worker; numbers of images not compared; shards counted in spite of DATA.NUM_IMAGES, or
not looked for. In pretrain/test_shard_runs.py: the place in the run ignored on resuming.
"""

from __future__ import annotations

import functools
import http.server
import importlib
import importlib.util
import io
import json
import re
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from shard_tools import number_of, png, write_shards, write_tar

from moco_transfer.data.images import tar_shards
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.images.sources import open_source
from moco_transfer.data.images.tar_shards import LocalShards, ShardStream, index_shard
from moco_transfer.data.views import order as run_order
from moco_transfer.data.views.loading import Loader, plan_batches
from moco_transfer.data.views.order import ShardBatches
from moco_transfer.data.views.view_batch import ViewMaker, Views
from moco_transfer.runtime.errors import InputError, MissingFileError

pytest.importorskip("webdataset", reason="webdataset is not installed (extra 'shards')")
tariterators = importlib.import_module("webdataset.tariterators")

MAKE_VIEWS = ViewMaker("supervised", 8, (0.2, 1.0), 1)


def plan(source, **more) -> ShardBatches:
    settings = {
        "batch_size_total": 4,
        "epochs": 3,
        "seed": 0,
        "num_workers": 0,
        "shuffle_buffer": 5,
    } | more
    return ShardBatches(source, **settings)


def stream(folder) -> ShardStream:
    """Open local shards as a stream of counted ones."""
    files = sorted(folder.glob("*.tar"))
    counts = np.array([len(index_shard(file)) for file in files])
    return ShardStream(str(folder), tuple(map(str, files)), int(counts.sum()), counts)


def read(batches: ShardBatches, make_views=MAKE_VIEWS) -> list[dict]:
    """Load what is left of a run."""
    loader = Loader(
        batches.shards, batches, make_views, num_workers=batches.num_workers, pin_memory=False
    )
    loaded = list(loader)
    assert len(loaded) == len(loader)
    return loaded


def numbers(batches: list[dict]) -> list[int]:
    return [number_of(view.numpy()) for batch in batches for view in batch["views"][0]]


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert (
            torch.equal(x["views"], y["views"])
            and torch.equal(x["index"], y["index"])
            and x["unreadable"] == y["unreadable"]
        )


# --- what the shards hold ---


def test_open_shards__counts_what_webdataset_reads(tmp_path):
    """Odd names: the count from headers and the images that webdataset yields must be the same."""
    members = [
        ("000.jpg", png(0)), ("000.cls", b"1"), ("000.json", b"{}"),
        ("001.cls", b"0"), ("001.PNG", png(1)),
        ("002.txt", b"a sample without an image"),
        ("003.seg.png", b"mask"), ("003.webp", png(3)),
        ("photo.v2.jpg", png(4)),
        ("__meta__/x.jpg", png(5)), ("./006.jpeg", png(6)), ("sub.dir/007.png", png(7)),
        ("no_extension", b"x"), ("sub.dir/008.jpg", png(8)),
        ("漢字-009.jpg", png(9)),
    ]  # fmt: skip
    path = write_tar(tmp_path / "odd.tar", members)
    expected = [
        ("000.jpg", 1),
        ("001.PNG", 0),
        ("003.webp", -1),
        ("./006.jpeg", -1),
        ("sub.dir/007.png", -1),
        ("sub.dir/008.jpg", -1),
        ("漢字-009.jpg", -1),
    ]
    with open(path, "rb") as opened:
        members = tariterators.tar_file_expander([{"url": "", "stream": opened}])
        samples = list(tariterators.group_by_keys(members, lcase=False))
    webdatasets = [sample["__key__"] for sample in samples]
    assert {name.rpartition(".")[0] for name, _ in expected} <= set(webdatasets)
    streamed = list(tar_shards.read_shard(str(path)))
    index = index_shard(path)
    assert [(name.removeprefix(f"{path}: "), label) for name, _, label in streamed] == expected
    assert list(zip(index.names, index.labels, strict=True)) == expected
    source = open_source(str(path))
    assert source.name(0) == f"{path}: 000.jpg" and source.labels.tolist() == []
    assert [bytes(source.content(i)) for i in range(7)] == [data for _, data, _ in streamed]


def test_open_shards__image_whose_name_has_a_further_dot_is_named(tmp_path, caplog):
    index_shard(write_tar(tmp_path / "x.tar", [("photo.v2.jpg", png(0)), ("ok.jpg", png(1))]))
    assert "1 images are left out, the first is photo.v2.jpg" in caplog.text


def test_open_shards__folder_pattern_file_and_gzip_are_the_same(tmp_path):
    write_shards(tmp_path / "s", [3, 5, 2])
    by_folder = open_source(str(tmp_path / "s"))
    by_pattern = open_source(str(tmp_path / "s" / "train-{000..002}.tar"))
    assert isinstance(by_folder, LocalShards) and len(by_folder) == 10
    assert by_folder.files == by_pattern.files
    zipped = open_source(
        str(write_tar(tmp_path / "z.tar.gz", [("0.png", png(7)), ("1.png", png(8))]))
    )
    assert isinstance(zipped, ShardStream) and zipped.counts.tolist() == [2]
    assert sorted(numbers(read(plan(zipped, batch_size_total=2, epochs=1)))) == [7, 8]


def test_open_shards__index_is_kept_and_made_again_when_a_shard_changes(tmp_path, monkeypatch):
    write_shards(tmp_path, [3, 5])
    first = open_source(str(tmp_path))
    assert len(first) == 8
    kept = [tmp_path / f"train-00{i}.tar.index.npz" for i in (0, 1)]
    assert sorted(tmp_path.glob("*.npz")) == kept
    indexed = []
    monkeypatch.setattr(
        tar_shards, "index_shard", lambda file: indexed.append(file.name) or index_shard(file)
    )
    again = open_source(str(tmp_path))
    assert len(again) == 8 and indexed == []
    for i in range(8):
        assert again.name(i) == first.name(i) and again.content(i) == first.content(i)
    write_shards(tmp_path, [3, 6])
    assert len(open_source(str(tmp_path))) == 9 and indexed[-1] == "train-001.tar"
    indexed.clear()
    kept[0].write_text("not an index")
    assert len(open_source(str(tmp_path))) == 9 and indexed == ["train-000.tar"]


def test_open_shards__classes(tmp_path):
    labelled = open_source(str(write_shards(tmp_path / "a", [3, 2], labels=True)))
    assert labelled.class_names == ("0", "1", "2") and labelled.labels.tolist() == [0, 1, 2, 0, 1]
    assert open_source(str(write_shards(tmp_path / "b", [3, 2]))).class_names == ()
    streamed = read(plan(stream(tmp_path / "a"), epochs=1))
    assert streamed[0]["label"].tolist() == [n % 3 for n in numbers(streamed)]


def test_open_shards__num_images_is_trusted_and_nothing_counted(tmp_path, monkeypatch):
    """What IG-1B's hundred thousand shards need; what differs is what docs/images.md says."""
    write_shards(tmp_path, [6] * 4, labels=True)
    counted = read(plan(stream(tmp_path), num_workers=2, epochs=2))
    monkeypatch.setattr(tar_shards, "index_shard", lambda file: pytest.fail(f"{file} was counted"))
    trusted = open_source(str(tmp_path / "train-{000..003}.tar"), num_images=24)
    assert isinstance(trusted, ShardStream) and len(trusted) == 24
    assert not trusted.is_counted and trusted.class_names == ()
    assert not list(tmp_path.glob("*.npz"))
    batches = plan(trusted, num_workers=2, epochs=2)
    whole = read(batches)
    assert numbers(whole) == numbers(counted)  # the same images in the same order
    assert_same(
        read(plan(trusted, num_workers=2, epochs=2, start_iteration=8)), whole[8:]
    )  # in the middle of the second epoch
    assert batches.order["DATA.NUM_IMAGES"] == 24
    more = read(plan(open_source(str(tmp_path), num_images=32), epochs=1))
    assert len(more) == 8 and set(numbers(more)) == set(range(24))  # some come twice
    assert (
        len(set(numbers(read(plan(open_source(str(tmp_path), num_images=8), epochs=1))))) == 8
    )  # the rest is left out
    with pytest.raises(MissingFileError, match=r"train-004.tar does not exist \(1 of 5 do not\)"):
        open_source(str(tmp_path / "train-{000..004}.tar"), num_images=24)


def test_open_shards__index_file(tmp_path):
    write_shards(tmp_path / "s", [3, 5])
    content = {
        "shardlist": [
            {"url": "s/train-001.tar", "nsamples": 5},
            {"url": "s/train-000.tar", "nsamples": 3},
        ]
    }
    (tmp_path / "index.json").write_text(json.dumps(content))
    source = open_source(str(tmp_path / "index.json"))
    assert [file.name for file in source.files] == ["train-001.tar", "train-000.tar"]
    assert len(source) == 8
    for bad, sentence in (
        ({"shardlist": [{"url": "pipe:touch x", "nsamples": 1}]}, "asks to run a program"),
        ({"shards": []}, "is not an index of shards"),
        ({"shardlist": [{"url": "s/none.tar", "nsamples": 1}]}, "s/none.tar does not exist"),
        ({"shardlist": [{"url": "s/train-000.tar", "nsamples": 4}]}, "hold 3 images, expected 4"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(bad))
        with pytest.raises(InputError, match=sentence):
            open_source(str(tmp_path / "bad.json"))


def test_open_shards__refuses(tmp_path, monkeypatch):
    write_shards(tmp_path / "s", [3])
    with pytest.raises(MissingFileError, match=r"train-001.tar does not exist \(1 of 2 do not\)"):
        open_source(str(tmp_path / "s" / "train-{000..001}.tar"))
    (tmp_path / "i.json").write_text(
        json.dumps({"shardlist": [{"url": "https://x.org/0.tar", "nsamples": 3}]})
    )
    with pytest.raises(InputError, match="DATA.NUM_IMAGES is 4, but .*i.json counts 3"):
        open_source(str(tmp_path / "i.json"), num_images=4)
    with pytest.raises(InputError, match="set DATA.NUM_IMAGES"):
        open_source("https://example.org/train-{000..002}.tar")
    write_tar(tmp_path / "none" / "x.tar", [("a.txt", b"")])
    with pytest.raises(InputError, match="hold 0 images"):
        open_source(str(tmp_path / "none"))
    whole = (tmp_path / "s" / "train-000.tar").read_bytes()
    # The second header; tar takes it for the end, without an error.
    damaged = whole[:1024] + b"\xaa" * 512 + whole[1536:]
    # In a member, in and behind a header, behind a member.
    for content in (whole[:700], whole[:1200], whole[:1536], whole[:1024], damaged):
        (tmp_path / "cut.tar").write_bytes(content)
        with pytest.raises(InputError, match="cut.tar"):
            open_source(str(tmp_path / "cut.tar"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert len(open_source(str(tmp_path / "s"))) == 3
    with pytest.raises(InputError, match=r"pip install 'moco-transfer\[shards\]'"):
        open_source("https://example.org/0.tar", num_images=3)


def test_shard_batches__sizes_that_do_not_fit__error(tmp_path):
    source = stream(write_shards(tmp_path, [3, 5, 3]))
    with pytest.raises(
        InputError,
        match=r"3 shards, fewer than the 4 data workers \(2 processes x 2\).*WORKERS to at most 1",
    ):
        plan(source, num_workers=2, world_size=2)
    with pytest.raises(InputError, match="start at most 3 processes"):
        plan(source, num_workers=2, world_size=4)
    with pytest.raises(InputError, match="holds 11 images, less than one batch of 12"):
        plan(source, batch_size_total=12)
    with pytest.raises(InputError, match="does not divide among 3 processes"):
        plan(source, world_size=3)


# --- local shards ---


@pytest.mark.parametrize("num_workers", [0, 2])
def test_local_shards__are_read_as_a_folder_of_the_same_images(tmp_path, num_workers):
    """The same order, crops, labels and replacements; and a run resumes in the middle of an
    epoch.
    """
    rng = np.random.default_rng(0)
    for i in range(16):
        path = tmp_path / "f" / str(i // 9) / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    path.write_bytes(b"damaged")
    files = sorted((tmp_path / "f").rglob("*.png"))
    for s in (0, 1):
        members = []
        for file in files[8 * s : 8 * s + 8]:
            members.append((file.name, file.read_bytes()))
            members.append((f"{file.stem}.cls", file.parent.name.encode()))
        write_tar(tmp_path / "s" / f"{s}.tar", members)

    def batches(root, start=0):
        source = open_source(str(root))
        settings = {"epochs": 2, "seed": 0, "num_workers": num_workers, "shuffle_buffer": 5}
        order = plan_batches(source, batch_size_total=4, start_iteration=start, **settings)
        make = ViewMaker("v2", 16, (0.2, 1.0), 2, "fast")
        return list(Loader(source, order, make, num_workers=num_workers, pin_memory=False))

    folder, shards = batches(tmp_path / "f"), batches(tmp_path / "s")
    assert len(folder) == 8 and any(batch["unreadable"] for batch in shards)
    assert_same(batches(tmp_path / "s", start=5), shards[5:])
    for a, b in zip(folder, shards, strict=True):
        for name in ("views", "colours", "label", "index"):
            assert torch.equal(a[name], b[name])


# --- who reads what, and in which order ---


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch__each_image_once_and_the_last_part_left_out(tmp_path, num_workers):
    source = stream(write_shards(tmp_path, [6, 6, 6, 6]))
    batches = read(plan(source, batch_size_total=6, num_workers=num_workers, epochs=2))
    assert len(batches) == 8
    epochs = [numbers(batches[:4]), numbers(batches[4:])]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[0] != list(range(24))
    assert [n for batch in batches for n in batch["index"].tolist()] == [*epochs[0], *epochs[1]]


def test_epoch__last_partial_batch_is_left_out_and_changes_from_epoch_to_epoch(tmp_path):
    source = stream(write_shards(tmp_path, [4, 4, 3]))
    batches = read(plan(source, batch_size_total=4, epochs=12))
    left_out = {tuple(set(range(11)) - set(numbers(batches[2 * e : 2 * e + 2]))) for e in range(12)}
    assert left_out == {(1, 2, 3), (5, 6, 7), (8, 9, 10)}  # the end of whichever shard comes last


def test_epoch__blocks_are_shuffled_within_themselves(tmp_path):
    source = stream(write_shards(tmp_path, [40]))
    kept = numbers(read(plan(source, epochs=1, shuffle_buffer=1)))
    assert kept == list(range(40))
    blocks = numbers(read(plan(source, epochs=1, shuffle_buffer=10)))
    for i in range(0, 40, 10):
        assert sorted(blocks[i : i + 10]) == list(range(i, i + 10)) != blocks[i : i + 10]
    assert [n % 10 for n in blocks[:10]] != [n % 10 for n in blocks[10:20]]
    assert sorted(numbers(read(plan(source, epochs=1, shuffle_buffer=1000)))) == list(range(40))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes__read_different_shards(tmp_path, num_workers):
    source = stream(write_shards(tmp_path, [6] * 8))
    parts = [
        read(
            plan(
                source,
                batch_size_total=8,
                num_workers=num_workers,
                world_size=2,
                rank=rank,
                epochs=2,
            )
        )
        for rank in (0, 1)
    ]
    for epoch in (0, 1):
        seen = [numbers(part[6 * epoch : 6 * epoch + 6]) for part in parts]
        assert [len(s) for s in seen] == [24, 24] and sorted(seen[0] + seen[1]) == list(range(48))
        assert not {n // 6 for n in seen[0]} & {n // 6 for n in seen[1]}  # no shard is read by both
    assert {n // 6 for n in numbers(parts[0][:6])} != {
        n // 6 for n in numbers(parts[0][6:])
    }  # dealt out again


def test_workers__read_different_shards(tmp_path):
    source = stream(write_shards(tmp_path, [6] * 4))
    batches = read(plan(source, batch_size_total=3, num_workers=2, epochs=1))
    shards = [{n // 6 for n in numbers(batches[w::2])} for w in (0, 1)]
    assert [len(s) for s in shards] == [2, 2] and not shards[0] & shards[1]


def test_uneven_shards__read_again(tmp_path):
    """10 and 2 images for two workers: 3 iterations of 4; the small shard's worker comes round to
    it again.
    """
    source = stream(write_shards(tmp_path, [10, 2]))
    batches = plan(source, num_workers=2, epochs=1)
    found = Counter(numbers(read(batches)))
    assert sum(found.values()) == 12
    small = sum(found[n] for n in (10, 11))
    assert small in (4, 8) and found[10] == found[11] == small // 2
    assert batches.uneven() == pytest.approx(4 / 12)  # each stream should give 6, one has 2


def test_views__are_those_of_the_same_image_in_a_folder(tmp_path):
    """Function of (seed, epoch, index): a folder of the same images in the shards' order gives
    the same pixels.
    """
    rng = np.random.default_rng(0)
    (tmp_path / "f").mkdir()
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
            tmp_path / "f" / f"{i:03d}.png"
        )
    files = sorted((tmp_path / "f").iterdir())
    for s in (0, 1):
        write_tar(
            tmp_path / "s" / f"{s}.tar",
            [(file.name, file.read_bytes()) for file in files[8 * s : 8 * s + 8]],
        )
    make = ViewMaker("v2", 16, (0.2, 1.0), 2)
    batches = plan(stream(tmp_path / "s"), epochs=2, num_workers=2)
    views = Views(find_images(tmp_path / "f"), make, seed=0)
    for iteration, batch in enumerate(read(batches, make)):
        for n, index in enumerate(batch["index"].tolist()):
            expected = views[[(iteration // 4, index)]]["views"][:, 0]
            assert torch.equal(batch["views"][:, n], expected)


@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_resume__in_the_middle_of_an_epoch_equals_the_whole_run(tmp_path, num_workers):
    """At every iteration of three epochs, with unreadable images, blocks that do not divide, and
    shards read twice.
    """
    source = stream(write_shards(tmp_path, [7, 3, 9, 4, 6], broken=(2, 8, 11, 20)))
    make = ViewMaker("v2", 8, (0.2, 1.0), 2)
    settings = {"num_workers": num_workers, "shuffle_buffer": 3}
    whole = read(plan(source, **settings), make)
    assert len(whole) == 21 and any(batch["unreadable"] for batch in whole)
    for start in range(0 if num_workers == 0 else 1, 21, 1 if num_workers == 0 else 5):
        assert_same(read(plan(source, start_iteration=start, **settings), make), whole[start:])


def test_resume__does_not_open_shards_that_are_used_up(tmp_path, monkeypatch):
    source = stream(write_shards(tmp_path, [10] * 6))
    opened = []
    read_shard = tar_shards.read_shard
    monkeypatch.setattr(run_order, "read_shard", lambda url: opened.append(url) or read_shard(url))
    read(plan(source, epochs=1, start_iteration=12))  # 48 of 60 images are used
    assert len(opened) == 2


def test_resume__with_other_workers_is_another_order(tmp_path):
    source = stream(write_shards(tmp_path, [6] * 4))
    orders = [plan(source, num_workers=n).order for n in (0, 1, 2)]
    assert orders[0] == orders[1] != orders[2]  # one stream without workers and with one


# --- damage ---


def test_unreadable__replaced_and_named_and_nothing_else_moves(tmp_path):
    whole = read(plan(stream(write_shards(tmp_path / "a", [10, 10])), shuffle_buffer=8))
    damaged = read(
        plan(stream(write_shards(tmp_path / "b", [10, 10], broken=(3, 12))), shuffle_buffer=8)
    )
    named = {name for batch in damaged for name in batch["unreadable"]}
    assert named == {
        f"{tmp_path}/b/train-000.tar: 000003.png",
        f"{tmp_path}/b/train-001.tar: 000012.png",
    }
    before, after = numbers(whole), numbers(damaged)
    assert not {3, 12} & set(after) and len(before) == len(after)
    assert all(a == b for a, b in zip(before, after, strict=True) if a not in (3, 12))


def test_unreadable__shard_without_one_good_image_gives_up(tmp_path):
    source = stream(write_shards(tmp_path, [4], broken=(0, 1, 2, 3)))
    assert read(plan(source, epochs=1))[0]["given_up"] == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shard_that_changed_under_the_run__one_sentence(tmp_path, num_workers):
    source = stream(write_shards(tmp_path, [6, 6]))
    write_shards(tmp_path, [6, 5])
    with pytest.raises(
        InputError, match=r"Shard .*train-001.tar holds 5 images, the index says 6"
    ) as caught:
        read(plan(source, num_workers=num_workers))
    assert "\n" not in str(caught.value)
    write_shards(tmp_path, [6, 7])
    with pytest.raises(InputError, match="holds more images, the index says 6"):
        read(
            plan(source, num_workers=num_workers, epochs=9)
        )  # seen once the shard is not the last of an epoch
    path = tmp_path / "train-001.tar"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="Shard .*train-001.tar cannot be read after 0 images"):
        read(plan(source, num_workers=num_workers))
    path.unlink()
    with pytest.raises(InputError, match="Shard .*train-001.tar cannot be read"):
        read(plan(source, num_workers=num_workers))


# --- by URL ---


class _Server(http.server.SimpleHTTPRequestHandler):
    broken_once: set[str] = set()

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.translate_path(self.path)
        if self.path in self.broken_once:  # a transfer that breaks off half-way, once
            self.broken_once.discard(self.path)
            with open(path, "rb") as file:
                content = file.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2 // 512 * 512])
            self.wfile.flush()
            self.connection.close()
            return
        super().do_GET()


@pytest.fixture
def served(tmp_path):
    """Yield (URL of a folder, handler class); the folder is tmp_path."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Server, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_url__same_images_as_local_and_resumes(tmp_path, served):
    local = stream(write_shards(tmp_path, [6] * 4))
    remote = open_source(f"{served}/train-{{000..003}}.tar", num_images=24)
    assert not remote.is_counted and len(remote) == 24
    settings = {"num_workers": 2, "epochs": 2}
    whole = read(plan(remote, **settings))
    assert numbers(whole) == numbers(
        read(plan(local, **settings))
    )  # one colour each: the crops do not matter
    assert_same(read(plan(remote, start_iteration=5, **settings)), whole[5:])
    (tmp_path / "i.json").write_text(
        json.dumps(
            {"shardlist": [{"url": f"{served}/train-{i:03d}.tar", "nsamples": 6} for i in range(4)]}
        )
    )
    assert_same(
        read(plan(open_source(str(tmp_path / "i.json")), **settings)), read(plan(local, **settings))
    )


def test_url__transfer_that_breaks_off_goes_on(tmp_path, served, caplog, monkeypatch):
    monkeypatch.setattr(tar_shards.time, "sleep", lambda _: None)
    for s in (0, 1):  # long enough that the transfer cannot end before the first images are read
        members = [
            (f"{n}.{ext}", content)
            for n in range(40 * s, 40 * s + 40)
            for ext, content in (("png", png(n)), ("txt", bytes(20_000)))
        ]
        write_tar(tmp_path / f"train-00{s}.tar", members)
    remote = open_source(f"{served}/train-{{000..001}}.tar", num_images=80)
    _Server.broken_once.add("/train-001.tar")
    assert sorted(numbers(read(plan(remote, epochs=1)))) == list(range(80))
    assert re.search(r"train-001.tar broke off after [1-9]", caplog.text)


def test_url__that_does_not_exist__one_sentence(tmp_path, served, monkeypatch):
    monkeypatch.setattr(tar_shards.time, "sleep", lambda _: None)
    remote = open_source(f"{served}/none-{{0..1}}.tar", num_images=8)
    with pytest.raises(InputError, match="Shard http.*none-[01].tar cannot be read after 0 images"):
        read(plan(remote))


def test_pipe__program_that_writes_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_shards.time, "sleep", lambda _: None)
    write_shards(tmp_path, [6, 6])
    source = open_source(f"pipe:cat {tmp_path}/train-{{000..001}}.tar", num_images=12)
    assert sorted(numbers(read(plan(source, epochs=1)))) == list(range(12))
    failing = open_source(
        f"pipe:head -c 6144 {tmp_path}/train-{{000..001}}.tar; exit 3", num_images=12
    )
    with pytest.raises(InputError, match="exit 3"):
        read(plan(failing))


def test_url__transfer_that_fails_behind_a_clean_end__error(tmp_path, monkeypatch):
    """Tar sees nothing wrong when a shard stops between two members; the program that fetched it
    says so when it is closed.
    """
    content = write_tar(tmp_path / "x.tar", [("0.png", png(0)), ("1.png", png(1))]).read_bytes()[
        :1024
    ]

    class Failing(io.BytesIO):
        def close(self):
            if not self.closed:
                super().close()
                raise OSError("curl: exit 18")

    monkeypatch.setattr(tar_shards.time, "sleep", lambda _: None)
    importlib.import_module("webdataset.gopen")
    monkeypatch.setattr(sys.modules["webdataset.gopen"], "gopen", lambda url: Failing(content))
    with pytest.raises(InputError, match="cannot be read after 1 images .*exit 18"):
        list(tar_shards.read_shard("https://example.org/x.tar"))
