"""POPE (Li et al. 2023): is an object in the photo, yes or no? Three sets, by how the absent objects are chosen.

Layout of the official release in LLaVA's evaluation folder::

    coco/coco_pope_adversarial.json, …_popular.json, …_random.json      {"question_id", "image", "text", "label"} a line
    llava_pope_test.jsonl                                               LLaVA-1.5's prompts; not needed
    val2014/COCO_val2014_000000310196.jpg

or lmms-lab's Parquet (``Full/adversarial-*.parquet`` or ``test-*.parquet``), or VLMEvalKit's ``POPE.tsv``. Where
LLaVA's file is there, its questions are asked (2,910 of the random set, from an earlier release), with the labels of
``coco/`` by image and question.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER
from llava_s2.eval.schema import Record, unique
from llava_s2.eval.tables import find_file, read_records

SETS = ("adversarial", "popular", "random")
_LLAVA = "llava_pope_test.jsonl"
_TABLES = ("POPE.tsv", "test-*.parquet", "Full/*.parquet")


class POPE(Benchmark):
    """POPE by LLaVA-1.5's prompt and rule: no, if "no" or "not" is a word of the first sentence; else yes."""

    name: ClassVar[str] = "pope"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("lmms-lab/POPE", ("data/*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "POPE: greedy decoding of LLaVA-1.5's short-answer prompt, LLaVA's reading of yes and no"
    }
    categories: ClassVar[Mapping[str, str]] = {name: name for name in SETS}
    max_new_tokens: ClassVar[int] = NEW_TOKENS

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads all three sets; a question also counts among those whose answer is yes, or no."""
        labelled = _labelled(data)
        samples = (
            _llavas(data, labelled) if (data / _LLAVA).is_file() else [_sample(r, r["set"], data) for r in labelled]
        )
        unique([sample.id for sample in samples], data)
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text says what the label does; every text says one or the other."""
        return Grade(says(prediction["text"]) == sample.reference)

    def metrics(self, graded: Sequence[tuple[Sample, Grade, Mapping[str, Any]]]) -> dict[str, float]:
        """F1 of "yes" in each set and their mean, the published figure; precision, recall and share of yes over all."""
        found: dict[str, float] = {}
        for name in dict.fromkeys(sample.category for sample, _, _ in graded):
            found[f"F1 {name}"] = _yes_scores([pair for pair in graded if pair[0].category == name])[2]
        precision, recall, f1, share = _yes_scores(graded)
        mean = sum(found.values()) / len(found)
        more = {"F1 of all": f1, "precision": precision, "recall": recall, "share of yes": share}
        return {"F1, mean of the sets": mean, **found, **more}


def says(text: str) -> str:
    """The yes or no that LLaVA's ``eval_pope.py`` reads."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def _yes_scores(graded: Sequence[tuple[Sample, Grade, Mapping[str, Any]]]) -> tuple[float, float, float, float]:
    """Precision, recall, F1 and share of the answer yes; a question without an answer says neither."""
    right = sum(bool(g.correct) for s, g, _ in graded if s.reference == "yes")
    present = sum(s.reference == "yes" for s, _, _ in graded)
    said = right + sum(not g.correct and p["text"] != "" for s, g, p in graded if s.reference == "no")
    precision, recall = right / said if said else 0.0, right / present if present else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return precision, recall, f1, said / len(graded)


def _labelled(data: Path) -> list[Record]:
    """The questions with their labels, of whichever release, each with its ``set``."""
    folder = data / "coco" if (data / "coco").is_dir() else data
    files = {name: folder / f"coco_pope_{name}.json" for name in SETS}
    present = [name for name in SETS if files[name].is_file()]
    if present:
        return [Record({**r, "set": name}, r.where) for name in present for r in read_records(files[name])]
    paths = find_file(data, ("coco/coco_pope_*.json", *_TABLES))
    return [
        Record({**record, "set": record.optional("category") or path.name.split("-")[0]}, record.where)
        for path in paths
        for record in read_records(path, images=("image",))
    ]


def _key(record: Record) -> tuple[str, str]:
    """Image and question, by which releases are told to be of one question; the earlier one has a slip of the pen."""
    return record.text("image"), record.prompt("text").splitlines()[0].replace("imange", "image")


def _sample(record: Record, kind: str, data: Path) -> Sample:
    question = record.prompt("text", "question").strip()
    label = record.text("label", "answer").strip().lower()
    if label not in ("yes", "no"):
        raise record.fault(f"'label' is {label!r}, not yes or no")
    shown = record.images("image")
    return Sample(
        id=f"{kind}/{record.identity('question_id', 'index')}",
        category=kind,
        images=shown or (data / "val2014" / record.text("image"),),
        prompt=question if SHORT_ANSWER in question else f"{question}\n{SHORT_ANSWER}",
        options=(),
        reference=label,
        also=(f"answer {label}",),
    )


def _llavas(data: Path, labelled: Sequence[Record]) -> list[Sample]:
    """The questions of LLaVA's file, under its ids."""
    if not isinstance(labelled[0].get("image"), str):
        raise InputError(f"{data / _LLAVA}: its labels are looked for in coco/coco_pope_*.json, which are not there")
    by_set = {(record["set"], *_key(record)): record for record in labelled}
    anywhere = {_key(record): record for record in labelled}
    samples, missing = [], []
    for record in read_records(data / _LLAVA):
        kind = record.one_of("category", SETS)
        label = by_set.get((kind, *_key(record))) or anywhere.get(_key(record))
        if label is None:
            missing.append(record.where)
            continue
        made = _sample(Record({**record, "label": label["label"]}, record.where), kind, data)
        samples.append(Sample(**{**vars(made), "id": record.identity("question_id")}))
    if missing:
        raise InputError(f"{missing[0]}: no label in coco/ (so for {len(missing)} questions); is it another release's?")
    return samples
