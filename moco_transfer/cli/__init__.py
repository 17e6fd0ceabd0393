"""The command line: one file per verb; ``moco-transfer VERB`` and ``python tools/VERB.py`` are the
same program.

A verb's module has ``add_arguments(parser)`` and ``run(args)``, which returns the exit status and
raises InputError, in one sentence, for what it cannot use. ``help.yaml`` has the description of each
verb and the help of each option, ``examples/VERB.txt`` examples.
"""
