"""JSON schemas of what is answered, as the OpenAPI document has them. What an answer may have beside this is not said."""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}


def one_of(*values: Any) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


def or_null(schema: Schema) -> Schema:
    """What the schema allows, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def record(**fields: Schema) -> Schema:
    """An object that has these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}
