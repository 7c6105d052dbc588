"""``--on_bad_sample``: what training does with records that it cannot use, and what a run over several files sees."""

import json

import pytest
from processes import TINY, losses, run_here, talk, write_records
from safetensors.torch import load_file

from llava_s2.cli import main
from llava_s2.data import training_records

STEPS = ["--max_steps", 10, "--save_strategy", "no", "--lora_dropout", 0, "--max_bad_share", 0.5]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eighty records; the images of 13 and 40 are damaged, that of 50 is gone. Ahead, the first and last are opened."""
    monkeypatch.setattr(training_records, "_IMAGES_DECODED_AHEAD", 2)
    write_records(tmp_path, lambda number: number % 3)
    for number in (13, 40):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes()[:60])
    (tmp_path / "50.png").unlink()
    return tmp_path


def flags(folder, name, *more):
    data = ["--data_path", folder / "data.json", "--image_folder", folder, "--output_dir", folder / name]
    return [*data, *STEPS, "--per_device_train_batch_size", 8, "--on-bad-sample", "skip", *more]


def log(folder, name):
    return [json.loads(line) for line in (folder / name / "bad_samples.jsonl").read_text().splitlines()]


def test_skipped_records_are_logged_and_the_run_is_that_of_the_records_in_their_place(folder):
    run_here(flags(folder, "skip"))
    told = {entry["record"]: entry for entry in log(folder, "skip")}
    assert set(told) == {13, 40, 50}
    assert "50.png: no such image file" in told[50]["error"] and "damaged" in told[13]["error"]
    records = json.loads((folder / "data.json").read_text())
    for number, entry in told.items():
        assert f"data.json: record {number} " in entry["where"]
        records[number] = records[int(entry["replaced_by"].split("record ")[1].split()[0])]
    (folder / "data.json").write_text(json.dumps(records))
    run_here(flags(folder, "clean"))
    assert not (folder / "clean" / "bad_samples.jsonl").exists()
    assert losses(folder / "clean") == losses(folder / "skip")


def test_a_run_that_goes_on_takes_the_same_in_their_place(folder):
    constant = ["--lr_scheduler_type", "constant"]
    run_here(flags(folder, "whole", *constant))
    saves = [*constant, "--save_strategy", "steps", "--save_steps", 4]
    run_here(flags(folder, "halves", *saves, "--max_steps", 4))
    run_here(flags(folder, "halves", *saves))
    pair = [load_file(folder / name / "adapter_model.safetensors") for name in ("halves", "whole")]
    assert all(tensor.equal(pair[1][name]) for name, tensor in pair[0].items())


@pytest.mark.parametrize(
    ("share", "message"),
    [("0.01", "1 of the 80 records seen so far were bad"), ("0.03", "3 of the 80 records seen so far were bad")],
)
def test_it_stops_when_too_many_are_bad(folder, capsys, share, message):
    status = main(["train", "finetune", *map(str, [*TINY, *flags(folder, "out", "--max_bad_share", share)])])
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert message in error and f"--max_bad_share {share}; {folder / 'out'}" in error


def test_nothing_but_bad_records_ends_it_at_once(folder, capsys):
    for number in range(80):
        if (folder / f"{number}.png").exists() and number not in (1, 79):
            (folder / f"{number}.png").write_bytes(b"none")
    records = [record for record in json.loads((folder / "data.json").read_text()) if "image" in record]
    (folder / "data.json").write_text(json.dumps(records))
    status = main(["train", "finetune", *map(str, [*TINY, *flags(folder, "out", "--max_bad_share", 1)])])
    assert status == 2
    assert "are the images there?" in capsys.readouterr().err


def test_a_loss_that_is_no_number_names_the_record_that_was_read(folder, capsys):
    records = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(records[36:44]))  # of which the fifth is damaged
    more = ["--learning_rate", "1e30", "--max_grad_norm", 0, "--warmup_steps", 0]
    assert main(["train", "finetune", *map(str, [*TINY, *flags(folder, "out", *more)])]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    bad = log(folder, "out")[0]
    assert "loss is nan" in error and bad["where"] not in error and error.count(bad["replaced_by"]) == 2


def test_several_files_with_weights_from_yaml_and_what_is_told_of_them(tmp_path, capsys, caplog):
    for number in range(2):
        records = [{"id": "same", "conversations": talk("Count", f"{number} " * 40, "", "a")} for _ in range(8)]
        (tmp_path / f"{number}.json").write_text(json.dumps(records))
    recipe = tmp_path / "recipe.yaml"
    files = [str(tmp_path / f"{number}.json") for number in range(2)]
    recipe.write_text(json.dumps({"data_path": files, "data_weights": [0.5, 2], "model_max_length": 80}))
    start = ["train", "finetune", recipe, *TINY, "--output_dir", tmp_path / "out", "--num_train_epochs", 1]
    assert main([*map(str, start), "--per_device_train_batch_size", "4", "--save_strategy", "no"]) == 0
    assert len(losses(tmp_path / "out")) == (4 + 16) / 4
    told = caplog.text + capsys.readouterr().err
    for number in range(2):
        assert f"{number}.json: record 0 (id 'same', line 1): has an empty turn; so have 8 of 8" in told
        assert f"{number}.json: record 1 (id 'same', line 1): has the id of record 0; 7 ids come again" in told
    assert "more than --model_max_length, which it loses at its end; so do 20 of 20 records" in told
