"""Packed batches: what they hold, and that a model's loss and gradients are those of each example alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava_s2.data.collator import Collator, PackingCollator, keep_targets, pack
from llava_s2.data.dataset import ConversationDataset
from llava_s2.data.pixels import Normalizer
from llava_s2.data.training_records import check_records
from llava_s2.model.assemble import assemble

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"


def turns(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


RECORDS = [
    {"conversations": turns("Say a word.", "Word.")},
    {"image": "a.png", "conversations": turns("<image>\nColour?", "Black, and a longer answer.", "Sure?", "Yes.")},
    {"conversations": turns("Count " + "one two three " * 9, "Four.")},
    {"image": ["b.png", "a.png"], "conversations": turns("<image> or <image>?", "The first.")},
    {"image": "b.png", "conversations": turns("<image>", "White.")},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model in training, and examples with no image, one and two, their pictures normalised."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate("ab"):
        Image.effect_noise((60, 50 + number), 90).convert("RGB").save(folder / f"{name}.png")
    (folder / "data.json").write_text(json.dumps(RECORDS))
    torch.manual_seed(0)
    model, processor = assemble(GOLDEN / "vicuna-tiny", GOLDEN / "clip-tiny", [56, 112], dtype="float32")
    checked = check_records(folder / "data.json", folder, "vicuna_v1")
    dataset = ConversationDataset(checked, processor, "vicuna_v1", 2048)
    normalize = Normalizer(processor.image_processor)
    examples: list[dict] = [dataset[index] for index in range(len(RECORDS))]
    for example in examples:
        if "pixel_values" in example:
            example["pixel_values"] = normalize(example["pixel_values"])
    return model.train(), examples * 3


def loss_and_gradients(model, batches, targets):
    """Summed over ``targets`` as Trainer does over the batches of a step."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=targets).loss
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("hidden_size", [None, 1])
def test_the_loss_and_gradients_of_packed_examples_are_those_of_each_alone(tiny, hidden_size):
    model, examples = tiny
    targets = sum(int((example["labels"][1:] != -100).sum()) for example in examples)
    alone = [Collator(0)([example]) for example in examples]
    loss, gradients = loss_and_gradients(model, alone, targets)
    packed = PackingCollator(0, hidden_size)(examples)
    assert (len(packed["input_ids"]) > 1) == (hidden_size == 1)
    for batch in (packed, keep_targets(packed), keep_targets(Collator(0)(examples))):
        other, other_gradients = loss_and_gradients(model, [batch], targets)
        assert other == pytest.approx(loss, abs=1e-5)
        assert other_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(other_gradients[name], gradient, atol=1e-5), name


def test_with_a_key_value_cache_examples_would_see_each_other(tiny):
    """Why a packed batch says ``use_cache``: left out, transformers makes a cache and forgets what is packed."""
    model, examples = tiny
    packed = PackingCollator(0, None)(examples)
    assert packed["use_cache"] is False
    with torch.no_grad():
        loss = model(**packed).loss
        mixed = model(**{name: value for name, value in packed.items() if name != "use_cache"}).loss
    assert abs(mixed - loss) > 1e-3


def test_logits_only_where_there_is_loss(tiny):
    model, examples = tiny
    batch = keep_targets(PackingCollator(0, None)(examples))
    targets = sum(int((example["labels"][1:] != -100).sum()) for example in examples)
    with torch.no_grad():
        assert model(**batch).logits.shape[:2] == (1, targets)


def test_a_row_holds_whole_examples_and_their_images_in_its_order(tiny):
    _, examples = tiny
    packed = PackingCollator(7, 1)(examples)
    rows = pack([len(example["input_ids"]) for example in examples], 1)
    assert sorted(index for row in rows for index in row) == list(range(len(examples)))
    images = iter(packed["pixel_values"])
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            example = examples[index]
            end = start + len(example["input_ids"])
            assert packed["input_ids"][number, start:end].equal(example["input_ids"])
            assert packed["labels"][number, start] == -100
            assert packed["labels"][number, start + 1 : end].equal(example["labels"][1:])
            assert packed["position_ids"][number, start:end].tolist() == list(range(end - start))
            for image in example.get("pixel_values", []):
                assert next(images).equal(image)
            start = end
        assert set(packed["input_ids"][number, start:].tolist()) <= {7}
        assert set(packed["labels"][number, start:].tolist()) <= {-100}
        padding = len(packed["input_ids"][number]) - start
        assert packed["position_ids"][number, start:].tolist() == list(range(padding))
    assert next(images, None) is None


@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=24), hidden=st.sampled_from([None, 1, 576, 4096]))
def test_every_example_in_one_row_and_never_more_places_than_padded(lengths, hidden):
    rows = pack(lengths, hidden)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    longest = max(sum(lengths[index] for index in row) for row in rows)
    assert len(rows) * longest <= len(lengths) * max(lengths)


@pytest.mark.parametrize("batch", [4, 16])
def test_at_least_95_percent_real_on_lengths_like_llavas(batch):
    """At 7B's width, in any order: 576 tokens an image and some text, and long talks without one (6 %)."""
    draw = np.random.default_rng(0)
    texts = 35 + draw.lognormal(5, 0.8, 3200)
    talks = draw.random(3200) < 0.06
    lengths = np.where(talks, draw.lognormal(7, 0.8, 3200), 576 + texts).clip(40, 2048).astype(int).reshape(-1, batch)
    places = 0
    for row in lengths.tolist():
        rows = pack(row, 4096)
        places += len(rows) * max(sum(row[index] for index in packed) for packed in rows)
    assert lengths.sum() / (lengths.max(1) * batch).sum() < 0.85
    assert lengths.sum() / places >= 0.95


def test_rows_for_attention_that_computes_what_it_masks():
    """Equal lengths stay apart, as rows of them hold no padding; else a wide model, to which attention is little, packs
    into fewer rows than a narrow one."""
    assert [len(pack([700] * 16, hidden)) for hidden in (64, 10**6, None)] == [16, 16, 1]
    draw = np.random.default_rng(0)
    mixed = [draw.integers(100, 2048, 16).tolist() for _ in range(20)]
    narrow, wide = (sum(len(pack(lengths, hidden)) for lengths in mixed) for hidden in (64, 10**6))
    assert narrow > 1.5 * wide > 0
