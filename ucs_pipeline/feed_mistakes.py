"""What is wrong with a feed's settings, in one sentence; what they hold is shown only where it cannot be a secret."""

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails

from ucs_pipeline.errors import FeedError

TEMPLATE = "{{"
"""What a Dagster template, which stands for a value, begins with."""

_WORDS = {"missing": "is missing", "extra_forbidden": "is not a setting"}


def sentence(name: object, error: ValidationError) -> str:
    """All that pydantic found wrong with the feed of that name."""
    parts = []
    for problem in error.errors(include_url=False):
        if isinstance(problem["input"], str) and TEMPLATE in problem["input"]:
            continue
        where = ".".join(str(step) for step in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in _WORDS:
            parts.append(f"{where} {_WORDS[problem['type']]}")
        elif isinstance(problem["input"], Mapping | BaseModel):
            named = not where or what.startswith(f"{where}.")
            parts.append(what if named else f"{where}: {what}")
        else:
            parts.append(f"{where}: {what} (found {shown(problem['input'])})")
    return f"feed {name!r}: " + "; ".join(parts)


def mistake(name: object, said: str) -> ValidationError:
    """What pydantic raises, with nothing but the sentence."""
    # Left to itself, pydantic would show a part of the whole feed beside the sentence, and secrets in it.
    error = InitErrorDetails(type="value_error", loc=(), input=name, ctx={"error": FeedError(said)})
    return ValidationError.from_exception_data("BrickFeed", [error])


def shown(value: object) -> str:
    """A setting as a sentence may show it."""
    # The SQL of a feed that is no text, such as a list of it, may hold secrets as well.
    return repr(value) if value is None or isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
