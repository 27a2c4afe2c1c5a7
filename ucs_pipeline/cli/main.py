"""The command `ucs`. A command's module is imported when it is used, so that `ucs --help` answers at once."""

import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from ucs_pipeline import __version__
from ucs_pipeline.errors import SourceUnavailableError, StreamUnavailableError, UcsError

_COMMANDS = {
    "demo": ("demo", "Publish three real tables through Dagster, and compare."),
    "publish": ("publish", "Publish bricks of a feed, from cron or by hand."),
    "check": ("checks", "Check the settings of every feed."),
    "verify": ("checks", "Compare every row of a feed with its entry in the stream."),
    "status": ("checks", "Show the progress of every feed."),
    "metrics": ("checks", "Print or serve metrics for Prometheus."),
    "read": ("entries", "Show the entries of a brick, or of a feed."),
    "adopt": ("operate", "Continue after a previous writer."),
    "prune": ("operate", "Delete old runs of the feeds."),
    "stop": ("operate", "Stop the embedded redis-server."),
}
"""Each command with its module and a short description."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"ucs_pipeline.cli.{_COMMANDS[cmd_name][0]}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


@click.group(cls=_Commands)
@click.version_option(__version__)
@click.option(
    "--workspace",
    "-w",
    multiple=True,
    type=click.Path(exists=True),
    help="Workspace file. May be given several times.",
)
@click.option("--python-file", "-f", multiple=True, envvar="DAGSTER_PYTHON_FILE", help="Python file with definitions.")
@click.option("--module-name", "-m", multiple=True, envvar="DAGSTER_MODULE_NAME", help="Module with definitions.")
@click.option("--package-name", multiple=True, envvar="DAGSTER_PACKAGE_NAME", help="Package with definitions.")
@click.option(
    "--working-directory", "-d", envvar="DAGSTER_WORKING_DIRECTORY", help="Directory to load the definitions from."
)
@click.option("--attribute", "-a", envvar="DAGSTER_ATTRIBUTE", help="Name of the definitions in the module or file.")
def ucs(**chosen: Any) -> None:
    """Moves ClickHouse tables into Redis streams, brick by brick, exactly once, in order.

    The commands load the code locations that `dagster dev` would load here: those that the options name, or those of
    [tool.dagster] or [tool.dg] in pyproject.toml, or of workspace.yaml.
    """
    if any(chosen.values()):
        # Imports Dagster.
        from ucs_pipeline.project.locations import Chosen, choose

        choose(Chosen(**chosen))


def main() -> NoReturn:
    """Entry point: an error a user can act on is printed without a traceback, with exit code 2 or 75."""
    # Only the owner may read what Dagster keeps, which includes rows and logs.
    os.umask(0o077)
    # A shell script starts `ucs ... &` with SIGINT ignored. Inside a run Dagster handles SIGTERM as SIGINT.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler)
    try:
        # Without a command, click would treat the help as an error.
        ucs(sys.argv[1:] or ["--help"], prog_name="ucs", standalone_mode=False)
    except click.Abort:  # click's exception for Ctrl-C
        click.echo("ucs: stopped. The published rows stay in the stream; run the same command to continue.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        click.echo(f"{context.command_path if context else 'ucs'}: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except UcsError as error:
        click.echo(f"ucs: {error}", err=True)
        # 75 is EX_TEMPFAIL: "try again later".
        sys.exit(os.EX_TEMPFAIL if isinstance(error, StreamUnavailableError | SourceUnavailableError) else 2)
    sys.exit(0)


if __name__ == "__main__":
    main()
