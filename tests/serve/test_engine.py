"""The engine's parts against stock `generate`, transformers' own warpers and the tokenizer."""

import io
import itertools
import json
import queue
import time

import pytest
import torch
from api_server import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlavaForConditionalGeneration,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llava_s2.data.image_decoding import open_image
from llava_s2.model.inference import encode_prompts, token_arguments, user_message
from llava_s2.serve.api.batch import Batch
from llava_s2.serve.api.engine import Delta, End, Engine, Job, PromptImage, Started
from llava_s2.serve.api.metrics import Metrics
from llava_s2.serve.api.sampling import Sampler, Sampling
from llava_s2.serve.api.text import AnswerText
from llava_s2.serve.tower_cache import FeatureCache, image_features

CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
QUESTIONS = [
    ("What is it?", [0]),
    ("Name the colours of both pictures, one after the other.", [1, 2]),
    ("Words alone.", []),
    ("And this one here, which is a longer question about the same picture?", [0]),
    ("Hi", []),
    ("Three?", [3, 0, 1]),
]


def picture(number):
    return open_image(GOLDEN / f"images/{number}.png")


def encoded(loaded, question, numbers):
    _, processor = loaded
    return encode_prompts(processor, [[user_message(question, len(numbers))]], [picture(n) for n in numbers])


def stock(loaded, question, numbers, new_tokens):
    """What ``generate`` answers alone."""
    model, processor = loaded
    inputs = encoded(loaded, question, numbers)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, **token_arguments(model, processor))
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def job(loaded, question="Hi", numbers=(), deadline=60.0, told=None, **sampling):
    inputs = encoded(loaded, question, numbers)
    pixels = inputs.get("pixel_values", torch.zeros(0, 3, 1, 1))
    images = [PromptImage(f"{n}", pixels[at : at + 1]) for at, n in enumerate(numbers)]
    told = queue.Queue() if told is None else told
    made = Job(inputs["input_ids"][0].tolist(), images, Sampling(**sampling), time.monotonic() + deadline, told.put)
    return made, told


def events_of(told):
    events = []
    while not events or not isinstance(events[-1], End):
        events.append(told.get(timeout=60))
    return events


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


@pytest.fixture
def start(loaded):
    engines = []

    def started(**limits):
        made = Engine(*loaded, FeatureCache(1 << 20), Metrics(), **{"max_batch": 8, "max_batch_tokens": 8192, **limits})
        made.start()
        engines.append(made)
        return made

    yield started
    for engine in engines:
        engine.stop()


