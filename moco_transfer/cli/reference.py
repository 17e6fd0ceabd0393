"""Published transfer numbers by name."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Print the settings that the name means, or all names; returns 0."""
    from ..report import find_settings, published_settings, render_published
    from ..runtime.errors import UnknownKeyError, did_you_mean

    titles = {setting.name: setting.title for setting in published_settings()}
    if not args.name:
        print("\n".join(f"{name:{max(map(len, titles))}}  {titles[name]}" for name in titles))
        return 0
    if not (found := find_settings(args.name)):
        hint = did_you_mean(name := " ".join(args.name), titles)
        known = ", ".join(titles)
        raise UnknownKeyError(f"No published setting is called {name!r}.{hint} There are: {known}.")
    print("\n".join(map(render_published, found)), end="")
    return 0
