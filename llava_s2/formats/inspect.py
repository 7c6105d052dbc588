"""``llava-s2 inspect``: what a checkpoint is, from configs and file headers, without weights and without torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.formats.checkpoint_report import KINDS, Report
from llava_s2.formats.identify import TRAINED_FILES, Checkpoint, identify
from llava_s2.formats.llava_config import LlavaSettings, llava_template, projector_fault
from llava_s2.formats.tensor_names import split
from llava_s2.model.embedded import resolve_language_model, resolve_model, resolve_vision_tower
from llava_s2.model.templates import TEMPLATES, with_image_start_end
from llava_s2.weight_files import TensorHeader, ask_hub, find_file, list_names, read_headers, read_json, weight_files

# Of an adapter's base, see base_record.py, which imports torch.
RECORD = "llava_s2_base.json"
_SMALL_FILES = (
    "config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_TRAINED_FILES = ("adapter_model.safetensors", "adapter_model.bin", *TRAINED_FILES, "mm_projector.bin")


def inspect(path: str | Path, base: str | Path | None = None, *, vision_tower: str | Path | None = None) -> Report:
    """Reads what can be known of a checkpoint without its weights.

    Args:
        path, base, vision_tower: as ``load_pretrained`` takes them. Of a hub id, small files are fetched if the hub
            can be reached, and weights only looked at where they are cached.

    Raises:
        InputError: there is no checkpoint of any kind.
    """
    name = _snapshot(resolve_model(path))
    try:
        checkpoint = identify(name)
    except InputError as error:
        return _unrecognised(str(path), name, error)
    record: dict[str, Any] = {}
    if checkpoint.kind == "adapter" and not checkpoint.config:
        base, record, config = _under(name, None if base is None else str(base))
        checkpoint = replace(checkpoint, config=config)
    report = Report(str(path), checkpoint.kind, KINDS[checkpoint.kind])
    headers = _read(checkpoint, report)
    parts = split({name: header for name, header in headers.items() if ".lora_" not in name})
    for header in headers.values():
        report.dtypes[header.dtype] = report.dtypes.get(header.dtype, 0) + header.nbytes
    config = checkpoint.config
    report.quantization = config.get("quantization_config", {}).get("quant_method")
    weights = sorted((name, header.shape) for name, header in parts.projector.items() if name.endswith("weight"))
    report.projector = [shape for _, shape in weights]
    report.language_model = _language_model(config, checkpoint.kind)
    report.template = _template(name, checkpoint, _named(checkpoint, base), report)
    if checkpoint.kind == "adapter" and not config:  # the base is not there, or is made again of parts
        report.scales = (record.get("parts") or {}).get("scales")
        _base(checkpoint, None if base is None else str(base), report)
    elif checkpoint.kind != "llm":
        tower = None if vision_tower is None else resolve_vision_tower(vision_tower)
        width = _vision(checkpoint, tower, parts.vision_tower, report)
        _check_fit(width, report)
        if checkpoint.kind in ("adapter", "llava_lora", "llava_projector"):
            _base(checkpoint, None if base is None else str(base), report)
    if checkpoint.kind not in ("adapter", "llava_lora", "llava_projector"):
        _check_language_model(parts.language_model, report)
        if not any(find_file(name, file) for file in ("tokenizer.json", "tokenizer.model")):
            report.problems.append("the tokenizer is missing (tokenizer.json or tokenizer.model)")
    return report


def _under(name: str, base: str | None) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """Where the base of an adapter is, what is recorded of it, and its config; as `find_base` looks for it."""
    file = find_file(name, RECORD)
    record = read_json(file) if file else {}
    named = read_json(str(find_file(name, "adapter_config.json"))).get("base_model_name_or_path")
    beside = [str(Path(name) / "base"), str(Path(name).parent / "base")]
    for place in [base] if base is not None else [named, record.get("name"), *beside]:
        if place and (config := find_file(resolve_model(place), "config.json", download=False)):
            return place, record, read_json(config)
    parts = record.get("parts") or {}
    return base or parts.get("llm") or named, record, {}


def _snapshot(name: str) -> str:
    """The local folder of a hub id, so that nothing large is fetched; a folder as it is."""
    if Path(name).exists():
        return name
    ask_hub(name)
    found = [path for file in _SMALL_FILES if (path := find_file(name, file))]
    return str(Path(found[0]).parent) if found else name


def _unrecognised(path: str, name: str, error: InputError) -> Report:
    """A folder with a config that is not enough to be loaded: what there is of it, and what is wrong."""
    config_file = find_file(name, "config.json")
    if config_file is None:
        raise error
    try:
        config = read_json(config_file)
    except InputError:
        raise error from None
    report = Report(path, "unknown", str(config.get("model_type")))
    report.language_model = _language_model(config, "hf" if "text_config" in config else "llm")
    report.problems.append(str(error).removeprefix(f"{name}: "))
    return report


def _read(checkpoint: Checkpoint, report: Report) -> dict[str, TensorHeader]:
    name = checkpoint.name
    try:
        if checkpoint.kind in ("hf", "llava_full", "llm"):
            files = weight_files(name)
        else:
            files = [path for file in _TRAINED_FILES if (path := find_file(name, file))]
            if checkpoint.kind != "llava_projector" and not any("adapter_model." in file for file in files):
                report.problems.append("adapter_model.safetensors is missing beside adapter_config.json")
    except InputError as error:
        report.problems.append(str(error).removeprefix(f"{name}: "))
        files = [str(path) for path in Path(name).iterdir() if path.suffix in (".safetensors", ".bin")]
    headers: dict[str, TensorHeader] = {}
    for file in files:
        try:
            headers |= read_headers(file)
        except InputError as error:
            report.problems.append(str(error))
    return headers


def _language_model(config: dict[str, Any], kind: str) -> dict[str, Any]:
    text = config.get("text_config", config)
    keys = {"hidden_size": "hidden", "num_hidden_layers": "layers", "vocab_size": "vocabulary"}
    named = text.get(
        "model_type", "llama" if kind in ("hf", "adapter") else None
    )  # llava-hf leaves out what is default
    found = {"type": str(named).removeprefix("llava_")}
    return found | {label: text[key] for key, label in keys.items() if key in text}


def _vision(checkpoint: Checkpoint, tower: str | None, inside: dict[str, TensorHeader], report: Report) -> int | None:
    """Fills in what the report says of the vision side; returns the width of its features where known."""
    config = checkpoint.config
    report.vision_tower_inside = bool(inside) or (False if checkpoint.kind != "adapter" else None)
    if "vision_config" in config:
        vision = config["vision_config"]
        backbone = vision.get("backbone_config", vision)
        report.vision_tower = tower or config.get("mm_vision_tower") or backbone.get("model_type")
        scales = vision.get("scales") or [_side(backbone)]
        merged = vision.get("merge", "concat") == "add"
        is_s2 = vision.get("model_type") == "s2_vision"
        grid_of = vision.get("resize_output_to_idx", 0)
        drops_first = config.get("vision_feature_select_strategy") != "full"
    else:
        report.vision_tower = tower or config["mm_vision_tower"]
        backbone = _tower_config(resolve_vision_tower(report.vision_tower))
        merged, scales, grid_of, is_s2, drops_first = False, None, 0, bool(config.get("s2")), False
        try:
            settings = LlavaSettings.read(config, "config.json")
            scales = settings.scales
            drops_first = backbone is not None and settings.select_strategy(_prefix_tokens(backbone)) == "default"
        except InputError as error:
            report.problems.append(str(error))
        scales = scales or ([_side(backbone)] if backbone else None)
        if backbone is None:
            report.problems.append(
                f"the vision tower {report.vision_tower} is no folder, nor in the hub's cache (loading fetches a hub "
                "id); another can be named with --vision_tower"
            )
    report.scales = scales if scales and all(scales) else None
    side, patch = _side(backbone or {}), (backbone or {}).get("patch_size")
    if side and patch and "hidden_size" in (backbone or {}):
        if is_s2:
            report.tokens_per_image = ((scales or [side])[grid_of] // patch) ** 2
        else:
            report.tokens_per_image = (side // patch) ** 2 + _prefix_tokens(backbone or {}) - drops_first
    elif "image_seq_length" in config:
        report.tokens_per_image = config["image_seq_length"]
    width = (backbone or {}).get("hidden_size") or (config.get("mm_hidden_size") if backbone is None else None)
    if width is None or backbone is None:
        return width
    return width * (1 if merged else len(scales or [1]))


def _side(vision: dict[str, Any]) -> Any:
    # What CLIP's config leaves out where it is the default.
    return vision.get("image_size", 224 if vision.get("model_type", "").startswith("clip") else None)


def _prefix_tokens(backbone: dict[str, Any]) -> int:
    """As `llava_s2.model.processor.prefix_tokens`, which takes torch for what is neither CLIP nor SigLIP."""
    kind = backbone.get("model_type", "clip_vision_model")
    if kind.startswith(("clip", "siglip")):
        return int(kind.startswith("clip"))
    from transformers import AutoConfig

    from llava_s2.model.processor import prefix_tokens

    settings = {key: value for key, value in backbone.items() if key != "model_type"}
    return prefix_tokens(AutoConfig.for_model(kind, **settings))


def _tower_config(name: str) -> dict[str, Any] | None:
    file = find_file(name, "config.json", download=False)
    if file is None:
        return None
    config = read_json(file)
    config = config.get("vision_config", config)
    return config.get("backbone_config", config)


def _check_fit(width: int | None, report: Report) -> None:
    if not report.projector:
        if report.kind != "adapter" and not any(
            "whole" in problem or "missing" in problem for problem in report.problems
        ):
            report.problems.append("the projector's weights are missing")
        return
    shapes = {f"linear_{number}.weight": report.projector[number - 1] for number in (1, len(report.projector))}
    shapes.setdefault("linear_2.weight", report.projector[-1])
    if fault := projector_fault(shapes, width, report.language_model.get("hidden")):
        report.problems.append(fault)


def _check_language_model(tensors: dict[str, TensorHeader], report: Report) -> None:
    if report.problems:  # files that could not be read
        return
    if "embed_tokens.weight" not in tensors:
        report.problems.append("the language model's weights are missing (no embed_tokens.weight)")
        return
    layers = {int(name.split(".")[1]) for name in tensors if name.startswith("layers.")}
    vocabulary, width = tensors["embed_tokens.weight"].shape
    # Configs may leave out what is their model type's default.
    said = {"hidden": width, "layers": len(layers)} | report.language_model
    report.language_model = said | {"type": said.pop("type"), "vocabulary": vocabulary}
    if missing := set(range(said["layers"])) - layers:
        report.problems.append(f"the language model's layers {list_names(map(str, missing))} have no weights")
    if said["hidden"] != width:
        report.problems.append(f"config.json says hidden_size {said['hidden']}, but the weights have {width}")


def _named(checkpoint: Checkpoint, base: str | Path | None) -> str | None:
    """The base of an adapter or projector: the one given, or else the one that it names."""
    if base is not None:
        return str(base)
    file = find_file(checkpoint.name, "adapter_config.json")
    return read_json(file).get("base_model_name_or_path") if file else checkpoint.config.get("_name_or_path")


def _base(checkpoint: Checkpoint, base: str | None, report: Report) -> None:
    report.base = base = _named(checkpoint, base)
    if not base:
        report.problems.append("the base is not named; name it with --base")
        return
    try:
        found = resolve_language_model(base)
    except InputError as error:
        report.problems.append(str(error))
        return
    if found.endswith(".gguf"):
        if not Path(found).is_file():
            report.problems.append(f"the base {found} is not there; name it with --base")
        return
    config_file = find_file(found, "config.json", download=False)
    if config_file is None:
        report.problems.append(
            f"the base {found} is no folder, nor in the hub's cache (loading fetches a hub id); "
            "another can be named with --base"
        )
        return
    config = read_json(config_file)
    hidden = config.get("text_config", config).get("hidden_size")
    wanted = report.language_model.get("hidden")
    if hidden is not None and wanted is not None and hidden != wanted:
        report.problems.append(
            f"it was trained on a language model of hidden size {wanted}, but {found} has {hidden}; "
            "name the right one with --base"
        )


def _template(name: str, checkpoint: Checkpoint, base: str | None, report: Report) -> str | None:
    places = [name] if not checkpoint.kind.startswith("llava_") or checkpoint.kind == "llava_full" else [base or ""]
    text = next((text for place in places if (text := _saved_template(place))), None)
    if checkpoint.kind.startswith("llava_"):
        try:
            text = llava_template(checkpoint.config, [name, base or ""], text)
        except InputError as error:
            report.problems.append(str(error).removeprefix(f"{name}: "))
            return None
    if not text:
        return None
    known = (key for key, template in TEMPLATES.items() if text in (key, template, with_image_start_end(template)))
    return next(known, "own")


def _saved_template(name: str) -> str | None:
    """The chat template (Jinja text) in a folder's files."""
    for file, key in (
        ("chat_template.jinja", None),
        ("chat_template.json", "chat_template"),
        ("processor_config.json", "chat_template"),
        ("tokenizer_config.json", "chat_template"),
    ):
        if path := find_file(name, file, download=False):
            text = Path(path).read_text(encoding="utf-8") if key is None else read_json(path).get(key)
            if text:
                return str(text)
    return None
