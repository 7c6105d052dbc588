"""Both stages, end to end through the command line, on tiny models."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.data.collator import Collator
from llava_s2.formats import load
from llava_s2.model.assemble import assemble
from llava_s2.model.quantizations import UNQUANTIZED
from llava_s2.train import arguments, recipe, starting_model

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
LLM, TOWER = GOLDEN / "vicuna-tiny", GOLDEN / "clip-tiny"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
PROJECTOR_KEYS = {
    f"base_model.model.model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
}
ON_CPU = ["--use_cpu", "True", "--disable_tqdm", "True"]
START = ["--model_name_or_path", LLM, "--vision_tower", TOWER, "--s2_scales", "56,112,168", *ON_CPU]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """16 captions, and a mix of 10 questions on one image, 4 without an image and 1 on two."""
    folder = tmp_path_factory.mktemp("data")
    names = list(COLOURS) * 4
    for number, name in enumerate(names):
        Image.new("RGB", (40 + number, 30), COLOURS[name]).save(folder / f"{number}.png")
    captions = [
        {"id": n, "image": f"{n}.png", "conversations": talk("Describe.\n<image>", f"All {name}.")}
        for n, name in enumerate(names)
    ]
    mix = [
        {"image": f"{n}.png", "conversations": talk("<image>\nColour?", name, "Sure?", "Yes.")}
        for n, name in enumerate(names[:10])
    ]
    mix += [{"conversations": talk("Count", "one " * n + "two")} for n in range(4)]
    mix += [{"image": ["0.png", "1.png"], "conversations": talk("<image> like <image>?", "No.")}]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "mix.jsonl").write_text("\n".join(map(json.dumps, mix)))
    return folder


def talk(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def run(trainers, *flags):
    """Runs ``llava-s2 train …`` and returns its trainer."""
    with pytest.MonkeyPatch.context() as patch:

        class Kept(recipe.LlavaTrainer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                trainers.append(self)

        patch.setattr(recipe, "LlavaTrainer", Kept)
        assert main(["train", *map(str, flags)]) == 0
    return trainers[-1]


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained")
    flags = ["--data_path", data / "captions.json", "--image_folder", data, "--output_dir", out]
    flags += ["--per_device_train_batch_size", 8, "--num_train_epochs", 5, "--learning_rate", "1e-2"]
    return out, run([], "pretrain", *START, *flags, "--save_strategy", "no")


FINETUNE = ["--per_device_train_batch_size", 5, "--num_train_epochs", 3, "--lora_r", 4, "--lora_alpha", 8]
FINETUNE += ["--mm_projector_lr", "5e-4", "--learning_rate", "5e-3", "--weight_decay", "0.1", "--save_steps", 4]
FINETUNE += ["--group_by_modality_length", "True", "--version", "v1"]


def finetune_flags(data, pretrained, out):
    return [
        *("finetune", *START, *FINETUNE, "--pretrain_mm_mlp_adapter", pretrained, "--output_dir", out),
        *("--data_path", data / "mix.jsonl", "--image_folder", data),
    ]


@pytest.fixture(scope="module")
def finetuned(data, pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetuned")
    return out, run([], *finetune_flags(data, pretrained[0], out))


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_loss_goes_down(pretrained, finetuned):
    for (out, _), steps in ((pretrained, 10), (finetuned, 9)):
        curve = losses(out)
        assert len(curve) == steps
        assert all(map(math.isfinite, curve))
        assert sum(curve[-3:]) < sum(curve[:3]) - 1


def test_the_first_loss_is_that_of_an_untrained_model(pretrained):
    """Trainer's loss beside plain cross-entropy on the assembled model, over the batch that it saw first."""
    _, trainer = pretrained
    first = next(iter(trainer.get_train_dataloader()))
    recipe.set_seed(trainer.args.seed)
    model, _ = assemble(LLM, TOWER, [56, 112, 168])
    inputs = trainer._prepare_inputs({name: first[name] for name in ("input_ids", "attention_mask", "pixel_values")})
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), first["labels"][:, 1:].flatten())
    assert losses(pretrained[0])[0] == pytest.approx(expected.item(), abs=0.3)  # another batch of the same captions


