"""The loop on a toy model: what stops it, in which words, and which checkpoint it leaves.

Seen red under: the iteration of the log line named instead of the first bad one; saving without a look at the loss; a FloatingPointError
of the model passed through as it is.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moco_transfer.finetune import trainer
from moco_transfer.runtime.checkpoint import CheckpointFolder


class Toy(nn.Module):
    """Its loss is the number in the batch, times a weight of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        if batch[0]["value"] == "diverge":
            raise FloatingPointError("The RPN predicts boxes that are not finite.")
        return {"loss_cls": self.weight * batch[0]["value"], "loss_rpn_loc": self.weight * 0 + 1}


def train(tmp_path, values: list, *, checkpoint_period: int = 100) -> None:
    model = Toy()
    run = trainer.FineTuning(
        model=model,
        wrapped=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        amp_dtype=None,
        max_iter=len(values),
        header={},
        begin_iteration=lambda iteration: None,
    )
    trainer.train(
        run,
        [[{"value": value}] for value in values],
        checkpoints=CheckpointFolder(tmp_path, keep=1),
        metrics=None,
        checkpoint_period=checkpoint_period,
        evaluate_at=lambda iteration: False,
        evaluation=dict,
        before_evaluation=lambda: None,
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite__stops_with_iteration_and_last_checkpoint(tmp_path, bad):
    values = [1.0] * 6 + [bad] + [1.0] * 40
    with pytest.raises(FloatingPointError, match=r"^Iteration 7: The loss is not finite: .*'loss_cls': (nan|inf).*checkpoint_0000005\.pth\. Lower"):
        train(tmp_path, values, checkpoint_period=5)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0000005.pth"]


def test_predictions_that_are_not_finite__the_same_sentence(tmp_path):
    with pytest.raises(FloatingPointError, match=r"^Iteration 3: The RPN predicts .* Last checkpoint: none yet\. Lower SOLVER\.BASE_LR"):
        train(tmp_path, [1.0, 1.0, "diverge", 1.0])


def test_finite_losses__run_to_the_end(tmp_path):
    train(tmp_path, [1.0] * 45)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0000045.pth"]
