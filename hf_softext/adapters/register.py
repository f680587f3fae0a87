"""Make SNNK one of the methods of peft."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.peft_types import PeftType, register_peft_method

NAME = "SNNK"


def register_snnk() -> PeftType:
    """Register `SnnkConfig` and `SnnkModel` with peft. Calling it again changes nothing.

    Returns:
        The member of `PeftType`.

    Raises:
        ValueError: the name belongs to a method of another package.
    """
    # they ask for the member when they are used, not when they are imported
    from hf_softext.adapters.snnk.config import SnnkConfig
    from hf_softext.adapters.snnk.model import SnnkModel

    member = _peft_type()
    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if present is None:
        register_peft_method(name=NAME.lower(), config_cls=SnnkConfig, model_cls=SnnkModel)
    # a notebook that reloads modules brings another class of the same name
    elif present.__module__ != SnnkConfig.__module__:
        raise ValueError(
            f"peft_type {NAME!r} is taken by {present.__module__!r}: import hf_softext without "
            "that package, or have it use another name."
        )
    return member


def _peft_type() -> PeftType:
    """The member of that name, made if it is missing.

    peft has no door for methods of other packages: its tables are keyed by members of an enum, and
    an enum with members cannot be subclassed. What is done here is what `EnumType` does when it
    makes the class.
    """
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType)  # type: ignore[attr-defined]
    # `PeftType.SNNK = ...` is refused
    type.__setattr__(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    # Python 3.13 keeps these too
    getattr(PeftType, "_hashable_values_", []).append(NAME)
    return member
