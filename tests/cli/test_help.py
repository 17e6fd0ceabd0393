"""Every verb has a module, a summary, a description, and a help text for each option.

Seen red under: an option without a text.
"""

from __future__ import annotations

import argparse
import importlib

import pytest

from moco_transfer.cli.main import VERBS
from moco_transfer.cli.options import DESCRIPTIONS, add_options


@pytest.mark.parametrize("verb", VERBS)
def test_help__explains_every_option(verb):
    parser = argparse.ArgumentParser()
    add_options(parser, verb)
    assert all(action.help for action in parser._actions)
    assert DESCRIPTIONS[verb]["summary"] and DESCRIPTIONS[verb]["description"]
    assert importlib.import_module(f"moco_transfer.cli.{verb.replace('-', '_')}").run