def test_pretrain_saves_the_projector_alone(pretrained):
    tensors = load_file(pretrained[0] / "adapter_model.safetensors")
    assert set(tensors) == PROJECTOR_KEYS
    assert tensors["base_model.model.model.multi_modal_projector.linear_1.weight"].shape == (32, 3 * 32)
    model, processor = load_pretrained(pretrained[0], dtype="float32")
    assert model.model.multi_modal_projector.linear_1.weight.equal(
        tensors["base_model.model.model.multi_modal_projector.linear_1.weight"]
    )
    assert "USER: <image>\nWhat?" in processor.apply_chat_template([{"role": "user", "content": "<image>\nWhat?"}])


def test_finetune_saves_lora_on_every_linear_layer_of_the_llm_and_the_projector(finetuned):
    tensors = load_file(finetuned[0] / "adapter_model.safetensors")
    layers = [f"self_attn.{kind}_proj" for kind in "qkvo"] + [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]
    assert set(tensors) == PROJECTOR_KEYS | {
        f"base_model.model.model.language_model.layers.{block}.{layer}.lora_{half}.weight"
        for block in range(2)
        for layer in layers
        for half in "AB"
    }
    assert all(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_only_the_adapter_changed(pretrained, finetuned):
    for out, trainer in (pretrained, finetuned):
        start = load_pretrained(out / "base", dtype="float32")[0].state_dict()
        base = trainer.model.get_base_model().state_dict()
        kept = 0
        for name, tensor in base.items():
            plain = name.replace("base_layer.", "").replace("original_module.", "")
            if plain in start and "multi_modal_projector" not in plain:
                assert tensor.equal(start[plain]), name
                kept += 1
        assert kept == sum("multi_modal_projector" not in name for name in start)
    tower = load_pretrained(finetuned[0], dtype="float32")[0].model.vision_tower.state_dict()
    file = {name.removeprefix("vision_model."): t for name, t in load_file(TOWER / "model.safetensors").items()}
    inner = {name.removeprefix("backbone.").removeprefix("vision_model."): t for name, t in tower.items()}
    compared = [name for name in inner if name in file]
    assert len(compared) == len([name for name in inner if "position_ids" not in name]) > 10
    assert all(inner[name].equal(file[name]) for name in compared)


def test_finetune_starts_from_the_pretrained_projector(pretrained, finetuned):
    before, after = (load_file(out / "adapter_model.safetensors") for out, _ in (pretrained, finetuned))
    for name in PROJECTOR_KEYS:
        moved = (after[name] - before[name]).abs().max()
        assert 0 < moved < 0.01, name  # nine steps at 5e-4


def test_rates_and_weight_decay_by_group(finetuned):
    _, trainer = finetuned
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    seen = set()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.add(name)
            assert group["initial_lr"] == (5e-4 if "multi_modal_projector" in name else 5e-3), name
            assert group["weight_decay"] == (0.0 if name.endswith("bias") else 0.1), name
    assert seen == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def test_the_tower_stays_in_eval_mode_and_without_a_graph(finetuned):
    tower = finetuned[1].model.get_base_model().model.vision_tower
    tower.train()
    pixels = torch.zeros(1, 3, 168, 168, requires_grad=True)
    assert not tower(pixels).last_hidden_state.requires_grad
    assert not any(module.training for module in tower.modules())
    assert torch.is_grad_enabled()
    with pytest.raises(ValueError, match="pixel_values must be"):
        tower(torch.zeros(1, 5, 168, 168))
    assert torch.is_grad_enabled()


def batch_of(trainer, *indices):
    return trainer._prepare_inputs(Collator(0)([trainer.train_dataset[index] for index in indices]))


def logits(model, trainer):
    batch = batch_of(trainer, 0, 10, 14)
    with torch.no_grad():
        return model.eval()(**batch).logits[batch["attention_mask"].bool()]


def test_what_is_loaded_is_what_was_trained(pretrained, finetuned):
    for out, trainer in (pretrained, finetuned):
        if out == pretrained[0]:
            trainer.train_dataset = finetuned[1].train_dataset
        trained = logits(trainer.model, trainer)
        assert torch.allclose(logits(load_pretrained(out, dtype="float32")[0], trainer), trained, atol=1e-4)
    checkpoint = logits(load_pretrained(finetuned[0] / "checkpoint-4", dtype="float32")[0], trainer)
    assert not torch.allclose(checkpoint, trained, atol=1e-2)


def test_started_again_it_goes_on_from_the_last_whole_checkpoint(data, pretrained, finetuned, tmp_path):
    whole, _ = finetuned
    shutil.copytree(whole / "checkpoint-4", tmp_path / "checkpoint-4")
    shutil.copytree(whole / "checkpoint-8", tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()  # killed while saving
    trainer = run([], *finetune_flags(data, pretrained[0], tmp_path))
    assert trainer.state.global_step == 9
    assert losses(tmp_path) == losses(whole)
    again, before = (load_file(out / "adapter_model.safetensors") for out in (tmp_path, whole))
    assert all(again[name].equal(before[name]) for name in before)
    assert not list(tmp_path.glob(".saving*"))


def test_finetune_from_the_folder_of_stage_1(data, pretrained, tmp_path):
    """It trains on conversations, text alone too, in the template that the folder was saved with."""
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, *ON_CPU, "--max_steps", 1, "--lora_r", 2]
    trainer = run([], "finetune", "--model_name_or_path", pretrained[0], *flags, "--output_dir", tmp_path)
    words = trainer.processing_class.decode(trainer.train_dataset[10]["input_ids"])
    assert "USER: Count ASSISTANT: two" in words
    assert "USER: Count" in load_pretrained(tmp_path)[1].apply_chat_template([{"role": "user", "content": "Count"}])


def test_a_saved_template_that_ends_no_reply_is_refused_before_weights(data, pretrained, tmp_path, capsys, monkeypatch):
    shutil.copytree(pretrained[0], tmp_path / "stage1")
    (tmp_path / "stage1" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\\n' }}{% endfor %}"
    )
    monkeypatch.delattr(starting_model, "load_pretrained")  # to load weights would be a NameError
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path / "out"]
    assert main(["train", "finetune", "--model_name_or_path", str(tmp_path / "stage1"), *map(str, flags)]) == 2
    told = capsys.readouterr().err
    assert "the chat template marks no reply with {% generation %} and ends none with a token of the tokenizer" in told
    assert "name another one with --template" in told


