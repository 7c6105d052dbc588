"""Every question of some runs on one page: ``report.html``, a single file that needs no server.

Shown are the image (reduced), the part around the target where the data has its box, the prompt, the reference and
each run's answer; questions can be filtered by who is right, by category and by words.
"""

import base64
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Sample
from llava_s2.eval.compare import read_report
from llava_s2.eval.loading import read_image
from llava_s2.eval.report import BAD_IMAGE, REFUSED
from llava_s2.eval.run_folder import PREDICTIONS, read_predictions
from llava_s2.files import atomic_write

VIEWER = "report.html"
_SIDE = 480  # pixels of an image's longer side in the page
_CROP_SIDE = 320
_MOST = 2000  # questions; a page with more images opens slowly
_SHOWN = ("protocol", "kit", "template", "image_mode")
_PAGE = Path(__file__).with_name("viewer.html")


def write_viewer(runs: Sequence[Path], output: Path, benchmark_of: Callable[[str, str | None], Benchmark]) -> Path:
    """Writes the page about the runs, which must be of the same questions.

    Args:
        runs: output folders of ``llava-s2 eval``; of more than 2,000 questions, those that not all runs have right or
            wrong alike come first and the rest is left out.
        output: a folder; made if missing.
        benchmark_of: makes the benchmark of a task and variant.

    Returns:
        The file.

    Raises:
        InputError: a folder is no finished run, the runs are of several tasks, or their data is no longer there.
    """
    reports = [read_report(run) for run in runs]
    first = reports[0]
    if any(report["task"] != first["task"] for report in reports):
        raise InputError(
            f"--html shows one task at a time, and the runs are of {', '.join(r['task'] for r in reports)}"
        )
    data = Path(str(first.get("data", "")))
    if not first.get("data") or not data.is_dir():
        raise InputError(f"{runs[0]}: its data ({data}) is not there, which --html shows the images of")
    samples = {s.id: s for s in benchmark_of(first["task"], first.get("variant")).load(data, first["scoring"])}
    answers = [{record["question_id"]: record for record in read_predictions(run / PREDICTIONS)} for run in runs]
    shared = [i for i in first["question_ids"] if i in samples and all(i in found for found in answers)]
    if not shared:
        raise InputError(f"{data}: holds none of the questions that all these runs have answered")
    # A stable sort: the questions that tell the runs apart come first.
    shared.sort(key=lambda i: len({bool(found[i].get("correct")) for found in answers}) == 1)
    questions = [_question(samples[i], [found[i] for found in answers]) for i in shared[:_MOST]]
    page = {
        "title": f"{first['task']}{', ' + first['variant'] if first.get('variant') else ''}",
        "runs": [
            {"name": f"{'ABCDEFGHIJ'[n % 10]}: {report['model']}", **{key: report.get(key, "") for key in _SHOWN}}
            for n, report in enumerate(reports)
        ],
        "questions": questions,
        "left_out": len(shared) - len(questions),
    }
    text = json.dumps(page, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\!--")
    with atomic_write(output / VIEWER) as partial:
        partial.write_text(_PAGE.read_text(encoding="utf-8").replace("/*PAGE*/null", text, 1), encoding="utf-8")
    return output / VIEWER


def _question(sample: Sample, predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    images, crops = [], []
    for number, source in enumerate(sample.images):
        try:
            image = read_image(source).image
        except InputError as error:
            images.append({"fault": str(error)})
            continue
        images.append({"url": _data_url(image, _SIDE), "size": f"{image.width} x {image.height}"})
        if number == 0:
            crops = [_data_url(_around(image, box), _CROP_SIDE) for box in sample.boxes]
    return {
        "id": sample.id,
        "category": sample.category,
        "images": images,
        "crops": crops,
        "prompt": sample.prompt,
        "reference": _reference(sample),
        "answers": [
            {
                "text": p.get("generated", p["text"]),
                "losses": dict(zip(p.get("options", ()), p.get("losses", ()), strict=False)),
                "correct": p.get("correct"),
                "fault": p.get(BAD_IMAGE) or p.get(REFUSED) or "",
                "asked": p["prompt"] if p.get("prompt", sample.prompt) != sample.prompt else "",
            }
            for p in predictions
        ],
    }


def _reference(sample: Sample) -> str:
    reference = sample.reference
    if hasattr(reference, "lettered"):
        return str(reference.lettered[reference.correct])
    if isinstance(reference, dict):
        reference = reference.get("answer", reference)
    if isinstance(reference, list):
        return " | ".join(dict.fromkeys(str(r.get("answer", r)) if isinstance(r, dict) else str(r) for r in reference))
    return "" if reference is None else str(reference)


def _around(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The box ``(x, y, width, height)`` with as much again on every side."""
    x, y, width, height = box
    left, top = max(0, int(x - width)), max(0, int(y - height))
    right, bottom = min(image.width, int(x + 2 * width) + 1), min(image.height, int(y + 2 * height) + 1)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _data_url(image: Image.Image, side: int) -> str:
    image = image.copy()
    image.thumbnail((side, side))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
