"""From facts about images, objects and machine to the values of both configs, each with a reason.

``look`` measures the facts; the rules (``pretraining``, ``finetuning``) are arithmetic on them.
"""
