"""Which instance ids Durable Functions allows."""

MAX_LENGTH = 256
_FORBIDDEN = set("/\\#?")


def id_problem(instance_id: str) -> str:
    """The rule an instance id breaks, or an empty text."""
    if not instance_id:
        return "it must not be empty"
    if instance_id.startswith("@"):
        return "it must not start with '@', which marks entities"
    if len(instance_id) > MAX_LENGTH:
        return f"it must have at most {MAX_LENGTH} characters and has {len(instance_id)}"
    bad = sorted({char for char in instance_id if char in _FORBIDDEN or not _is_text(ord(char))})
    if bad:
        return f"it must not contain {bad} (nor any of / \\ # ? and control characters)"
    return ""


def _is_text(code: int) -> bool:
    control, surrogate = code < 32 or 127 <= code < 160, 0xD800 <= code < 0xE000
    return not control and not surrogate


def entity_id(name: str, key: str) -> str:
    return f"@{name.lower()}@{key}"


def split_entity_id(entity: str) -> tuple[str, str]:
    name, _, key = entity[1:].partition("@")
    return name, key
