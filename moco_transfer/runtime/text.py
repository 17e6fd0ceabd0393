"""Text files as people's programs write them: with a byte order mark, or in an encoding that XML
declares. What is no text at all is named: a page, an archive, a pointer of Git LFS.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, MissingFileError
from .files import regular

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NATURES = (  # of files that lie where another kind is expected, by their first bytes
    (rb"\Z", "empty: get it again"),
    (rb"\s*<(!doctype\s+html|html)", "an HTML page: its download failed, get the file itself"),
    (rb"version https://git-lfs", "a pointer of Git LFS: get the file with git lfs pull"),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive: unpack it"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|(?s:.{257})ustar", "a compressed file or an archive: unpack it"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
    (rb"%PDF", "a PDF"),
    (rb"\x89HDF", "an HDF5 file"),
)
_DECLARED = re.compile(rb"\s*<\?xml[^>]*?\sencoding\s*=\s*[\"']([\w.:-]+)[\"']")
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932"}  # what programs mean by it


def nature_of(data: bytes) -> str:
    """Return what a file is by its first 512 bytes, and what to do; "" for what is not known here.

    A sentence continues with it: ``FILE is an HTML page: ...``.
    """
    found = (nature for start, nature in _NATURES if re.match(start, data, re.IGNORECASE))
    return next(found, "")


def read_text(path: str | os.PathLike[str], *, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, or in what its byte order mark says.

    ``errors`` is of ``bytes.decode``; a file with NUL bytes is no text. MissingFileError if there
    is no file, InputError if it cannot be read or has another encoding.
    """
    return _decode(read_bytes(path), path, "utf-8", errors)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file; MissingFileError, or InputError if it cannot be read."""
    try:
        return Path(regular(path)).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}.") from error


def read_xml(path: str | os.PathLike[str]) -> ElementTree.Element:
    """Return the root of an XML file, in any encoding of Python that it declares."""
    data = read_bytes(path)
    declared = _DECLARED.match(data)
    if nature := nature_of(data[:512]):
        raise InputError(f"{path} is {nature}; expected XML.")
    name = declared[1].decode().lower() if declared else "utf-8"
    # Who can read the declaration as ASCII reads no UTF-16: C# writes it so, and saves UTF-8.
    name = "utf-8" if name.startswith(("utf-16", "utf-32", "ucs-2", "unicode")) else name
    text = _decode(data, path, _WIDER.get(name, name), "strict")
    try:
        return ElementTree.fromstring(text.lstrip())  # noqa: S314 - expat bounds entities
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not readable XML: {error}; write it again.") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the content of a yaml file; InputError if it is none."""
    text = read_text(path)
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not readable yaml: {reason}.") from error


# A config has hundreds, of ten levels.
_MOST_VALUES, _MOST_LEVELS, _MOST_CHARACTERS = 1_000_000, 100, 1_000_000
_MERGE = "tag:yaml.org,2002:merge"


class _Bounded(yaml.SafeLoader):
    """YAML's own reader takes the last of two equal keys without a word, and merges without end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._flat: set[int] = set()
        self._num_merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what ``<<`` names, once; yaml.YAMLError if a key occurs twice, or if that is more
        than a million keys.
        """
        if id(node) in self._flat:
            return
        self._flat.add(id(node))
        _check_once_each([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        for key, value in node.value:
            each = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for other in each if key.tag == _MERGE else []:
                if isinstance(other, yaml.MappingNode):
                    self.flatten_mapping(other)
                    self._num_merged += len(other.value)
                if self._num_merged > _MOST_VALUES:
                    raise yaml.YAMLError("its merges stand for more than a million values")
        super().flatten_mapping(node)


def _check_once_each(keys: list[yaml.ScalarNode]) -> None:
    written = Counter(key.value for key in keys)
    for name in (name for name, times in written.items() if times > 1):
        twice = f"the key {name!r} occurs twice in one section"
        again = [key for key in keys if key.value == name][1]
        raise yaml.constructor.ConstructorError(None, None, twice, again.start_mark)


def parse_yaml(text: str) -> Any:
    """Return the content of a yaml text from anywhere; yaml.YAMLError if it is none, a key occurs
    twice, or it is too large or too deep, as written or by its aliases.
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters, at most a million are read")
    try:
        content = yaml.load(text, _Bounded)  # noqa: S506, a SafeLoader
        size, depth = _extent(content, {})
    except RecursionError:
        raise yaml.YAMLError("it nests too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of dates and numbers
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
    if size > _MOST_VALUES:
        raise yaml.YAMLError("its aliases stand for more than a million values")
    if depth > _MOST_LEVELS:
        raise yaml.YAMLError("it nests too deeply")
    return content


def _extent(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values and levels a container stands for, each alias written out."""
    if not isinstance(value, (dict, list)):
        return 1, 0
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES, 0  # for one within itself
        inner = value.values() if isinstance(value, dict) else value
        extents = [_extent(each, known) for each in inner]
        sizes, levels = zip((1, 0), *extents, strict=True)
        known[id(value)] = sum(sizes), 1 + max(levels)
    return known[id(value)]


def carried_config(text: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the config that a checkpoint carries as a yaml text; InputError if it is none."""
    try:
        content = parse_yaml(text) if isinstance(text, str) else text
    except yaml.YAMLError as error:
        content = " ".join(str(error).split())[:160]
    if not isinstance(content, dict):
        raise InputError(f"{path}: its 'config' is no config in yaml ({content!r:.170}).")
    return content


def parse_json(data: str | bytes) -> Any:
    """Return the content of a JSON text from anywhere; ValueError if it is none or nests too
    deeply.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _decode(data: bytes, path: str | os.PathLike[str], encoding: str, errors: str) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), encoding)
    try:
        text = data.decode(encoding, errors)
        if "\0" in text[:400]:
            raise UnicodeDecodeError(encoding, data, data.find(0), len(data), "no text")
        return text
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error
    except (LookupError, UnicodeError) as error:  # codecs that are no encoding of texts
        raise InputError(
            f"{path} declares the encoding {encoding!r}, which Python does not know; save it as"
            " UTF-8."
        ) from error


def not_text(path: str | os.PathLike[str], error: UnicodeDecodeError) -> InputError:
    """Return the error for a file that is not in the encoding that it should have."""
    if nature := nature_of(error.object[:512]):
        return InputError(f"{path} is {nature}; expected a text.")
    data, line = error.object, error.object.count(b"\n", 0, error.start) + 1
    what = f"is not in {error.encoding} (byte 0x{data[error.start]:02x} in line {line})"
    if data[:2].count(0) == 1 and data[:400].count(0) >= len(data[:400]) // 3:
        what = "is UTF-16 without a byte order mark"
    elif 0 in data[:400]:
        what = "is a binary file, not a text"
    return InputError(f"{path} {what}; save it as UTF-8.")
