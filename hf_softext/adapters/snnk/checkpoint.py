"""Is there a whole adapter in a folder?"""

from collections import defaultdict
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open


def check_weights(folder: Path, parts: dict[str, tuple[int | None, ...]]) -> None:
    """Make sure that a folder has the weights of an adapter, and all of them.

    Args:
        folder: with an adapter_config.json.
        parts: names of the tensors that each adapted module has, and their sizes; None for one that
            depends on the module.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: it is cut off or damaged, or holds another adapter.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.exists():
        if (folder / WEIGHTS_NAME).exists():
            return
        raise FileNotFoundError(
            f"{folder} has an adapter_config.json but no {SAFETENSORS_WEIGHTS_NAME}: fetch it, or "
            "give its SnnkConfig to get_peft_model for a new adapter. The model was not changed."
        )
    try:
        # what the header promises is compared with the size of the file; no tensor is read
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut off ({error}): fetch it again. The model was not changed."
        ) from error
    modules: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for key, shape in shapes.items():
        module, _, part = key.rpartition(".")
        if part.startswith("snnk_"):
            modules[module][part] = shape
    for module, found in modules.items():
        fits = found.keys() == parts.keys() and all(
            len(shape) == len(parts[part])
            and all(size in (None, given) for size, given in zip(parts[part], shape, strict=True))
            for part, shape in found.items()
        )
        if not fits:
            raise ValueError(
                f"{path} is damaged, or belongs to another adapter_config.json than the one beside "
                f"it: {module} has {found}, not {parts}. Fetch both again. The model was not "
                "changed."
            )
    if not modules:
        raise ValueError(f"{path} holds no SNNK adapter: fetch it again.")
