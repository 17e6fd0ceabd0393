"""MoCo pre-training and its transfer to detection: pretrain, convert, fine-tune, report.

The four steps talk only through files, so each one runs, and is tested, alone:

    pretrain --checkpoint.pth--> convert --backbone.pkl--> fine-tune --results.json--> report
    --table, plots-->
"""

__version__ = "0.2.0"