def test_going_on_from_a_llava_and_from_an_adapter(data, finetuned, tmp_path):
    """LoRA again, on a checkpoint in LLaVA's format and on a checkpoint of this project, in bf16 and float32."""
    llava = tmp_path / "llava"
    shutil.copytree(GOLDEN / "llava-tiny-s2", llava)
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, *ON_CPU, "--max_steps", 2, "--lora_r", 2]
    for name, more in ((llava, ["--vision_tower", TOWER]), (finetuned[0], ["--image_aspect_ratio", "pad"])):
        out = tmp_path / f"from-{name.name}"
        trainer = run([], "finetune", "--model_name_or_path", name, *flags, *more, "--output_dir", out)
        model, _ = load_pretrained(out, dtype="float32")  # with the tower that training was told of
        assert torch.allclose(logits(model, trainer), logits(trainer.model, trainer), atol=1e-4)


def test_bf16_on_a_cpu_and_a_projector_of_llava(data, tmp_path):
    """At rate 0 the projector that comes out is LLaVA's that went in, whatever the frozen weights are in."""
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, "--bf16", "True"]
    flags += ["--pretrain_mm_mlp_adapter", GOLDEN / "mm_projector.bin", "--max_steps", 2, "--learning_rate", 0]
    trainer = run([], "finetune", *START, *flags, "--gradient_checkpointing", "True")
    dtypes = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert trainer.model.get_base_model().model.language_model.embed_tokens.weight.dtype == torch.bfloat16
    saved = load_file(tmp_path / "adapter_model.safetensors")
    given = torch.load(GOLDEN / "mm_projector.bin", weights_only=True)
    for name, tensor in given.items():
        number = {"0": 1, "2": 2}[name.split(".")[-2]]
        key = f"base_model.model.model.multi_modal_projector.linear_{number}.{name.split('.')[-1]}"
        assert saved[key].equal(tensor.float())


