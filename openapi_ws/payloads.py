"""Floor 0, words: payloads made of what came, or what is wrong with it, in bounded time and size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError, SchemaValidator

from .errors import InvalidParams, SetupError
from .protocol import encode

__all__ = ["adapter_of", "explain", "validator"]

MAX_ERRORS = 20
"""How many validation errors one answer names."""
MAX_LISTED = 1000
"""Beyond this many, an answer gives the number alone: pydantic lists all or none."""
PATH_LIMIT, WHY_LIMIT, ERRORS_SIZE = 64, 120, 3500
KEYS_LIMIT = 1024
"""Characters of all the keys that lead to a value inside a payload: each error at that value repeats them."""
VALUES = ("default", "metadata", "serialization")
"""Keys of a core schema under which no schema that validates is found."""


def adapter_of(annotation: Any, what: str) -> TypeAdapter[Any]:
    """Read *annotation*, the type of the *what*.

    Raises:
        SetupError: pydantic cannot read it.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)
    except (PydanticUserError, SchemaError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise SetupError(f"the type of the {what}, {annotation!r}, cannot be read by pydantic: {reason}") from error
    return adapter


def validator(adapter: TypeAdapter[Any]) -> Callable[[Any], Any]:
    """What makes a payload of this type, or tells what is wrong with it in bounded time and memory."""
    validate = _early_validator(adapter).validate_python
    if not _has_open_keys(adapter.core_schema):
        return validate

    def validate_keys(payload: Any) -> Any:
        if _has_long_keys(payload):
            raise InvalidParams({"": "keys are too long"})
        return validate(payload)

    return validate_keys


def _has_open_keys(schema: Any) -> bool:
    """The type has keys of the caller's choice that lead to values which are validated."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        inner = (value for key, value in schema.items() if not isinstance(kind, str) or key not in VALUES)
        return kind == "dict" or schema.get("extras_schema") is not None or any(map(_has_open_keys, inner))
    return type(schema) in (list, tuple) and any(map(_has_open_keys, schema))


def _has_long_keys(payload: Any) -> bool:
    """Without this, one long key over thousands of wrong values would be repeated thousands of times by pydantic."""
    inside = [(0, payload)]
    while inside:
        size, value = inside.pop()
        if size > KEYS_LIMIT:
            return True
        if isinstance(value, dict):
            inside += [(size + len(key), item) for key, item in value.items() if isinstance(item, (dict, list))]
        elif isinstance(value, list):
            inside += [(size, item) for item in value if isinstance(item, (dict, list))]
    return False


def _early_validator(adapter: TypeAdapter[Any]) -> SchemaValidator:
    """A validator that stops a list at its first wrong item.

    Without this, a frame of 64 KiB makes pydantic collect more than 100,000 errors. `FailFast` says the same for
    one annotation; this says it for all, also inside the models that users wrote.
    """
    schema = _fail_fast(adapter.core_schema)
    try:
        # A model's own validator would be used for it otherwise, which knows nothing of this.
        return SchemaValidator(schema, _use_prebuilt=False)
    except TypeError:  # the switch is pydantic-core's own: without it errors are as right, and more
        return SchemaValidator(schema)


def _fail_fast(schema: Any) -> Any:
    if isinstance(schema, dict):
        kind = schema.get("type")
        is_schema = isinstance(kind, str)  # and not the fields of a model, which may have any name
        schema = {k: v if is_schema and k in VALUES else _fail_fast(v) for k, v in schema.items()}
        if is_schema and kind in ("list", "tuple", "set", "frozenset"):
            schema["fail_fast"] = True
        return schema
    if type(schema) in (list, tuple):
        return type(schema)(_fail_fast(value) for value in schema)
    return schema


def explain(error: ValidationError) -> dict[str, str]:
    """``{field path: why}`` of bounded size, without the input."""
    if error.error_count() > MAX_LISTED:
        return {"": f"{error.error_count()} errors"}
    errors: dict[str, str] = {}
    size = 0
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        path = ".".join(str(step) for step in detail["loc"])[:PATH_LIMIT]
        why = _why(detail["type"], detail["msg"])
        size += len(encode({path: why}))
        if len(errors) == MAX_ERRORS or size > ERRORS_SIZE:
            break
        errors.setdefault(path, why)
    return errors


def _why(kind: str, message: str) -> str:
    if kind == "missing":
        return "required"
    if kind == "union_tag_invalid":  # pydantic's own message repeats the input
        return "Input tag is none of the expected tags"
    return message[:WHY_LIMIT]
