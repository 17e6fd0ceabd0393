"""From facts about images, objects and machine to the values of both configs, each with a reason.

``facts`` measures them; the rules (``pretraining``, ``finetuning``) are arithmetic on them.
"""
