"""Is there a whole adapter in a folder?"""

from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open


def check_weights(folder: Path) -> None:
    """Make sure that a folder has the weights of an adapter, and all of them.

    Args:
        folder: with an adapter_config.json.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: it is cut off or damaged.
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
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut off ({error}): fetch it again. The model was not changed."
        ) from error