def test_a_single_scale_llava_is_widened(data, tmp_path):
    """Training S² from a single-scale model: at rate 0 the new scales' columns are still zero."""
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, *ON_CPU, "--max_steps", 1]
    flags += ["--vision_tower", TOWER]
    single, wide = tmp_path / "single", tmp_path / "wide"
    run([], "finetune", "--model_name_or_path", LLM, "--s2_scales", 56, *flags, "--output_dir", single)
    more = ["--s2_scales", "56,112,168", "--learning_rate", 0]
    trainer = run([], "finetune", "--model_name_or_path", single, *more, *flags, "--output_dir", wide)
    columns = load_pretrained(wide, dtype="float32")[0].model.multi_modal_projector.linear_1.weight
    old = load_file(single / "adapter_model.safetensors")
    assert columns[:, :32].equal(old["base_model.model.model.multi_modal_projector.linear_1.weight"])
    assert columns.shape == (32, 96)
    assert not columns[:, 32:].any()
    assert trainer.state.global_step == 1


def test_widened_from_a_single_scale_llava_the_first_loss_is_its_own(data, tmp_path):
    """On square images of one colour both models see the same pixels at scale 1, whatever resamples them."""
    records = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (40 + 9 * number,) * 2, colour).save(tmp_path / f"{name}.png")
        records.append({"image": f"{name}.png", "conversations": talk("<image>\nColour?", f"It is {name}.")})
    (tmp_path / "squares.json").write_text(json.dumps(records))
    model, processor = assemble(LLM, TOWER, [56])
    single = tmp_path / "single"
    model.save_pretrained(single)
    processor.save_pretrained(single)
    flags = ["--data_path", tmp_path / "squares.json", "--image_folder", tmp_path, *ON_CPU, "--max_steps", 3]
    flags += ["--per_device_train_batch_size", 4, "--learning_rate", "1e-2", "--lora_dropout", 0, "--lora_r", 2]
    run([], "finetune", "--model_name_or_path", single, *flags, "--output_dir", tmp_path / "a")
    wide = ["--widen-from", single, "--s2_scales", "56,112,168"]
    trainer = run([], "finetune", *wide, *flags, "--output_dir", tmp_path / "b")
    (first, *_), (widened, *_, after) = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert widened == pytest.approx(first, abs=1e-5)
    assert after < widened
    weight = trainer.model.get_base_model().model.multi_modal_projector.modules_to_save["default"].linear_1.weight
    assert weight.shape == (32, 96) and weight[:, 32:].abs().max() > 0  # the new scales learn
    again, _ = load_pretrained(tmp_path / "b", dtype="float32")
    assert again.config.vision_config.scales == [56, 112, 168]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--widen_from", LLM, "--s2_scales", "56,112"], "a language model, not a LLaVA"),
        (["--widen_from", "x"], "--s2_scales"),
        (["--widen_from", "x", "--model_name_or_path", "y", "--s2_scales", "56"], "leave --model_name_or_path out"),
        ([], "--model_name_or_path is missing"),
    ],
)
def test_what_to_start_from_must_be_one_thing(flags, told, data, tmp_path, capsys):
    more = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, *ON_CPU]
    assert main(["train", "finetune", *map(str, [*flags, *more])]) == 2
    assert told in capsys.readouterr().err


