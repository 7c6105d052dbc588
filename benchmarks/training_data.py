"""Start-up time and a DataLoader worker's memory on a generated set the size of LLaVA's 665k mix.

    python benchmarks/training_data.py FOLDER [--records 665298] [--kind json|parquet|tar]

Writes the set to FOLDER once (0.8 GB), then reads it as training does; what the check finds is kept in FOLDER too, so a
second run is a later start. The last line printed is JSON: whether the records were checked, seconds until the
data set is ready, and the memory of ``import torch`` alone, of the main process, and of each of four DataLoader workers
while they read 4,000 random records.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import tarfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

WORDS = """the a picture shows red cup on table with man and dog near window what is in this image answer
single""".split()  # noqa: SIM905
IMAGES = 1000
SHARD = 10_000  # records
READ = 1000  # by each worker
WORKERS = 4


def write_set(folder: Path, count: int) -> Path:
    """LLaVA-like: one record in ten without an image, one to eight questions, answers of a word to a paragraph."""
    path = folder / f"mix{count}.json"
    if path.exists():
        return path
    (folder / "images").mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(IMAGES):
        Image.new("RGB", (64, 48), (number % 255, 0, 0)).save(folder / "images" / f"{number}.jpg")

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    aside = path.with_suffix(".part")
    with aside.open("w") as file:
        for number in range(count):
            turns = []
            for turn in range(draw.choice([1, 1, 2, 3, 5, 8])):
                tag = "<image>\n" if turn == 0 and number % 10 else ""
                turns.append({"from": "human", "value": tag + text(6, 25)})
                turns.append({"from": "gpt", "value": text(1, draw.choice([1, 2, 5, 20, 60, 120]))})
            record: dict[str, Any] = {"id": f"{number:012d}", "conversations": turns}
            if number % 10:
                record["image"] = f"{draw.randrange(IMAGES)}.jpg"
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
        file.write("]")
    aside.replace(path)
    return path


def as_parquet(path: Path) -> Path:
    """The same records as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = path.with_suffix(".parquet")
    if not out.exists():
        records = json.loads(path.read_text())
        columns = {name: [record.get(name) for record in records] for name in ("id", "image", "conversations")}
        pq.write_table(pa.table(columns), out)
    return out


def as_shards(path: Path) -> Path:
    """The same records as webdataset shards of 10,000, each with its image in it."""
    folder = path.with_suffix("")
    if not folder.exists():
        aside = folder.with_suffix(".part")
        aside.mkdir(exist_ok=True)
        records = json.loads(path.read_text())
        for start in range(0, len(records), SHARD):
            with tarfile.open(aside / f"{start // SHARD:05}.tar", "w") as archive:
                for record in records[start : start + SHARD]:
                    if name := record.pop("image", None):
                        archive.add(path.parent / "images" / name, f"{record['id']}.jpg")
                    text = json.dumps(record).encode()
                    member = tarfile.TarInfo(f"{record['id']}.json")
                    member.size = len(text)
                    archive.addfile(member, io.BytesIO(text))
        aside.replace(folder)
    return folder


def memory(process: int | str = "self") -> dict[str, int]:
    """MB of a process: resident; its share where pages shared by n processes count 1/n; and what it alone holds."""
    rows = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {row.split(":")[0]: int(row.split()[1]) / 1e3 for row in rows}
    own = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"resident_mb": round(sizes["Rss"]), "share_mb": round(sizes["Pss"]), "own_mb": round(own)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=665298)
    parser.add_argument("--kind", choices=("json", "parquet", "tar"), default="json")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = write_set(args.folder, args.records)
    path = {"parquet": as_parquet, "tar": as_shards}.get(args.kind, Path)(path)
    os.environ["XDG_CACHE_HOME"] = str(args.folder / "cache")

    import torch
    from torch.utils.data import DataLoader

    libraries = memory()
    from llava_s2.data.dataset import ConversationDataset
    from llava_s2.data.image_files import ImageFiles
    from llava_s2.data.training_records import check_records
    from llava_s2.data.verdict import VerdictFile
    from llava_s2.formats.configs import processor_for_lengths
    from llava_s2.model.embedded import NAME
    from llava_s2.model.templates import find_template

    images = None if args.kind == "tar" else args.folder / "images"
    processor = processor_for_lengths(NAME)
    was_checked = VerdictFile(path, ImageFiles(images), find_template("chatml")).read() is not None
    start, cpu = time.monotonic(), time.process_time()
    dataset = ConversationDataset(check_records(path, images, "chatml"), processor, "chatml", 2048)
    ready, cpu = time.monotonic() - start, time.process_time() - cpu  # the second without what others run
    main_process = memory()
    order = torch.randint(len(dataset), (READ * WORKERS,)).tolist()
    loader: Any = DataLoader(dataset, None, sampler=order, num_workers=WORKERS)
    items = iter(loader)  # the workers are there as long as it is
    taken = sum(1 for _ in zip(range(READ * WORKERS - 50), items, strict=False))
    workers = [memory(worker.pid or "self") for worker in multiprocessing.active_children()]
    times = {"ready_s": round(ready, 1), "ready_cpu_s": round(cpu, 1)}
    sizes = {"import torch": libraries, "main": main_process, "workers": workers}
    print(json.dumps({"records": len(dataset), "checked_before": was_checked, **times, "read": taken, **sizes}))


if __name__ == "__main__":
    main()
