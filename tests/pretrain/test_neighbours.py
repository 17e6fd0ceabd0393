"""Nearest neighbours against a loop; the pool and the queries against hand arithmetic.

Seen red under: the query its own neighbour; dot products for cosines; queries from the front; a
    pool that differs between calls.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.data.drawing import class_colour
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.scenes import write_pool
from moco_transfer.pretrain.neighbours import (
    draw_neighbours,
    draw_pool,
    nearest_neighbours,
    spread_queries,
)
from moco_transfer.runtime.errors import InputError


def test_nearest_neighbours__equals_a_loop():
    features = (
        torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
        * torch.linspace(0.1, 9, 30)[:, None]
    )
    cosines, rows = nearest_neighbours(features, [3, 20], k=4)
    for query, found, values in zip([3, 20], rows.tolist(), cosines.tolist(), strict=True):
        expected = []
        for other in range(30):
            if other != query:
                a, b = features[query].tolist(), features[other].tolist()
                cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
                    sum(x * x for x in a) * sum(y * y for y in b)
                )
                expected.append((cosine, other))
        expected.sort(reverse=True)
        assert found == [other for _, other in expected[:4]]
        assert values == pytest.approx([cosine for cosine, _ in expected[:4]], abs=1e-5)


def test_nearest_neighbours__refuses_more_than_there_are():
    with pytest.raises(
        InputError, match="5 neighbours were asked for, and 5 images can be read; ask for 1 to 4"
    ):
        nearest_neighbours(torch.ones(5, 2), [0], k=5)


def test_spread_queries__evenly():
    assert spread_queries(2, 10) == [2, 7]
    assert spread_queries(10, 10) == list(range(10))
    assert spread_queries(1, 1) == [0]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixteen generated images in eight class folders."""
    folder = tmp_path_factory.mktemp("images")
    write_pool(folder, count=16, size=20, seed=1)
    return find_images(folder)


def test_draw_pool__a_fixed_part(images):
    pool = draw_pool(images, 5)
    assert len(pool) == 5 and list(pool.indices) == sorted(set(pool.indices.tolist()))
    assert np.array_equal(pool.indices, draw_pool(images, 5).indices)
    assert pool.name(2) == images.name(int(pool.indices[2]))
    assert pool.class_name(2) == images.class_names[images.labels[pool.indices[2]]]
    assert np.array_equal(draw_pool(images, 99).indices, np.arange(16))
    assert list(pool.labels) == [0, 1, 2, 3, 4]


def test_draw_neighbours__frames_the_query_s_class(images, tmp_path):
    pool = draw_pool(images, 99)
    same = next(i for i in range(1, 16) if pool.class_name(i) == pool.class_name(0))
    other = next(i for i in range(1, 16) if pool.class_name(i) != pool.class_name(0))
    png, svg = draw_neighbours(
        tmp_path / "n.png", pool, [0], torch.tensor([[0.9, 0.5]]), torch.tensor([[same, other]])
    )
    pixels = np.asarray(Image.open(png).convert("RGB"))
    corners = [tuple(pixels[29, 8 + column * 152 + 50]) for column in range(3)]
    assert [corner == class_colour(0) for corner in corners] == [False, True, False]
    texts = (f"0.90  {pool.class_name(0)}", f"0.50  {pool.class_name(other)}", "query")
    assert all(f">{text}<" in svg.read_text(encoding="utf-8") for text in texts)
