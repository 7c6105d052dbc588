"""``llava_s2.train`` that notes what each step of each process saw, as JSON lines in the folder ``LLAVA_S2_IDS``."""

import json
import os
import sys
from pathlib import Path

from llava_s2.cli import main
from llava_s2.train.trainer import LlavaTrainer

_step = LlavaTrainer.training_step


def training_step(self, model, inputs, num_items_in_batch=None):
    line = json.dumps({"step": self.state.global_step, "records": inputs["records"]})
    with (Path(os.environ["LLAVA_S2_IDS"]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(f"{line}\n")
    return _step(self, model, inputs, num_items_in_batch)


LlavaTrainer.training_step = training_step
sys.exit(main(["train", *sys.argv[1:]]))
