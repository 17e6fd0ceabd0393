"""The loop on a toy model: what stops it, in which words, and which checkpoint it leaves.

Seen red under: the iteration of the log line named instead of the first bad one; saving without a
    look at the loss; a FloatingPointError
of the model passed through as it is; the iteration of the complaint named instead of the one that
spoilt the weights (with and without a bad loss of this process's own); another process's first bad
iteration not asked for; PreciseBN before the look at the loss.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from moco_transfer.finetune import trainer
from moco_transfer.finetune.schedule import Schedule
from moco_transfer.runtime import progress
from moco_transfer.runtime.checkpoint import CheckpointFolder
from moco_transfer.runtime.stop import StopRequest


class Toy(nn.Module):
    """Its loss is the number in the batch, times a weight that begins at 1; like a detector it
    complains of weights that are not finite, as Detectron2 does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        if batch[0]["value"] == "diverge" or not self.weight.isfinite():
            raise FloatingPointError("The RPN predicts boxes that are not finite.")
        return {"loss_cls": self.weight * batch[0]["value"], "loss_rpn_loc": self.weight * 0 + 1}


def toy_run(model: nn.Module, *, lr: float = 0.0) -> trainer.FineTuning:
    engine = SimpleNamespace(
        device=torch.device("cpu"),
        state=dict,
        build_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=lr),
        iteration_starter=lambda optimizer: lambda iteration: None,
    )
    return trainer.FineTuning(engine, model, {})


def train(
    tmp_path,
    values: list,
    *,
    checkpoint_period: int = 100,
    lr: float = 0.0,
    eval_period: int = 0,
    precise_bn=lambda: None,
    evaluation=dict,
    run: trainer.FineTuning | None = None,
    batches=None,
) -> bool:
    length = len(values)
    return trainer.train(
        run or toy_run(Toy(), lr=lr),
        batches or [[{"value": value}] for value in values],
        Schedule(1, lr, length, (), 0, checkpoint_period, eval_period, reference=0),
        checkpoints=CheckpointFolder(tmp_path, keep=1),
        metrics=None,
        stop=StopRequest(),
        precise_bn=precise_bn,
        evaluation=evaluation,
    )


@pytest.mark.parametrize("lr", [0.0, 0.001])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite__stops_with_iteration_and_last_checkpoint(tmp_path, bad, lr):
    values = [1.0] * 6 + [bad] + [1.0] * 40
    with pytest.raises(
        FloatingPointError,
        match=(
            r"^Iteration 7: the loss is not finite .*'loss_cls':"
            r" (nan|inf).*checkpoint_0000005\.pth\. Lower"
        ),
    ):
        train(tmp_path, values, checkpoint_period=5, lr=lr)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0000005.pth"]


def test_predictions_that_are_not_finite__the_same_sentence(tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=(
            r"^Iteration 3: The RPN predicts .* Last checkpoint: none yet\. Lower SOLVER\.BASE_LR"
        ),
    ):
        train(tmp_path, [1.0, 1.0, "diverge", 1.0])


def test_weights_that_another_process_has_spoilt__the_update_that_did_it(tmp_path):
    """Its own losses are finite, and the gradients that come in with the update of iteration 3 are
    not.
    """

    def spoilt(values):
        for number, value in enumerate(values, start=1):
            yield [{"value": value}]
            if number == 3:  # called for the fourth, when the third is done
                with torch.no_grad():
                    model.weight.fill_(float("nan"))

    model = Toy()
    with pytest.raises(
        FloatingPointError,
        match=r"^Iteration 3: the update left weights .* Last checkpoint: none yet",
    ):
        train(tmp_path, [1.0] * 9, run=toy_run(model), batches=spoilt([1.0] * 9))


def test_loss_that_is_not_finite_on_another_process__its_iteration(tmp_path, monkeypatch):
    monkeypatch.setattr(
        progress, "mean_over_processes", lambda values, device: dict.fromkeys(values, float("nan"))
    )
    monkeypatch.setattr(progress, "all_gather_object", lambda mine: [mine, 12])
    with pytest.raises(FloatingPointError, match=r"^Iteration 12: the loss is not finite"):
        train(tmp_path, [1.0] * 45)


def test_loss_that_is_not_finite__is_seen_before_an_evaluation(tmp_path):
    def precise_bn():
        raise FloatingPointError("The RPN predicts boxes that are not finite.")

    with pytest.raises(FloatingPointError, match=r"^Iteration 7: the loss is not finite"):
        train(tmp_path, [1.0] * 6 + [float("nan")] * 9, eval_period=7, precise_bn=precise_bn)


def test_finite_losses__run_to_the_end(tmp_path):
    train(tmp_path, [1.0] * 45)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0000045.pth"]


def test_evaluation_that_was_stopped__leaves_a_checkpoint(tmp_path):
    assert train(tmp_path, [1.0] * 9, eval_period=4, evaluation=lambda: None) is False
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0000004.pth"]