def test_lora_over_four_bits(data, tmp_path, monkeypatch):
    """QLoRA: the language model's layers in 4 bits, tower and projector not; the adapter loads over the whole base."""
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=UNQUANTIZED)
    monkeypatch.setattr(load, "quantization_config", lambda *_: four_bits)  # the own one asks for a GPU,
    monkeypatch.setattr(arguments, "_without_gpu", lambda _: [])  # and so do the flags
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, "--bits", 4]
    flags += ["--max_steps", 6, "--learning_rate", "1e-2", "--lora_r", 4, "--per_device_train_batch_size", 5]
    trainer = run([], "finetune", *START, *flags, "--lora_dropout", 0)
    base = trainer.model.get_base_model().model
    quantized = {
        name for name, module in base.named_modules() if type(module).__name__ == "Linear4bit" and "base_layer" in name
    }
    assert len(quantized) == 14 and all("language_model.layers" in name for name in quantized)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.5
    again, _ = load_pretrained(tmp_path, dtype="float32")
    batch = batch_of(trainer, 0, 10, 14)
    # In train mode: bitsandbytes packs weights for inference on a CPU, which so small ones are not made for.
    trained = trainer.model.train()(**batch).logits.detach()[batch["attention_mask"].bool()]
    close = torch.nn.functional.cosine_similarity(logits(again, trainer), trained, dim=-1)
    assert close.mean() > 0.9  # as near as 4 bits are to the weights


def test_the_tower_learns_at_a_rate_of_its_own(data, tmp_path):
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, "--max_steps", 2]
    flags += ["--unfreeze_mm_vision_tower", "True", "--mm_vision_tower_lr", "1e-4", "--lr_scheduler_type", "constant"]
    trainer = run([], "finetune", *START, *flags, "--warmup_steps", 0)
    entry = next(entry for entry in trainer.state.log_history if "lr/vision_tower" in entry)
    assert (entry["lr/vision_tower"], entry["lr/language_model"]) == (1e-4, 2e-4)
    before = assemble(LLM, TOWER, [56, 112, 168])[0].model.vision_tower.state_dict()
    model, _ = load_pretrained(tmp_path, dtype="float32")
    after = model.model.vision_tower.state_dict()
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before if "position_ids" not in name}
    assert all(0 < step < 1e-3 for name, step in moved.items() if "weight" in name and "pos" not in name), moved
    assert torch.allclose(logits(model, trainer), logits(trainer.model, trainer), atol=1e-4)


def test_the_whole_language_model(data, tmp_path):
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, "--max_steps", 6]
    flags += ["--lora_enable", "False", "--learning_rate", "1e-2", "--per_device_train_batch_size", 5]
    trainer = run([], "finetune", *START, *flags, "--save_steps", 3)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.5
    model, _ = load_pretrained(tmp_path, dtype="float32")
    assert torch.allclose(logits(model, trainer), logits(trainer.model, trainer), atol=1e-4)
    whole = losses(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-6")
    (tmp_path / "model.safetensors").unlink()
    run([], "finetune", *START, *flags, "--save_steps", 3)
    assert losses(tmp_path) == whole


def test_a_loss_that_is_no_number_names_its_records(data, tmp_path, capsys):
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, "--max_steps", 9]
    flags += ["--learning_rate", "1e25", "--max_grad_norm", 0, "--warmup_steps", 0]  # weights stay finite
    assert main(["train", "finetune", *map(str, [*START, *flags])]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "loss is nan at step" in error and f"{data / 'mix.jsonl'}: record " in error


def test_what_is_logged(finetuned):
    out, trainer = finetuned
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 and entry["memory_gb"] > 0 for entry in steps)
    assert {name for name in steps[0] if name.startswith("lr/")} == {"lr/multi_modal_projector", "lr/language_model"}
    assert all(0 < entry["padding_efficiency"] <= 1 for entry in steps)
    assert Image.open(out / "loss.png").width > 400