def test_a_batch_whose_rows_come_and_go_computes_what_each_computes_alone(loaded):
    model, _ = loaded
    batch = Batch(model)
    tokens, expected, rows, largest = [], {}, [], 0.0

    def alone(row):
        inputs = {**encoded(loaded, *QUESTIONS[row]), "past_key_values": None}
        more = torch.tensor([expected[row]], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            return model(**inputs).logits[0, -1]

    def compare(logits, which):
        nonlocal largest
        for got, row in zip(logits, which, strict=True):
            largest = max(largest, float((got - alone(row)).abs().max()))

    def add(*new):
        prompts = [encoded(loaded, *QUESTIONS[row])["input_ids"][0].tolist() for row in new]
        features = []
        for row in new:
            pixels = encoded(loaded, *QUESTIONS[row]).get("pixel_values", [])
            with torch.inference_mode():
                features.append([image_features(model, one[None])[0] for one in pixels])
        expected.update((row, []) for row in new)
        logits = batch.add(prompts, features)
        rows.extend(new)
        compare(logits, new)
        tokens.extend(logits.argmax(-1).tolist())

    def step():
        for row, token in zip(rows, tokens, strict=True):
            expected[row].append(token)
        logits = batch.step(tokens)
        compare(logits, rows)
        tokens[:] = logits.argmax(-1).tolist()

    def keep(*kept):
        batch.keep(kept)
        rows[:], tokens[:] = [rows[at] for at in kept], [tokens[at] for at in kept]

    add(4)
    step()
    add(0, 1, 2)
    step()
    keep(0, 1, 3)
    step()
    add(5, 3)
    keep(4, 2, 1)
    step()
    keep(1)
    step()
    assert batch.size == 1 and batch.length == len(encoded(loaded, *QUESTIONS[rows[0]])["input_ids"][0]) + 5 - 1
    keep()
    add(0)
    assert largest < 2e-5


def test_answers_together_are_those_of_generate_alone(loaded, start):
    engine = start(max_batch=4)
    jobs = [job(loaded, *question, max_new_tokens=12 + 3 * n) for n, question in enumerate(QUESTIONS)]
    for one, _ in jobs:
        engine.submit(one)
    tokenizer = loaded[1].tokenizer
    for n, ((one, told), question) in enumerate(zip(jobs, QUESTIONS, strict=True)):
        events = events_of(told)
        ids = stock(loaded, *question, 12 + 3 * n)
        assert text_of(events) == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert isinstance(events[0], Started) and one.new_tokens == len(ids)
        assert events[-1].reason == ("stop" if ids[-1] == tokenizer.eos_token_id else "length")


def test_answers_are_those_of_the_original_code(loaded, start):
    engine = start()
    for case in CASES[:3]:
        number = int(case["image"].split("/")[-1].split(".")[0])
        one, told = job(loaded, case["question"], [number], max_new_tokens=len(case["greedy_full"]))
        engine.submit(one)
        expected = loaded[1].decode(case["greedy_full"], skip_special_tokens=True).strip()
        assert text_of(events_of(told)) == expected


def test_a_repeated_picture_skips_the_tower(loaded, start, tower_runs):
    engine = start()
    answers = []
    for question in ("What?", "What?", "And?"):
        one, told = job(loaded, question, [0], max_new_tokens=6)
        engine.submit(one)
        answers.append(text_of(events_of(told)))
        assert one.cached_images == (len(answers) > 1) and ("tower" in one.seconds) == (len(answers) == 1)
    assert len(tower_runs) == 1 and answers[0] == answers[1] != answers[2]


def test_a_seed_gives_the_same_answer_alone_and_in_company(loaded, start):
    engine = start()

    def answers(company):
        jobs = [job(loaded, "What?", [0], temperature=1.5, top_p=0.9, seed=7, max_new_tokens=10)]
        jobs += [job(loaded, f"And {n}?", [n], temperature=2, seed=n, max_new_tokens=5 + n) for n in range(company)]
        for one, _ in jobs:
            engine.submit(one)
        return [text_of(events_of(told)) for _, told in jobs]

    alone, together = answers(0), answers(4)
    assert alone[0] == together[0] and len({*together}) > 1
    greedy, told = job(loaded, "What?", [0], max_new_tokens=10)
    engine.submit(greedy)
    assert text_of(events_of(told)) != alone[0]


def test_cancelled_and_late_answers_end_and_leave_the_others_alone(loaded, start):
    engine, now = start(max_batch=3), [0.0]
    long = {"max_new_tokens": 1500}
    gone, gone_told = job(loaded, "Go on.", [0], **long)
    late, late_told = job(loaded, "Go on.", [1], **long)
    whole, whole_told = job(loaded, *QUESTIONS[0], max_new_tokens=30)
    waits, waits_told = job(loaded, "Wait.", max_new_tokens=3)

    # In the engine's own thread, so that nothing depends on how fast it is.
    def hang_up(event):
        gone_told.put(event)
        gone.stop_reason = "cancelled"

    def let_time_pass(event):
        late_told.put(event)
        now[0] = 2.0

    gone.on_event, late.on_event = hang_up, let_time_pass
    late.clock, late.deadline = lambda: now[0], 1.0
    for one in (gone, late, whole, waits):
        engine.submit(one)
    assert events_of(gone_told)[-1].reason == "cancelled" and gone.new_tokens < 3
    assert events_of(late_told)[-1].reason == "timeout" and late.new_tokens < 3
    decoded = loaded[1].decode(stock(loaded, *QUESTIONS[0], 30), skip_special_tokens=True).strip()
    assert text_of(events_of(whole_told)) == decoded
    assert events_of(waits_told)[-1].reason in ("stop", "length")


def test_the_batch_stays_within_rows_and_tokens(loaded, start, monkeypatch):
    sizes, add, step = [], Batch.add, Batch.step

    def watch(call):
        def watched(self, *arguments):
            result = call(self, *arguments)
            sizes.append((self.size, self.size * self.length))
            return result

        return watched

    monkeypatch.setattr(Batch, "add", watch(add))
    monkeypatch.setattr(Batch, "step", watch(step))
    engine = start(max_batch=3, max_batch_tokens=150)
    jobs = [job(loaded, "Hi " * n, max_new_tokens=20) for n in (1, 1, 30, 100, 2)]  # the fourth is too long by itself
    for one, _ in jobs:
        engine.submit(one)
    assert all(events_of(told)[-1].reason in ("stop", "length") for _, told in jobs)
    assert max(rows for rows, _ in sizes) > 1
    assert all(rows <= 3 and (tokens <= 150 or rows == 1) for rows, tokens in sizes)


def test_room_is_taken_as_it_is_used_and_who_goes_back_to_the_queue_answers_the_same(loaded, start, monkeypatch):
    sizes, step = [], Batch.step
    monkeypatch.setattr(Batch, "step", lambda self, tokens: (sizes.append(self.size), step(self, tokens))[1])
    questions = [("What?", [0]), ("And what is this?", [1]), ("Say.", [])]
    alone = [stock(loaded, *question, 40) for question in questions]
    used = max(len(encoded(loaded, *question)["input_ids"][0]) for question in questions)
    engine = start(max_batch_tokens=3 * (used + 20))  # room for all at first, and not for three whole answers
    jobs = [job(loaded, *question, max_new_tokens=40) for question in questions]
    for one, _ in jobs:
        engine.submit(one)
    for (_, told), ids in zip(jobs, alone, strict=True):
        events = events_of(told)
        assert text_of(events) == loaded[1].decode(ids, skip_special_tokens=True).strip()
        assert sum(isinstance(event, Started) for event in events) == 1
    assert max(sizes) == 3 and sizes[-1] == 1


def test_an_answer_that_runs_goes_on_while_images_come(loaded, start, tower_runs):
    engine = start(max_batch=16)
    runs_seen = []
    first, first_told = job(loaded, "Go on.", max_new_tokens=300, top_logprobs=0)  # which tells of every token
    others = [job(loaded, "What?", [n % 4], max_new_tokens=2) for n in range(12)]
    for number, (one, _) in enumerate(others):  # other pixels each
        one.images = [PromptImage(f"new {number}", one.images[0].pixels + number)]

    def watch(event):
        first_told.put(event)
        runs_seen.append(len(tower_runs))
        if isinstance(event, Started):
            for one, _ in others:
                engine.submit(one)

    first.on_event = watch
    engine.submit(first)
    for _, told in others:
        events_of(told)
    events_of(first_told)
    steps = [after - before for before, after in itertools.pairwise(runs_seen)]
    assert max(steps) <= 1 and len(tower_runs) >= 3  # never two calls of the tower between two pieces of its answer


def test_a_small_request_passes_one_for_which_there_is_no_room(loaded, start):
    engine = start(max_batch_tokens=200)
    running, running_told = job(loaded, "Go on.", max_new_tokens=60)
    large, large_told = job(loaded, "Hi " * 100, max_new_tokens=2)
    small, small_told = job(loaded, "Hi", max_new_tokens=2)
    order = []
    running.on_event = lambda event: (
        running_told.put(event),
        [engine.submit(one) for one in (large, small)] if isinstance(event, Started) else None,
    )
    for one, told, name in ((large, large_told, "large"), (small, small_told, "small")):
        one.on_event = lambda event, told=told, name=name: (order.append(name), told.put(event))
    engine.submit(running)
    for told in (large_told, small_told, running_told):
        assert events_of(told)[-1].reason in ("stop", "length")
    assert order[0] == "small" and order[-1] == "large"


def test_penalties_and_what_is_left_out_are_those_of_transformers():
    logits = torch.randn(60, generator=torch.Generator().manual_seed(5)) * 2
    prompt, answer = [3, 4, 4], [7, 7, 9]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + answer]), logits[None].clone())
    assert Sampler(Sampling(repetition_penalty=1.7), prompt).sample(logits, answer).token == int(expected.argmax())
    for sampling, warper in (
        (Sampling(temperature=1.0, top_k=4, seed=1), TopKLogitsWarper(4)),
        (Sampling(temperature=1.0, min_p=0.3, seed=1), MinPLogitsWarper(0.3)),
    ):
        kept = set(warper(None, logits[None])[0].isfinite().nonzero()[:, 0].tolist())
        sampler = Sampler(sampling)
        assert {sampler.sample(logits).token for _ in range(200)} <= kept
    flat = torch.zeros(12)
    flat[7], flat[9] = 1.9, 1.5  # minus 2 x 0.5 + 0.2, and minus 0.5 + 0.2
    penalties = Sampling(frequency_penalty=0.5, presence_penalty=0.2)
    assert Sampler(penalties, prompt).sample(flat, answer).token == 9
    told = Sampler(Sampling(frequency_penalty=2, top_logprobs=1)).sample(flat, [7, 7])
    assert told.token == 9 and told.top[0][0] == 7  # log-probabilities are the model's own
    assert Sampler(Sampling(logit_bias={7: -1.0, 5: 1.4, 99: 5.0})).sample(flat).token == 9


