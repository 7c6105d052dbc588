"""What the entry point ``lmms_eval.models`` loads while lmms-eval is itself being imported: a name and a path."""

from typing import Any


def manifest() -> Any:
    """lmms-eval's ``ModelManifest`` of ``llava_s2``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="llava_s2", simple_class_path="llava_s2.eval.lmms_eval_model.LlavaS2")