def test_packed_batches_train_as_padded_ones(data, pretrained, tmp_path):
    """The same flags and --packing: the same steps, losses and weights, with less padding."""
    runs = {}
    for name, more in (("padded", []), ("packed", ["--packing", "True"])):
        flags = finetune_flags(data, pretrained[0], tmp_path / name)
        more = [*more, "--group_by_modality_length", "False", "--lora_dropout", 0, "--save_strategy", "no"]
        runs[name] = run([], *flags, *more)
    (padded, shares), (packed, packed_shares) = (
        [
            [entry[key] for entry in trainer.state.log_history if "loss" in entry]
            for key in ("loss", "padding_efficiency")
        ]
        for trainer in runs.values()
    )
    assert len(padded) == 9
    assert packed == pytest.approx(padded, abs=1e-5)
    assert sum(packed_shares) > sum(shares)
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in runs]
    assert all(torch.allclose(files[0][name], files[1][name], atol=1e-4) for name in files[0])


def test_the_share_of_real_tokens(data, tmp_path):
    """As counted by hand over the examples of the one batch."""
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, "--max_steps", 1]
    trainer = run([], "finetune", *START, *flags, "--per_device_train_batch_size", 15)
    lengths = [len(trainer.train_dataset[index]["input_ids"]) for index in range(15)]
    (share,) = [entry["padding_efficiency"] for entry in trainer.state.log_history if "loss" in entry]
    assert share == pytest.approx(sum(lengths) / (15 * max(lengths)))


def test_a_language_model_that_mixes_packed_examples_is_refused(data, tmp_path, capsys, monkeypatch):
    """Here one whose position ids get lost on the way."""

    def forget(module, args, kwargs):
        return args, {**kwargs, "position_ids": None}

    whole = starting_model.load_pretrained

    def loaded(*args, **kwargs):
        model, processor = whole(*args, **kwargs)
        model.model.language_model.register_forward_pre_hook(forget, with_kwargs=True)
        return model, processor

    monkeypatch.setattr(starting_model, "load_pretrained", loaded)
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path, "--packing", "True"]
    assert main(["train", "finetune", *map(str, [*START, *flags])]) == 2
    assert "does not keep packed examples apart" in capsys.readouterr().err


def test_stored_features_train_as_images_do(data, pretrained, tmp_path, monkeypatch):
    """Equal losses; the tower runs once an image; a second run computes nothing, one with other pixels anew."""
    store = tmp_path / "features"
    flags = [*FINETUNE, "--pretrain_mm_mlp_adapter", pretrained[0], "--lora_dropout", 0, "--save_strategy", "no"]
    flags = ["finetune", *START, *flags, "--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir"]
    with_images = run([], *flags, tmp_path / "images")
    cached = run([], *flags, tmp_path / "cached", "--cache_tower_features", store)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "images"), abs=1e-5)
    files = sorted(store.rglob("*"))
    names = [file.name for file in files if file.is_file()]
    assert len(names) == 10 and all(name.endswith(".safetensors") for name in names)  # two records share an image
    assert logits(load_pretrained(tmp_path / "cached", dtype="float32")[0], with_images).allclose(
        logits(with_images.model, with_images), atol=1e-4
    )
    times = [file.stat().st_mtime_ns for file in files]
    item = cached.train_dataset[14]
    assert item["pixel_values"].shape == (2, 16, 96)
    run([], *flags, tmp_path / "again", "--cache_tower_features", store, "--packing", "True")
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "images"), abs=1e-5)
    assert [file.stat().st_mtime_ns for file in sorted(store.rglob("*"))] == times
    more = ["--image_aspect_ratio", "resize", "--max_steps", 1]
    run([], *flags, tmp_path / "stretched", "--cache_tower_features", store, *more)
    assert len(list(store.rglob("*.safetensors"))) == 14  # stretched, all images of a colour are one


