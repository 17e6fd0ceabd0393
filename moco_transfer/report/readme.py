"""Sections of a README that hold tables, between ``<!-- results:begin -->`` and ``<!-- results:end
-->``.

The opening marker may name the records that its section is made from:
``<!-- results:begin docs/results/voc -->``. Everything outside the markers is the author's.
"""

from __future__ import annotations

import re

_END = "<!-- results:end -->"
_BEGIN = re.compile(r"<!-- results:begin((?: [^\s<>]+)*) -->")


def marked_paths(text: str) -> list[tuple[str, ...]]:
    """Return what each section of a Markdown file names, () for a section that names nothing."""
    return [tuple(match[1].split()) for match in _BEGIN.finditer(text)]


def insert_between_markers(text: str, content: str, paths: tuple[str, ...] = ()) -> str:
    """Return ``text`` with ``content`` between the two markers of the section that names ``paths``.

    Raises:
        ValueError: If a marker is missing, occurs more than once, or the order is wrong.
    """
    begin = f"<!-- results:begin{''.join(f' {path}' for path in paths)} -->"
    sections = marked_paths(text)
    wanted = {begin: (sections.count(paths), 1), _END: (text.count(_END), len(sections))}
    for marker, (found, expected) in wanted.items():
        if found != expected:
            once = "once" if expected == 1 else f"{expected} times, once for each section"
            raise ValueError(f"expected the line {marker} {once}, found it {found} times")
    head, rest = text.split(begin)
    inside, end, tail = rest.partition(_END)
    if not end or _BEGIN.search(inside):
        raise ValueError(f"expected {begin} before its {_END}, found them the other way round")
    return f"{head}{begin}\n\n{content.strip()}\n\n{_END}{tail}"
