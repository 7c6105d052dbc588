"""A small MM-Vet folder in the official layout."""

from pathlib import Path

from vqa_data import picture, write

MMVET = {  # id -> question, answer, capabilities, the sample's image
    "v1_0": ("What is x in the equation?", "-1<AND>-5", ["ocr", "math"], "v1_0.png"),
    "v1_1": ("Which car is on the parking spot 33?", "no<OR>empty", ["rec", "ocr", "spat"], "v1_1.png"),
    "v1_2": ("Is this apple organic?", "yes", ["rec", "ocr"], "v1_2.png"),
    "v1_3": ("Can you explain this meme?", "This meme is about papers.", ["gen", "know", "rec", "ocr"], "v1_3.jpg"),
    "v1_4": ("What animal is it?", "a dog", ["rec"], "v1_4.png"),
    "v1_5": ("What is y?", "7", ["math", "ocr"], "v1_0.png"),
}


def write_mmvet(folder: Path) -> Path:
    """Six questions, two of the same integration, two about one picture."""
    folder.mkdir()
    records = {
        identity: {"imagename": image, "question": question, "answer": answer, "capability": capabilities}
        | {"imagesource": "somewhere"}
        for identity, (question, answer, capabilities, image) in MMVET.items()
    }
    write(folder / "mm-vet.json", records)
    for number, image in enumerate(sorted({image for *_, image in MMVET.values()})):
        picture(folder / "images" / image, number)
    return folder
