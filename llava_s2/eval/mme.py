"""MME (Fu et al. 2023): yes or no, twice about each image, in ten tasks of perception and four of cognition.

Layout of the official release in LLaVA's evaluation folder, or that of the release itself::

    MME_Benchmark_release_version/color/….jpg (or color/images/….jpg)
    MME_Benchmark_release_version/color/….txt (or color/questions_answers_YN/….txt)     question TAB answer, two lines
    llava_mme.jsonl                                                                     LLaVA-1.5's prompts; not needed

or lmms-lab's Parquet (``test-*.parquet``), or VLMEvalKit's ``MME.tsv``. A task scores 100 x accuracy + 100 x accuracy+,
the share of images with both questions right; perception is the sum over its tasks, up to 2,000.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER
from llava_s2.eval.schema import Record, unique
from llava_s2.eval.tables import find_file, read_records

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_FOLDER = "MME_Benchmark_release_version"
_ASK = "Please answer yes or no."


class MME(Benchmark):
    """MME with LLaVA-1.5's prompt and the official reading of yes and no."""

    name: ClassVar[str] = "mme"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("lmms-lab/MME", ("data/*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MME: greedy decoding of LLaVA-1.5's short-answer prompt, the official reading of yes and no"
    }
    categories: ClassVar[Mapping[str, str]] = {name: name for name in (*PERCEPTION, *COGNITION)}
    max_new_tokens: ClassVar[int] = NEW_TOKENS

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads all tasks, two questions an image."""
        root = data / _FOLDER if (data / _FOLDER).is_dir() else data
        texts = sorted(p for name in self.categories for p in (root / name).rglob("*.txt") if (root / name).is_dir())
        if texts:
            samples = [sample for path in texts for sample in _released(path, root)]
        else:
            paths = find_file(data, ("test-*.parquet", "MME.tsv"))
            records = [record for path in paths for record in read_records(path, images=("image",))]
            samples = [_of_table(record, number) for number, record in enumerate(records)]
        unique([sample.id for sample in samples], data)
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text says what the answer does."""
        said = says(prediction["text"])
        return Grade(said == sample.reference["answer"], parseable=said is not None)

    def metrics(self, graded: Sequence[tuple[Sample, Grade, Mapping[str, Any]]]) -> dict[str, float]:
        """The score of each task, of perception and of cognition."""
        tasks: dict[str, dict[str, list[bool]]] = {}
        for sample, grade, _ in graded:
            images = tasks.setdefault(sample.category, {})
            images.setdefault(sample.reference["image"], []).append(bool(grade.correct))
        scores = {}
        for task, images in tasks.items():
            answers = [right for pair in images.values() for right in pair]
            both = [all(pair) for pair in images.values()]
            scores[task] = 100 * sum(answers) / len(answers) + 100 * sum(both) / len(both)
        sums = {"perception": PERCEPTION, "cognition": COGNITION}
        totals = {name: sum(scores.get(task, 0) for task in named) for name, named in sums.items()}
        return {**totals, **{task: scores[task] for task in self.categories if task in scores}}


def says(text: str) -> str | None:
    """The yes or no that the official ``calculation.py`` reads, in the first four characters; None for neither."""
    text = text.strip().lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), None)


def _released(path: Path, root: Path) -> list[Sample]:
    task = path.relative_to(root).parts[0]
    folder = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
    images = [image for suffix in (".jpg", ".png", ".jpeg") if (image := folder / (path.stem + suffix)).is_file()]
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            question, _, answer = line.rpartition("\t")
            record = Record({"question": question, "answer": answer}, f"{path}, line {number}")
            # Without its image, as for scoring, a question goes by the name that most have.
            samples.append(_sample(record, task, images[0] if images else folder / f"{path.stem}.jpg", number, ()))
    return samples


def _of_table(record: Record, number: int) -> Sample:
    image = Path(
        record.identity("question_id", "image_path")
        if "question_id" in record or "image_path" in record
        else f"{record.text('category')}/{number // 2}"
    )
    return _sample(record, record.text("category"), image, number, record.images("image"))


def _sample(record: Record, task: str, image: Path, number: int, shown: tuple[Any, ...]) -> Sample:
    name = f"{task}/{image.name}"
    answer = record.text("answer").strip().lower().rstrip(".")
    if answer not in ("yes", "no"):
        raise record.fault(f"the answer is {answer!r}, not yes or no")
    question = record.prompt("question").replace(_ASK, "").strip()
    other = {".png": ".jpg", ".jpg": ".png"}.get(image.suffix, "")
    return Sample(
        id=f"{name} {number}",
        category=task,
        images=shown or (image,),
        prompt=f"{question}\n{SHORT_ANSWER}",
        options=(),
        reference={"answer": answer, "image": f"{task}/{image.stem}"},
        aliases=(name, f"{task}/images/{image.name}", f"{task}/{image.stem}{other}"),
    )
