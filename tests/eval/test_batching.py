"""What goes through the model together, when, and what that changes (nothing)."""

import threading
import time
from pathlib import Path

import accelerate.utils.memory
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_model import GOLDEN

from llava_s2.data.image_decoding import DecodedImage, open_image
from llava_s2.eval import loading
from llava_s2.eval.batching import Halving, automatic_size, batches
from llava_s2.eval.benchmark import Sample
from llava_s2.eval.generation import answers
from llava_s2.eval.loading import load_ahead
from llava_s2.formats.load import load_pretrained
from llava_s2.model.inference import prepare_image
from llava_s2.model.option_ranking import rank_options
from llava_s2.model.rounding import near_tie

IMAGES = sorted((GOLDEN / "images").glob("*.png"))
PROMPTS = ["What?", "Who wrote it, and when was it that they did so?", "Which colour has the car?", "Why is it so?"]


def sample(number, images=(), prompt="Why?"):
    return Sample(str(number), "all", images, prompt, (), None)


SAMPLES = st.lists(
    st.tuples(st.sampled_from([(), (Path("a"),), (Path("b"),), (Path("a"), Path("b"))]), st.text(max_size=20))
).map(lambda drawn: [sample(number, images, prompt) for number, (images, prompt) in enumerate(drawn)])


@given(SAMPLES, st.integers(1, 5))
def test_batches_hold_each_question_once_and_the_same_images_together(samples, size):
    together = batches(samples, size, "generate")
    assert sorted(s.id for batch in together for s in batch) == sorted(s.id for s in samples)
    assert all(0 < len(batch) <= size for batch in together)
    images = [s.images for batch in together for s in batch if s.images]
    runs = [shown for place, shown in enumerate(images) if place == 0 or images[place - 1] != shown]
    assert len(runs) == len(set(runs))
    ranked = batches(samples, size, "likelihood")
    assert sorted(s.id for batch in ranked for s in batch) == sorted(s.id for s in samples)
    assert all(len(batch) <= size and len({s.images or s.id for s in batch}) == 1 for batch in ranked)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 20))
def test_out_of_memory_halves_and_answers_all(count, fits, size):
    calls = []

    def answer(batch):
        calls.append(len(batch))
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return [-item for item in batch]

    run = Halving(answer)
    found = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(accelerate.utils.memory, "clear_device_cache", lambda **_: None)  # a second each time
        for start in range(0, count, size):
            found += run(range(start, min(count, start + size)))
    assert found == [-item for item in range(count)]
    refused = [call for call in calls if call > fits]
    assert refused == sorted(set(refused), reverse=True)  # a size that did not fit is not tried again


def test_what_does_not_fit_alone_or_is_another_error_is_raised():
    def never(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def broken(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(torch.OutOfMemoryError):
        Halving(never)([1, 2, 3])
    with pytest.raises(RuntimeError, match="shapes"):
        Halving(broken)([1, 2, 3])


def test_the_automatic_size_follows_the_free_memory(loaded, monkeypatch):
    import psutil

    sizes = []
    for free in (10**5, 4 * 10**6, 10**12):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: type("Memory", (), {"available": free}))
        sizes.append(automatic_size(*loaded, [sample(0, (Path("a"),))], 16))
    assert sizes[0] == 1 < sizes[1] < sizes[2] <= 16


def shown(processor, numbers):
    """Pictures of the questions, the same tensor where the number is the same."""
    prepared = [prepare_image(processor, open_image(path)) for path in IMAGES]
    return [tuple(prepared[number] for number in of_one) for of_one in numbers]


@pytest.mark.parametrize("numbers", [[(0,), (0,), (1,), (0,)], [(0, 1), (0, 1), (1, 0), (0, 1)]], ids=["one", "two"])
def test_questions_about_one_picture_share_its_encoding(loaded, numbers):
    model, processor = loaded
    pictures = shown(processor, numbers)
    alone = [answers(model, processor, [p], [prompt], 6)[0] for p, prompt in zip(pictures, PROMPTS, strict=True)]
    seen = []
    hook = model.model.vision_tower.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        together = answers(model, processor, pictures, PROMPTS, 6)
    finally:
        hook.remove()
    assert together == alone
    assert seen == [sum(map(len, set(numbers)))]


def test_likelihoods_of_questions_about_one_picture_share_its_encoding(loaded):
    model, processor = loaded
    (pictures,) = shown(processor, [(0,)])
    questions = [(prompt, ("red", "a dark green", "no")[: 2 + place % 2]) for place, prompt in enumerate(PROMPTS)]
    alone = [rank_options(model, processor, pictures, [question])[0] for question in questions]
    seen = []
    hook = model.model.vision_tower.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        together = rank_options(model, processor, pictures, questions)
    finally:
        hook.remove()
    assert seen == [1]
    for one, other in zip(together, alone, strict=True):
        assert one.losses == pytest.approx(other.losses, abs=3e-6) and one.near_tie is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_near_tie_is_what_rounding_can_swap(dtype):
    first = torch.tensor([1.0, 7.3, 20.0, 300.0])
    unit = torch.nextafter(first.to(dtype), torch.tensor(1e4, dtype=dtype)).double() - first.to(dtype).double()
    assert near_tie(1.9 * unit, first, dtype).all()
    assert not near_tie(5 * unit, first, dtype).any()
    assert not near_tie(0 * unit, first, torch.float32).any()


def test_a_half_precision_answer_says_that_it_is_a_near_tie():
    """With an output layer that gives every token the same score all is a tie; with a steep one nothing is."""
    model, processor = load_pretrained(
        str(GOLDEN / "llava-tiny-s2"), vision_tower=str(GOLDEN / "clip-tiny"), dtype="bfloat16"
    )
    pictures = shown(processor, [(0,), (1,)])
    model.lm_head.weight.data.zero_()
    assert all(answer.near_tie for answer in answers(model, processor, pictures, PROMPTS[:2], 4))
    assert all(r.near_tie for r in rank_options(model, processor, pictures[0], [("What?", ("red", "no"))]))
    end = processor.tokenizer.eos_token_id
    bias = torch.zeros(model.lm_head.out_features, dtype=torch.bfloat16)
    bias[end] = 9.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    # Only what stands up to the end counts: after it the scores are never asked for.
    assert not any(answer.near_tie for answer in answers(model, processor, pictures, PROMPTS[:2], 4))


def test_images_load_beside_the_model_and_few_are_held(loaded, monkeypatch):
    """While a batch is worked on, the next ones are read; never more than the two next."""
    _, processor = loaded
    opened, lock = [], threading.Lock()

    def read(image, turn):
        with lock:
            opened.append(image)
        return DecodedImage(Image.new("RGB", (8, 8)))

    monkeypatch.setattr(loading, "read_image", read)
    work = [[sample(number, (Path(str(number)),))] for number in range(9)]
    for number, (batch, pictures) in enumerate(
        load_ahead(iter(work), lambda image, _: prepare_image(processor, image))
    ):
        assert batch == work[number] and len(pictures) == 1 and pictures[0].images[0].dim() == 3
        wanted = min(9, number + 3)
        deadline = time.monotonic() + 20
        while len(opened) < wanted and time.monotonic() < deadline:  # without being asked for the next batch
            time.sleep(0.001)
        assert len(opened) == wanted
