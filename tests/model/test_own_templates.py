"""Chat templates that are not this project's: what is learnt is the replies and the tokens that end them."""

import json
import re

import pytest
from llava_reference import VICUNA
from tokenizers import AddedToken
from transformers import AutoProcessor

from llava_s2.data.conversation import encode_record
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError
from llava_s2.model.labels import encode_messages
from llava_s2.model.processor import build_processor
from llava_s2.model.templates import TEMPLATES, end_of_turn, find_template, takes_system
from llava_s2.model.tokenizer import load_tokenizer
from llava_s2.s2 import S2VisionConfig

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m.role + '<|stop|>\n\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot|>' }}{% endgeneration %}"
    "{% else %}{{ m.content | trim + '<|eot|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
# The newest reply alone is shown with an empty thought, as some reasoning models have it.
THINKS = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|eot|>' }}{% endgeneration %}{% else %}{{ m.content + '<|eot|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
PARTS_ALONE = (
    "{% for m in messages %}{{ m.role + ': ' }}{% for p in m.content %}"
    "{% if p['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ p['text'] + '<|eot|>' }}{% endgeneration %}"
    "{% else %}{{ p['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
MESSAGES = [
    {"role": "user", "content": "<image>\nWhat is it?"},
    {"role": "assistant", "content": "A cup."},
    {"role": "user", "content": "A cup. Sure?"},
    {"role": "assistant", "content": "A cup. Yes."},
]


@pytest.fixture(scope="module")
def processor():
    tokenizer = load_tokenizer(VICUNA)
    ends = [AddedToken(token, special=True, normalized=False) for token in ("<|start|>", "<|stop|>", "<|eot|>")]
    tokenizer.add_tokens(ends, special_tokens=True)
    config = S2VisionConfig(
        backbone_config={"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}, scales=[28]
    )
    return build_processor(tokenizer, config, [0.5] * 3, [0.5] * 3)


def unmarked(template):
    return re.sub(r"\{% (end)?generation %\}", "", template)


def replies(encoded, tokenizer):
    """The texts of the stretches that are learnt."""
    texts, ids = [], []
    for label in [*encoded["labels"], -100]:
        if label != -100:
            ids.append(label)
        elif ids:
            texts.append(tokenizer.decode(ids))
            ids = []
    return texts


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (LLAMA_3, ["A cup.<|eot|>", "A cup. Yes.<|eot|>"]),
        (THINKS, ["A cup.<|eot|>", "<think>\n\n</think>\n\nA cup. Yes.<|eot|>"]),
        (NO_SYSTEM, ["A cup.</s>", "A cup. Yes.</s>"]),
        (PARTS_ALONE, ["A cup.<|eot|>", "A cup. Yes.<|eot|>"]),
    ],
    ids=["llama 3", "thinks", "no system", "parts"],
)
def test_a_template_is_learnt_alike_with_marks_and_without(processor, template, wanted):
    tokenizer = processor.tokenizer
    marked = encode_messages(MESSAGES, processor, template)
    assert encode_messages(MESSAGES, processor, unmarked(template)) == marked
    assert [text.strip() for text in replies(marked, tokenizer)] == wanted
    assert marked["input_ids"].count(processor.image_token_id) == 4


def test_masks_are_those_of_assistant_only_loss(processor):
    """Which are what transformers' apply_chat_template returns as assistant_masks."""
    messages = [{**message, "content": message["content"].replace("<image>\n", "")} for message in MESSAGES]
    for template in (LLAMA_3, THINKS):
        wanted = processor.tokenizer.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        encoded = encode_messages(messages, processor, template)
        bos = int(template == THINKS)  # this tokenizer writes it where the template does not
        assert encoded["input_ids"][bos:] == wanted["input_ids"]
        assert [int(label != -100) for label in encoded["labels"]][bos:] == wanted["assistant_masks"]


