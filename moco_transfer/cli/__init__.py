"""The command line: one file per verb; ``moco-transfer VERB`` and ``python tools/VERB.py`` are the
same program.

A verb's module has ``run(args)``, which returns the exit status and raises InputError, in one
sentence, for what it cannot use. ``verbs.yaml`` has each verb's description and options,
``examples/VERB.txt`` examples.
"""
