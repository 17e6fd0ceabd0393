"""The command line: one file per verb; ``moco-transfer VERB`` and ``python tools/VERB.py`` are the
same program.
"""