# Formats of public models in as few words as they can be written, with their real tokens; G and E for the marks.
REAL = {
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{% if m.role == 'assistant' %}G{{ m.content | trim + '<|eot_id|>' }}E{% else %}"
        "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "qwen 2.5": (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "G{{ m.content + '<|im_end|>' }}E{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<start_of_turn>model\n' }}"
        "G{{ m.content | trim + '<end_of_turn>' }}E{{ '\n' }}{% else %}"
        "{{ '<start_of_turn>' + m.role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi 3": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n' }}G{{ m.content + '<|end|>' }}E"
        "{{ '\n' }}{% else %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}G{{ ' ' + m.content | trim + eos_token }}E{% endif %}{% endfor %}"
    ),
    "qwen 3": (  # an older reply's thoughts are dropped, the last has empty ones
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "G{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>' }}E{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
SPECIAL = (
    "<|start_header_id|> <|end_header_id|> <|eot_id|> <|im_start|> <|im_end|> <start_of_turn> <end_of_turn> <|user|> "
    "<|assistant|> <|end|>"
)
TALKS = [
    MESSAGES,
    [{"role": "user", "content": "Same?"}, {"role": "assistant", "content": "Same?"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "assistant\n"}] * 3,
    [{"role": "user", "content": "Ünï 🦙"}, {"role": "assistant", "content": "日本 </b> {{ x }}\n\n- 1\n- 2"}],
]


@pytest.mark.parametrize("name", REAL)
def test_real_templates_are_learnt_as_assistant_only_loss_learns_them(processor, name):
    """As they are, without marks: the ids and the mask that transformers makes of them with marks."""
    processor.tokenizer.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL.split()], special_tokens=True
    )
    marked = re.sub(r"(?<=[%}]})G", "{% generation %}", re.sub(r"(?<=[%}]})E", "{% endgeneration %}", REAL[name]))
    template = re.sub(r"(?<=[%}]})[GE]", "", REAL[name])
    for talk in TALKS:
        talk = [message | {"content": message["content"].replace("<image>\n", "")} for message in talk]
        wanted = processor.tokenizer.apply_chat_template(
            talk, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
        encoded = encode_messages(talk, processor, template)
        bos = len(encoded["input_ids"]) - len(wanted["input_ids"])  # of a template that leaves it to the tokenizer
        assert bos == (0 if "bos_token" in template else 1)
        assert encoded["input_ids"][bos:] == wanted["input_ids"]
        assert [int(label != -100) for label in encoded["labels"]][bos:] == wanted["assistant_masks"]


def test_the_end_of_a_turn_and_system_messages_are_found_in_the_template():
    assert end_of_turn(LLAMA_3, "</s>") == end_of_turn(unmarked(THINKS), "</s>") == "<|eot|>"
    assert end_of_turn(NO_SYSTEM, "</s>") == end_of_turn(TEMPLATES["llama_2"], "</s>") == "</s>"
    assert end_of_turn(TEMPLATES["chatml"], "<|endoftext|>") == "<|im_end|>"
    assert takes_system(LLAMA_3) and takes_system(TEMPLATES["vicuna_v1"]) and not takes_system(NO_SYSTEM)


def test_templates_by_name_file_and_text(tmp_path):
    (tmp_path / "t.jinja").write_text(LLAMA_3)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert find_template("v1") == find_template("vicuna_v1") == TEMPLATES["vicuna_v1"]
    assert find_template(tmp_path / "t.jinja") == find_template("own", LLAMA_3) == find_template(LLAMA_3) == LLAMA_3
    assert find_template(tmp_path) == "{{ messages }}"
    for name in ("own", "v9", str(tmp_path / "none.jinja")):
        with pytest.raises(InputError, match="--template"):
            find_template(name)


def test_two_rounds_of_llama_2_without_a_bos_token(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    other = AutoProcessor.from_pretrained(tmp_path)
    other.tokenizer.bos_token = None
    encoded = encode_messages(MESSAGES, other, TEMPLATES["llama_2"])
    assert [text.strip() for text in replies(encoded, other.tokenizer)] == ["A cup. </s>", "A cup. Yes. </s>"]


def test_a_template_that_drops_an_image_is_refused(processor):
    drops = LLAMA_3.replace("m.content | trim", "(m.content | replace('<image>', '') | trim)")
    with pytest.raises(InputError, match="shows 0 of 1 images"):
        encode_messages(MESSAGES, processor, drops)


def test_an_answer_behind_a_tool_s_turn_is_learnt_and_a_template_that_drops_that_turn_is_refused(processor):
    turns = [("human", "Sum?"), ("gpt", "add(2, 3)"), ("observation", "5"), ("gpt", "Five.")]
    record = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    encoded = encode_record(record, processor, unmarked(LLAMA_3))
    assert replies(encoded, processor.tokenizer) == ["add(2, 3)<|eot|>", "Five.<|eot|>"]
    assert "5<|eot|>" in processor.tokenizer.decode(encoded["input_ids"])
    drops = LLAMA_3.replace("{% else %}", "{% elif m.role == 'user' %}")
    with pytest.raises(ValidationError, match="drops or changes words of message 2"):
        encode_record(record, processor, drops)


def test_a_template_that_drops_words_of_some_questions_is_refused(processor):
    cuts = LLAMA_3.replace("m.content | trim", "(m.content[:22] | trim)")
    short = [{"role": "user", "content": " <image>\nWhat? "}, {"role": "assistant", "content": "A cup."}]
    assert encode_messages(short, processor, cuts)["input_ids"].count(processor.image_token_id) == 4
    long = [*short, {"role": "user", "content": "Of which colour is it?!"}, {"role": "assistant", "content": "Red."}]
    with pytest.raises(InputError, match="drops or changes words of message 2"):
        encode_messages(long, processor, cuts)


@pytest.mark.parametrize("kind", ["llama", "other"])
def test_of_several_templates_the_default_is_taken(tmp_path, kind):
    load_tokenizer(VICUNA).save_pretrained(tmp_path)
    for file in ("chat_template.jinja", "tokenizer.model"):
        (tmp_path / file).unlink(missing_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "tool_use", "template": NO_SYSTEM}, {"name": "default", "template": LLAMA_3}]
    settings["tokenizer_class"] = "LlamaTokenizer" if kind == "llama" else "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(tmp_path).chat_template == LLAMA_3
