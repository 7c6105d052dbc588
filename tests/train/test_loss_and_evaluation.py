"""The loss with label smoothing, and an eval set in training, against cross-entropy computed here."""

import json

import pytest
import torch
from processes import TINY, losses, run_here, talk, write_records
from torch.nn.functional import cross_entropy

from llava_s2.cli import main
from llava_s2.data.collator import Collator
from llava_s2.train import recipe

STEPS = ["--max_steps", 4, "--per_device_train_batch_size", 4, "--lora_dropout", 0, "--save_steps", 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return folder, [*write_records(folder, lambda number: number % 3), *STEPS]


def run(flags):
    """Runs ``finetune`` and returns its trainer."""
    made = []
    with pytest.MonkeyPatch.context() as patch:

        class Kept(recipe.LlavaTrainer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                made.append(self)

        patch.setattr(recipe, "LlavaTrainer", Kept)
        run_here(flags)
    return made[-1]


def summed_loss(trainer, examples, indices, smoothing=0.0):
    """Cross-entropy of each position's logits with the token after it, summed, and how many there are."""
    batch = Collator(0)([examples[index] for index in indices])
    batch = trainer._prepare_inputs(batch)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits
    loss = cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", label_smoothing=smoothing
    )
    return loss.item(), (labels[:, 1:] != -100).sum().item()


def test_label_smoothing_is_over_the_tokens_that_follow(data):
    """At rate 0 the model stays as it is, so the first loss can be computed after the run."""
    folder, flags = data
    flags = [*flags, "--train_sampling_strategy", "sequential", "--learning_rate", 0, "--mm_projector_lr", 0]
    trainer = run([*flags, "--label_smoothing_factor", 0.1, "--output_dir", folder / "smooth"])
    for step, loss in enumerate(losses(folder / "smooth")):
        total, targets = summed_loss(trainer, trainer.train_dataset, range(4 * step, 4 * step + 4), smoothing=0.1)
        assert loss == pytest.approx(total / targets, abs=1e-4)


def evaluations(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def test_eval_loss_is_the_mean_over_targets_of_records_held_out(data):
    folder, flags = data
    flags = [*flags, "--eval_split", 0.25, "--per_device_eval_batch_size", 3, "--max_steps", 3]
    trainer = run([*flags, "--output_dir", folder / "split"])
    found = evaluations(folder / "split")
    assert set(found) == {2, 3}  # where it saves, and at the end
    trained, held_out = ({*part.indices.tolist()} for part in (trainer.train_dataset, trainer.eval_dataset))
    assert len(held_out) == 20 and trained | held_out == set(range(80)) and not trained & held_out
    parts = [summed_loss(trainer, trainer.eval_dataset, range(start, start + 5)) for start in range(0, 20, 5)]
    assert found[3] == pytest.approx(sum(loss for loss, _ in parts) / sum(count for _, count in parts), abs=1e-4)


def test_the_best_checkpoint_is_kept_and_is_what_is_saved(data, capsys):
    """On answers unlike those trained on the first evaluation is the best; two worse ones end the run."""
    folder, flags = data
    other = [{"conversations": talk("Count", f"{'qzx vkj ' * 9}{number}")} for number in range(8)]
    (folder / "other.json").write_text(json.dumps(other))
    flags = [*flags, "--eval_data_path", folder / "other.json", "--max_steps", 40, "--save_total_limit", 1]
    flags += ["--load_best_model_at_end", "True", "--early_stopping_patience", 2, "--output_dir", folder / "best"]
    trainer = run(flags)
    found = evaluations(folder / "best")
    best = min(found, key=found.get)
    assert len(found) == list(found).index(best) + 3 < 20
    assert trainer.state.best_model_checkpoint == str(folder / "best" / f"checkpoint-{best}")
    assert (folder / "best" / f"checkpoint-{best}").exists()
    total, targets = summed_loss(trainer, trainer.eval_dataset, range(8))
    assert total / targets == pytest.approx(found[best], abs=1e-4)
    assert main(["train", "finetune", *map(str, [*TINY, *flags])]) == 0
    assert f"is finished ({trainer.state.global_step} steps)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--eval_split", 1.5], "--eval_split 1.5: must be a share"),
        (["--eval_split", 0.001], "leaves none on one side"),
        (["--eval_split", 0.1, "--eval_data_path", "x"], "leave it or --eval_data_path out"),
        (["--early_stopping_patience", 2], "needs --eval_data_path or --eval_split"),
    ],
)
def test_an_eval_set_that_cannot_be(data, flags, told, capsys):
    folder, usual = data
    assert main(["train", "finetune", *map(str, [*TINY, *usual, "--output_dir", folder / "not", *flags])]) == 2
    assert told in capsys.readouterr().err
