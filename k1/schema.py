"""Does a value read from a file have the type that an annotation promises?"""

import types
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def conforms(value: object, annotation: Any) -> bool:
    """Whether `value`, plain values and tensors in dictionaries and lists, is of the type `annotation`.

    Understands classes, unions, `list[...]`, `dict[..., ...]`, and typed
    dictionaries and dataclasses, both as dictionaries that have at least their
    keys. An int counts as a float, a bool as neither.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_typeddict(annotation) or is_dataclass(annotation):
        return isinstance(value, dict) and all(
            name in value and conforms(value[name], kind) for name, kind in get_type_hints(annotation).items()
        )
    if origin in (Union, types.UnionType):
        return any(conforms(value, kind) for kind in arguments)
    if origin is list:
        return isinstance(value, list) and all(conforms(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            conforms(key, arguments[0]) and conforms(item, arguments[1]) for key, item in value.items()
        )
    if annotation in (int, float):
        return isinstance(value, int | annotation) and not isinstance(value, bool)
    return isinstance(value, annotation)