def test_stored_features_have_a_limit(data, tmp_path, capsys):
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, "--output_dir", tmp_path / "out"]
    flags += ["--cache_tower_features", tmp_path / "features"]
    few = ["--cache_tower_features_gb", 20e-6]  # an image's features take 6 kB
    assert main(["train", "finetune", *map(str, [*START, *flags, *few])]) == 2
    assert "full at 0.0 GB" in capsys.readouterr().err
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 3
    learns = ["--unfreeze_mm_vision_tower", "True"]
    assert main(["train", "finetune", *map(str, [*START, *flags, *learns])]) == 2
    assert "the tower learns" in capsys.readouterr().err


def test_a_batch_of_text_alone_gives_the_same_gradients_and_a_projector_zeros(data, pretrained, tmp_path):
    flags = finetune_flags(data, pretrained[0], tmp_path)
    trainer = run([], *flags, "--max_steps", 1, "--lora_dropout", 0)
    model, text = trainer.model, batch_of(trainer, 10, 11)

    def gradients(training):
        model.zero_grad()
        model.get_base_model().model.train(training)  # in eval mode nothing is run beside the text
        loss = model(**text).loss
        loss.backward()
        return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    (loss, plain), (with_blank, exact) = gradients(False), gradients(True)
    assert loss == with_blank
    for name, gradient in exact.items():
        if "multi_modal_projector" in name:
            assert plain[name] is None and not gradient.any()
        else:
            assert gradient.equal(plain[name]), name


def test_checkpoints_are_scored_while_training(data, pretrained, tmp_path):
    """The scores logged are those that ``llava-s2 eval`` gives the checkpoints."""
    for number in range(3):
        folder = tmp_path / "vstar" / ("direct_attributes" if number < 2 else "relative_position")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), "red").save(folder / f"{number}.jpg")
        question = {"question": "What is the color?", "options": ["It is red.", "It is blue."]}
        question |= {"target_object": ["square"], "bbox": [[0, 0, 9, 9]]}
        (folder / f"{number}.json").write_text(json.dumps(question))
    out = tmp_path / "out"
    flags = [*finetune_flags(data, pretrained[0], out), "--max_steps", 4, "--save_steps", 100, "--eval_steps", 4]
    trainer = run([], *flags, "--eval_task", "vstar", "--eval_data", tmp_path / "vstar")
    (scores,) = [entry for entry in trainer.state.log_history if "eval/vstar/overall" in entry]
    report = json.loads((out / "eval" / "vstar-4" / "report.json").read_text())
    assert report["model"] == str(out / "checkpoint-4")
    assert scores["step"] == 4
    for category, row in report["results"].items():
        assert scores[f"eval/vstar/{category}"] == row["correct"] / row["count"]


def test_the_base_given_for_an_adapter_is_recorded(data, finetuned, tmp_path):
    """An adapter whose base has moved, gone on from with --base: what comes out loads by itself."""
    moved = shutil.copytree(finetuned[0], tmp_path / "moved", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/is/gone"}))
    flags = ["--data_path", data / "mix.jsonl", "--image_folder", data, *ON_CPU, "--max_steps", 1, "--lora_r", 2]
    trainer = run(
        [], "finetune", "--model_name_or_path", moved, "--base", LLM, *flags, "--output_dir", tmp_path / "new"
    )
    model, _ = load_pretrained(tmp_path / "new", dtype="float32")
    assert torch.allclose(logits(model, trainer), logits(trainer.model, trainer), atol=1e-4)
