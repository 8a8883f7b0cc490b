"""What of a run is no array, as JSON that gives back what it was given."""

import json
from typing import Any


def to_text(record: dict[str, Any]) -> str:
    """Writes a record as JSON.

    Raises:
      TypeError: if JSON does not hold something in it, or turns a key into another.
    """
    try:
        text = json.dumps(record)
    except (TypeError, ValueError) as error:
        raise TypeError(f"record: {error}; wanted what JSON holds") from None
    if keys := _strange_keys(record):
        raise TypeError(f"record: keys {keys[:5]} are no strings; JSON would give strings back")
    return text + "\n"


def _strange_keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [key for key in value if not isinstance(key, str)] + _strange_keys(list(value.values()))
    return [key for part in value for key in _strange_keys(part)] if isinstance(value, list | tuple) else []