def test_a_failing_model_fails_the_answers_under_way_and_no_more(loaded, start, monkeypatch):
    engine = start()
    forward = LlavaForConditionalGeneration.forward
    monkeypatch.setattr(
        LlavaForConditionalGeneration, "forward", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    one, told = job(loaded)
    engine.submit(one)
    assert events_of(told)[-1].reason == "error"
    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", forward)
    one, told = job(loaded, max_new_tokens=3)
    engine.submit(one)
    assert events_of(told)[-1].reason in ("stop", "length")


def test_stopping_the_engine_finishes_what_it_has(loaded):
    engine = Engine(*loaded, FeatureCache(0), Metrics(), max_batch=1, max_batch_tokens=8192)
    engine.start()
    jobs = [job(loaded, f"{n}?", max_new_tokens=10) for n in range(3)]
    for one, _ in jobs:
        engine.submit(one)
    engine.stop()
    assert all(events_of(told)[-1].reason in ("stop", "length") for _, told in jobs)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.floats(0.05, 1), st.floats(0.2, 2))
def test_draws_come_from_the_nucleus_that_transformers_keeps(seed, top_p, temperature):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(seed)) * 3
    kept = TopPLogitsWarper(top_p)(None, logits / temperature).isfinite()[0]
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, seed=seed))
    tokens = {sampler.sample(logits[0]).token for _ in range(50)}
    # The warper sums in another order: a token at the very edge may fall on either side.
    edge = min(int(kept.sum()) + 1, 50)
    assert tokens <= set(logits[0].topk(edge).indices.tolist())
    assert len(tokens) > 1 or kept.sum() < 3 or torch.softmax(logits / temperature, -1).max() > 0.9


