"""Hostile documents by hypothesis: values of any shape at any place of a good JSON, YAML or XML."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import escape

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MARKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../etc",
    "\x01",
    "{{7*7}}",
)

LETTERS = st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12)  # of RLE
NUMBERS = st.integers() | st.integers(-(10**400), 10**400) | st.floats()
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from(MARKS)
RLE = st.fixed_dictionaries(
    {
        "size": st.builds(lambda: [12, 10]) | st.lists(NUMBERS, max_size=3),
        "counts": LETTERS | LETTERS.map(str.encode).map(bytes.decode) | st.lists(NUMBERS),
    }
)
VALUES = st.recursive(
    LEAVES | RLE,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
DEEP = st.integers(1, 3000).map(lambda levels: "[" * levels)


@st.composite
def damaged(draw: Callable[[Any], Any], document: Any) -> Any:
    """Return a document with one to three of its values replaced or taken out."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        node = document
        while isinstance(node, (dict, list)) and node:
            key = draw(st.sampled_from(list(node if isinstance(node, dict) else range(len(node)))))
            if isinstance(node[key], (dict, list)) and draw(st.integers(0, 3)):
                node = node[key]
                continue
            if draw(st.integers(0, 5)):
                node[key] = draw(VALUES)
            else:
                del node[key]
            break
    return document


def as_json(document: Any) -> bytes:
    """Return a JSON text of a document."""
    return json.dumps(document).encode()


def as_yaml(document: Any) -> bytes:
    """Return a YAML text of a document."""
    return yaml.safe_dump(document).encode()


def as_lines(document: Any) -> bytes:
    """Return a metrics.json of rows."""
    return b"\n".join(map(as_json, document))


def rendered(node: Any) -> str:
    """Return the XML of ``[tag, children or text]``; other values as they are, or escaped."""
    if isinstance(node, list) and len(node) == 2 and isinstance(node[0], str):
        return f"<{node[0]}>{rendered(node[1])}</{node[0]}>"
    if isinstance(node, list):
        return "".join(map(rendered, node))
    return str(node) if len(str(node)) % 2 else escape(str(node))


@st.composite
def as_xml(draw: Callable[[Any], Any], document: Any) -> bytes:
    """Return a damaged XML document, perhaps with entities that refer to each other."""
    times, levels = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    entities = ['<!ENTITY e0 "cat">']
    for level in range(levels):
        entities.append(f'<!ENTITY e{level + 1} "{f"&e{level};" * times}">')
    text = rendered(draw(damaged(document))).replace("cat", f"&e{levels};")
    return f"<!DOCTYPE a [{''.join(entities)}]>{text}".encode()


VOC = ["annotation", [["filename", "1.jpg"], ["size", [["width", 10], ["height", 12]]]]]
VOC[1] += [["object", [["name", "cat"], ["difficult", 0], ["bndbox", [["xmin", 1], ["ymin", 2]]]]]]
VOC[1][2][1][2][1] += [["xmax", 5], ["ymax", 6.5]]


def strategies(files: dict[str, bytes]) -> dict[str, st.SearchStrategy[bytes]]:
    """Return what generates the files of each reader, from its good file."""
    found = {name: damaged(json.loads(files[name])).map(as_json) for name in ("coco", "rle")}
    found |= {name: damaged(json.loads(files[name])).map(as_json) for name in ("results", "page")}
    for name in ("pretrain config", "detection config"):
        found[name] = damaged(yaml.safe_load(files[name])).map(as_yaml)
    rows = [json.loads(line) for line in files["metrics"].splitlines()[:3]]
    found["metrics"] = damaged(rows).map(as_lines)
    found["xml"] = as_xml(VOC)
    return found


def feed(strategy: st.SearchStrategy[bytes], count: int, number: int, take: Any) -> None:
    """Give ``count`` files to ``take``."""

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(strategy)
    def each(data: bytes) -> None:
        take(data)

    each()
