"""``python -m llava_s2.eval.model_vqa_loader``: LLaVA's program of that name, questions in and answers out.

A question is a JSON line with ``question_id``, ``text`` and ``image``, an answer one with ``question_id``, ``prompt``,
``text``, ``answer_id``, ``model_id`` and ``metadata``. With ``--num-chunks N --chunk-idx I`` it answers the I-th of N
parts, cut as LLaVA cuts them, so that the answers files of N processes make one when they are joined. Started again,
it goes on where its answers file ends.
"""

import argparse
import json
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.eval.run_folder import cut_to_whole_lines
from llava_s2.eval.tables import read_records


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program. Returns the exit status: 0, or 2 for input that is wrong."""
    try:
        answer_questions(_parser().parse_args(argv))
    except InputError as error:
        print(f"model_vqa_loader: error: {error}", file=sys.stderr)
        return 2
    return 0


def answer_questions(args: argparse.Namespace) -> None:
    """Answers the questions of one chunk and appends each answer to the answers file.

    Raises:
        InputError: a question, an image or the model cannot be read, or the answers file is another model's.
    """
    questions = chunk(read_questions(args.question_file), args.num_chunks, args.chunk_idx)
    done = _answered(args.answers_file, args.model_path)
    left = []
    for question in questions:  # an id may be several questions', as TextVQA's and MME's are their images'
        done[asked := (question["question_id"], question["text"])] -= 1
        if done[asked] < 0:
            left.append(question)
    missing = [q for q in left if q.get("image") and not (args.image_folder / q["image"]).is_file()]
    if missing:
        raise InputError(
            f"{args.question_file}: question {missing[0]['question_id']}: {args.image_folder / missing[0]['image']}: "
            f"no such image file ({len(missing)} are missing)"
        )
    args.answers_file.parent.mkdir(parents=True, exist_ok=True)
    with args.answers_file.open("a", encoding="utf-8") as file:
        if left:
            for question, text in zip(left, _answers(args, left), strict=True):
                answer = {
                    "question_id": question["question_id"],
                    "prompt": question["text"],
                    "text": text,
                    "answer_id": uuid.uuid4().hex[:22],
                    "model_id": args.model_path,
                    "metadata": {},
                }
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
                file.flush()


def read_questions(path: Path) -> Sequence[dict[str, Any]]:
    """The questions of a JSON lines file. Raises InputError where a line is none."""
    questions = read_records(path)
    for question in questions:
        if "question_id" not in question or not isinstance(question.get("text"), str):
            raise question.fault('a question has "question_id" and "text"')
    return questions


def chunk(questions: Sequence[dict[str, Any]], count: int, index: int) -> Sequence[dict[str, Any]]:
    """One of ``count`` parts, each as long as the first but for the last ones.

    Raises:
        InputError: there is no such part.
    """
    if not 0 <= index < count:
        raise InputError(f"--chunk-idx {index}: must be from 0 to {count - 1} with --num-chunks {count}")
    size = -(-len(questions) // count)
    return questions[index * size : (index + 1) * size]


def _answered(path: Path, model_id: str) -> Counter[tuple[Any, Any]]:
    """How often the file answers each question, told by its id and its prompt; a half-written last line is removed."""
    done: Counter[tuple[Any, Any]] = Counter()
    if path.is_file():
        cut_to_whole_lines(path)
    for answer in read_records(path) if path.is_file() and path.stat().st_size else ():
        if not {"question_id", "model_id"} <= answer.keys():
            raise answer.fault("is no answer; name a new file")
        if answer["model_id"] != model_id:
            raise answer.fault(f"holds answers of {answer['model_id']}; name a new file")
        done[answer["question_id"], answer.get("prompt")] += 1
    return done


def _answers(args: argparse.Namespace, questions: Sequence[dict[str, Any]]) -> Iterator[str]:
    import torch

    from llava_s2.data.image_decoding import open_image
    from llava_s2.eval.generation import answers
    from llava_s2.formats.model_source import ModelSource
    from llava_s2.model.inference import prompt_ids, token_arguments, user_message

    source = ModelSource(args.model_path, args.model_base, args.vision_tower, args.dtype, args.conv_mode)
    model, processor = source.load()
    if args.temperature > 0:
        torch.manual_seed(args.seed)
    with tqdm(total=len(questions), desc="answering", unit="question") as bar:
        for start in range(0, len(questions), args.batch_size):
            batch = questions[start : start + args.batch_size]
            shown: list[Any] = [
                list(
                    processor.image_processor([open_image(args.image_folder / q["image"])], return_tensors="pt")[
                        "pixel_values"
                    ]
                )
                if q.get("image")
                else []
                for q in batch
            ]
            prompts = [question["text"] for question in batch]
            if args.temperature == 0 and args.num_beams == 1:
                texts = [one.text for one in answers(model, processor, shown, prompts, args.max_new_tokens)]
            else:
                texts = []
                for prompt, images in zip(prompts, shown, strict=True):
                    (ids,) = prompt_ids(processor, [[user_message(prompt, len(images))]])
                    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids], device=model.device)}
                    if images:
                        inputs["pixel_values"] = torch.stack(images).to(model.device, model.dtype)
                    with torch.inference_mode():
                        output = model.generate(  # type: ignore[misc]
                            **inputs,
                            do_sample=args.temperature > 0,
                            temperature=args.temperature or None,
                            top_p=args.top_p,
                            num_beams=args.num_beams,
                            max_new_tokens=args.max_new_tokens,
                            **token_arguments(model, processor),
                        )
                    texts.append(processor.decode(output[0, len(ids) :], skip_special_tokens=True).strip())
            bar.update(len(batch))
            yield from texts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llava_s2.eval.model_vqa_loader", description=(__doc__ or "")[:98])
    parser.add_argument("--model-path", required=True, help="checkpoint or adapter: a folder, a hub id or embedded")
    parser.add_argument("--model-base", help="model under an adapter, if not the one it names")
    parser.add_argument("--vision-tower", help="vision tower, if not the one the checkpoint names")
    parser.add_argument("--image-folder", type=Path, default=Path(), help="default: the working directory")
    parser.add_argument("--question-file", type=Path, required=True)
    parser.add_argument("--answers-file", type=Path, required=True)
    parser.add_argument("--conv-mode", help="conversation template (default: the model's own)")
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2, help="0 for greedy decoding (default: %(default)s)")
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=1, help="of greedy decoding (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    parser.add_argument("--dtype", default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
