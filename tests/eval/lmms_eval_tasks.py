"""Runs the installed ``lmms-eval`` on two tasks of local data and holds its samples against this project's own answers.

Not part of the suite: lmms-eval wants an environment of its own. ``make lmms-eval`` runs it.

    python tests/eval/lmms_eval_tasks.py DIR
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden/llava_tiny"
QUESTIONS = [  # question, choices, the right one
    ("What is in the picture?", ["a dog", "a red square", "nothing at all"], 1),
    ("Which colour is it?", ["blue", "red"], 1),
    ("How many squares are there?", ["one", "two", "three"], 0),
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {output}
doc_to_visual: !function local_utils.doc_to_visual
doc_to_text: !function local_utils.doc_to_text
doc_to_target: answer
{more}
"""
GENERATE = """\
generation_kwargs: {max_new_tokens: 5, temperature: 0, do_sample: false}
process_results: !function local_utils.process_results
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """\
target_delimiter: ""
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
UTILS = """\
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"exact_match": float(results[0] == doc["choices"][doc["answer"]])}
"""


def write_tasks(folder: Path) -> Path:
    """Two tasks, ``local_generate`` and ``local_choose``, of three questions with a picture each."""
    folder.mkdir(parents=True)
    records = []
    for number, (question, choices, answer) in enumerate(QUESTIONS):
        picture = Image.linear_gradient("L").resize((90 + 20 * number, 70)).convert("RGB")
        picture.paste((250, 40 * number, 20), (10, 10, 30, 40))
        picture.save(folder / f"{number}.png")
        records.append({"image": str(folder / f"{number}.png"), "question": question, "choices": choices})
        records[-1]["answer"] = answer
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "local_utils.py").write_text(UTILS)
    for name, output, more in (("generate", "generate_until", GENERATE), ("choose", "multiple_choice", CHOOSE)):
        text = TASK.format(name=f"local_{name}", data=data, output=output, more=more)
        (folder / f"local_{name}.yaml").write_text(text)
    return folder


def main(folder: Path) -> None:
    tasks, output = write_tasks(folder / "tasks"), folder / "output"
    model = f"pretrained={GOLDEN / 'llava-tiny-s2'},vision_tower={GOLDEN / 'clip-tiny'},dtype=float32"
    command = ["lmms-eval", "--model", "llava_s2", "--model_args", model, "--device", "cpu", "--batch_size", "2"]
    command += ["--tasks", "local_generate,local_choose", "--include_path", str(tasks)]
    command += ["--log_samples", "--output_path", str(output)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, check=True, env={**os.environ, **offline, "PATH": path})
    samples = {
        name: [json.loads(line) for path in output.rglob(f"*local_{name}.jsonl") for line in path.open()]
        for name in ("generate", "choose")
    }
    check(samples, tasks)


def check(samples: dict[str, list[dict]], tasks: Path) -> None:
    """Answers and choices are those of the model asked directly, one question at a time, without a cache."""
    import torch

    from llava_s2 import load_pretrained
    from llava_s2.model.inference import assistant_message, encode_prompts, user_message
    from llava_s2.model.labels import encode_messages

    model, processor = load_pretrained(
        str(GOLDEN / "llava-tiny-s2"), vision_tower=str(GOLDEN / "clip-tiny"), dtype="float32"
    )
    assert len(samples["generate"]) == len(samples["choose"]) == len(QUESTIONS), samples
    for number, (question, choices, answer) in enumerate(QUESTIONS):
        picture = Image.open(tasks / f"{number}.png").convert("RGB")
        ids = encode_prompts(processor, [[user_message(question, 1)]], [picture])
        start = ids["input_ids"].shape[1]
        with torch.inference_mode():
            for _ in range(5):  # greedy, by hand; the tiny model does not end in five tokens
                logits = model(**ids, use_cache=False).logits[:, -1]
                logits[:, processor.image_token_id] = -torch.inf
                ids["input_ids"] = torch.cat([ids["input_ids"], logits.argmax(-1, keepdim=True)], dim=1)
                ids["attention_mask"] = torch.ones_like(ids["input_ids"])
            losses = []
            for choice in choices:
                row = encode_messages(
                    [user_message(question, 1), assistant_message(choice)], processor, str(processor.chat_template)
                )
                labels = torch.tensor([row["labels"]])
                out = model(input_ids=torch.tensor([row["input_ids"]]), pixel_values=ids["pixel_values"], labels=labels)
                losses.append(out.loss.item())
        text = processor.decode(ids["input_ids"][0, start:], skip_special_tokens=True).strip()
        (generated,) = (s for s in samples["generate"] if s["doc_id"] == number)
        (chosen,) = (s for s in samples["choose"] if s["doc_id"] == number)
        assert generated["filtered_resps"] in ([text], text), (generated["filtered_resps"], text)
        assert chosen["acc"] == float(losses.index(min(losses)) == answer), (chosen, losses)
    print(f"lmms-eval: {len(QUESTIONS)} answers and {len(QUESTIONS)} choices equal the model's own")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