def test_a_share_too_small_for_float32_leaves_the_likeliest_token():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert Sampler(Sampling(temperature=1.0, top_p=1e-181)).sample(logits).token == int(logits.argmax())


def test_draws_follow_the_probabilities():
    logits, sampler = torch.tensor([1.0, 2.0, 0.0, -float("inf")]), Sampler(Sampling(temperature=0.7, seed=1))
    drawn = torch.tensor([sampler.sample(logits).token for _ in range(4000)])
    assert torch.allclose(drawn.bincount(minlength=4) / 4000, torch.softmax(logits / 0.7, -1), atol=0.03)
    assert len({Sampler(Sampling(temperature=2.0)).sample(torch.zeros(1000)).token for _ in range(9)}) > 1  # no seed


def test_log_probabilities_are_the_models_own(loaded, start):
    model, processor = loaded
    one, told = job(loaded, *QUESTIONS[0], max_new_tokens=6, top_logprobs=3, temperature=1.3, seed=3)
    start().submit(one)
    sampled = [token for event in events_of(told) if isinstance(event, Delta) for token in event.tokens]
    inputs = encoded(loaded, *QUESTIONS[0])
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token.token for token in sampled]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        logits = model(**inputs).logits[0, length - 1 : -1]
    logits = logits.clone()
    logits[:, processor.image_token_id] = -float("inf")
    expected = torch.log_softmax(logits, -1)
    for row, token in zip(expected, sampled, strict=True):
        assert token.logprob == pytest.approx(float(row[token.token]), abs=1e-4)
        assert [found for found, _ in token.top] == row.topk(3).indices.tolist()
    assert len(sampled) == 6


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_pieces_of_text_add_up_to_the_whole_cut_at_the_first_stop(loaded, data):
    tokenizer = loaded[1].tokenizer
    words = st.sampled_from(["Hello", " you", "\n", "  ", "é", "🙂", "日本", "#", "##", "</s>", "a", "STOP", "ST"])
    text = "".join(data.draw(st.lists(words, max_size=12)))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stop = data.draw(st.lists(st.sampled_from(["##", "STOP", "\n\n", "🙂", "a#", "you"]), max_size=3))
    answer = AnswerText(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(answer.feed(token))
        if answer.stopped:
            break
    pieces.append(answer.finish())
    whole = tokenizer.decode(ids, skip_special_tokens=True).lstrip()
    ends = [whole.find(one) for one in stop if one in whole]
    expected = whole[: min(ends)] if ends else whole
    assert "".join(pieces) == expected.rstrip()
    assert answer.stopped == bool(ends)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_tokens_become_text(loaded, data):
    tokenizer = loaded[1].tokenizer
    known = tokenizer.get_vocab()
    some = [known[f"<0x{byte:02X}>"] for byte in (0xE4, 0xBD, 0xA0, 0xFF, 0x41, 0xC3)]
    some += tokenizer("Hello you, 日本 \n", add_special_tokens=False)["input_ids"] + tokenizer.all_special_ids
    ids = data.draw(st.lists(st.sampled_from(some), max_size=20))
    answer = AnswerText(tokenizer)
    text = "".join([*map(answer.feed, ids), answer.finish()])
    expected = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert text == expected or ("\ufffd" in expected and len(text) <= len(expected))


def test_an_answer_that_fails_leaves_the_others_of_its_batch_alone(loaded, start, monkeypatch):
    engine = start()
    jobs = [job(loaded, "What is it?", [0], max_new_tokens=5, seed=seed, temperature=1.0) for seed in range(3)]
    sample = Sampler.sample

    def failing(self, row, tokens):
        if self._sampling.seed == 1 and len(tokens) == 2:
            raise ValueError("no such token")
        return sample(self, row, tokens)

    monkeypatch.setattr(Sampler, "sample", failing)
    for one, _ in jobs:
        engine.submit(one)
    assert [events_of(told)[-1].reason for _, told in jobs] == ["length", "error", "length"]


def test_metrics_name_what_was_done(loaded):
    metrics = Metrics()
    engine = Engine(*loaded, FeatureCache(1 << 20), metrics, max_batch=4, max_batch_tokens=8192)
    engine.start()
    one, told = job(loaded, "What?", [0], max_new_tokens=4)
    engine.submit(one)
    events_of(told)
    engine.stop()
    lines = dict(line.rsplit(" ", 1) for line in io.StringIO(metrics.text().decode()) if not line.startswith("#"))
    assert float(lines["llava_s2_prompt_tokens_total"]) == len(one.prompt)
    assert float(lines["llava_s2_completion_tokens_total"]) == 4
    assert float(lines["llava_s2_image_cache_misses_total"]) == 1
    assert float(lines["llava_s2_batch_size_count"]) == 4
    assert float(lines["llava_s2_waiting"]) == float(lines["llava_s2_running"]) == 0
