"""Writes the generated parts of docs/reference: `uv run python -m ucs_pipeline_tests.reference`."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from textwrap import dedent
from typing import Any

import click

import ucs_pipeline
from ucs_pipeline import BrickFeed, errors
from ucs_pipeline.cli.main import ucs
from ucs_pipeline.message_codes import GROUPS, MessageCode
from ucs_pipeline_tests.support.home import PROJECT

FOLDER = PROJECT / "docs" / "reference"

_AUTOMATION = {
    *("max_bricks_per_run", "tail", "poll_s", "live_max_s", "sensor", "sensor_interval_s", "schedule"),
    *("schedule_bricks", "check_schedule", "fresh_within_s", "deps", "automation_condition"),
}
_UI = {"table_asset", "key_prefix", "metadata", "group", "owners", "tags", "description"}

_MODULES = {
    "ucs_pipeline": [name for name in ucs_pipeline.__all__ if name != "__version__"],
    "ucs_pipeline.bricks": ["get_brick_name", "get_brick_list", "get_brick_bounds"],
    "ucs_pipeline.testing": ["kit", "Kit"],
    "ucs_pipeline.errors": [name for name, value in vars(errors).items() if inspect.isclass(value)],
}
"""What the page of the Python API has."""

_NOT_FOR_USERS = {"setup_for_execution", "model_post_init"}
"""Methods that Dagster and pydantic call."""

_EDIT = "<!-- Generated: `uv run python -m ucs_pipeline_tests.reference` writes this page. -->"


def messages(_: str) -> str:
    """The page of the codes."""
    parts = [
        _EDIT,
        "# Messages",
        "Every error message and every failed check ends with a code, such as `[UCS-GAP]`. The code stays the same "
        "when the words of the message change, so search for it and match on it. `UcsError.code` has it in Python; the "
        "metadata of a failed run or check has it as `code`; `ucs status --json` prints it at the end of `problem`.",
        "Running the same command or run again is always safe: no row is added twice. *Again* states whether it can "
        "succeed without a change.",
        *(text for title, group in GROUPS.items() for text in (f"## {title}", *map(_code, group.items()))),
        "## Skipped ticks",
        "A sensor or schedule that launches nothing gives a skip reason in the Dagster UI. The reason begins with the "
        "feed and `skipped:`, and names the time of the next check. A skipped tick is no error. It ends with a code if "
        "an entry above lists what to do: `UCS-STREAM-FULL`, `UCS-RUN` for a brick that is launched without progress, "
        "or the code of the error that is the reason.",
    ]
    return "\n\n".join(parts) + "\n"


def _code(named: tuple[str, MessageCode]) -> str:
    code, about = named
    again = "Yes, later." if about.passes else "No."
    return f"### {code}\n\n{about.means}\n\n- *Why:* {about.why}\n- *What to do:* {about.do}\n- *Again:* {again}"


def settings(page: str) -> str:
    """The page of the settings, with new tables."""
    schema = BrickFeed.model().model_json_schema()
    groups: dict[str, list[str]] = {"Basic": [], "Stream": [], "Automation": [], "UI": []}
    for name, row in _settings(schema, schema):
        top = name.partition(".")[0]
        title = "Stream" if top == "stream" else "Automation" if top in _AUTOMATION else "UI" if top in _UI else "Basic"
        groups[title].append(row)
    header = "| setting | default | meaning |\n| --- | --- | --- |"
    tables = "\n\n".join("\n".join([f"### {title}\n\n{header}", *rows]) for title, rows in groups.items())
    return _between(page, "settings", tables)


def _settings(schema: dict[str, Any], model: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model["properties"].items():
        nested = [part["$ref"] for part in field.get("anyOf", []) if "$ref" in part]
        if nested:
            yield from _settings(schema, schema["$defs"][nested[0].rsplit("/", 1)[-1]], f"{prefix}{name}.")
            continue
        required = name in model.get("required", [])
        default = field.get("default")
        shown = "" if required else "none" if default in (None, "__DAGSTER_UNSET_DEFAULT__") else f"`{default}`"
        yield prefix + name, f"| `{prefix}{name}` | {shown} | {field['description'].replace('|', chr(92) + '|')} |"


def commands(page: str) -> str:
    """The page of the commands, with their help."""
    for name in ("ucs", *ucs.list_commands(click.Context(ucs))):
        context = click.Context(ucs, info_name="ucs", terminal_width=100, max_content_width=100)
        command: click.Command | None = ucs
        if name != "ucs":
            command = ucs.get_command(context, name)
            context = click.Context(command, parent=context, info_name=name, terminal_width=100) if command else context
        assert command
        # The table above lists the commands, and each command has --help.
        text = re.sub(
            r"\n\nCommands:.*|\n +--help +Show this message and exit\.", "", command.get_help(context), flags=re.DOTALL
        )
        page = _between(page, f"help {name}", f"```text\n{text.removesuffix('Options:').rstrip()}\n```")
    return page


def _between(page: str, mark: str, text: str) -> str:
    begin, end = f"<!-- {mark} -->\n", f"\n<!-- /{mark.split()[0]} -->"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(found.findall(page)) != 1:
        raise ValueError(f"expected one block between {begin.strip()} and {end.strip()}")
    return found.sub(lambda _: begin + text + end, page)


def python_api(_: str) -> str:
    """The page of the Python API."""
    parts = [
        _EDIT,
        "# Python API",
        "Import these names from the modules of the headings. All other names may change in any release.",
    ]
    for module, names in _MODULES.items():
        parts += [f"## {module}", *(_about(name, getattr(import_module(module), name)) for name in names)]
    return "\n\n".join(parts) + "\n"


def _about(name: str, value: Any) -> str:
    if inspect.isfunction(value):
        return "\n\n".join([f"### {name}", _signature(name, value), _docstring(value)])
    parts = [f"### {name}", _docstring(value)]
    if issubclass(value, BrickFeed):
        parts.append("Arguments: the [settings](settings.md).")
    elif issubclass(value, Exception):
        base = ", ".join(f"`{parent.__name__}`" for parent in value.__bases__)
        code = f" Default code: `{value.code}`." if hasattr(value, "code") else ""
        parts[-1] += f" A subclass of {base}.{code}"
    else:
        fields: Mapping[str, Any] = getattr(value, "model_fields", {})
        parts += ["\n".join(f"- `{field}`: {about.description}" for field, about in fields.items())] if fields else []
        if not fields and not is_dataclass(value):
            parts += [_signature(name, value.__init__), _docstring(value.__init__)]
    parts += [
        f"#### {name}.{method}\n\n{_signature(method, function)}\n\n{_docstring(function)}"
        for base in reversed(value.__mro__)
        if base.__module__.startswith("ucs_pipeline") and not issubclass(value, BrickFeed | Exception)
        for method, function in vars(base).items()
        if inspect.isfunction(function) and not method.startswith("_") and method not in _NOT_FOR_USERS
    ]
    return "\n\n".join(parts)


def _signature(name: str, value: Any) -> str:
    # From the source: what `inspect` makes of annotations differs between versions of Python.
    [node] = ast.parse(dedent(inspect.getsource(value))).body
    assert isinstance(node, ast.FunctionDef)
    arguments = node.args
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    for argument in (*arguments.args, *arguments.kwonlyargs):
        argument.annotation = _unquoted(argument.annotation)
    returns = "" if node.name == "__init__" or node.returns is None else f" -> {ast.unparse(_unquoted(node.returns))}"
    return f"```python\n{name}({ast.unparse(arguments)}){returns}\n```"


def _unquoted(annotation: Any) -> Any:
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return ast.parse(annotation.value, mode="eval").body if quoted else annotation


def _docstring(value: Any) -> str:
    """A docstring as Markdown: what is below `Args:`, `Returns:` and `Raises:` becomes a list."""
    text = inspect.getdoc(value) or ""
    parts = []
    for part in text.split("\n\n"):
        title, _, body = part.partition(":\n")
        if part.startswith(">>>"):
            parts.append(f"```python\n{part}\n```")
        elif title in ("Args", "Returns", "Raises"):
            items = [" ".join(item.split()) for item in re.split(r"\n(?=\S)", dedent(body))]
            named = [re.sub(r"^(\w+): ", r"`\1`: ", item) for item in items]
            parts.append(f"*{title}:*\n\n" + "\n".join(f"- {item}" for item in named))
        else:
            parts.append(part)
    return "\n\n".join(parts)


PAGES: Mapping[str, Callable[[str], str]] = {
    "messages.md": messages,
    "settings.md": settings,
    "commands.md": commands,
    "python-api.md": python_api,
}
"""What makes each page out of the one that is there."""


def main() -> None:
    """Writes the pages."""
    for name, made in PAGES.items():
        page = FOLDER / name
        page.write_text(made(page.read_text() if page.exists() else ""))


if __name__ == "__main__":
    main()
