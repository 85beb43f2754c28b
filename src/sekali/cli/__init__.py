"""The command line. Each command is a module's; this one puts them together."""

from importlib.metadata import version
from typing import Annotated

import typer

from sekali.cli import bench, keys, publish, read, server, sources, subscriptions

app = typer.Typer(
    name="sekali",
    help="Publish as often as you like; it is stored once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sekali {version('sekali')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("serve", epilog=server.SERVE_EPILOG)(server.serve)
app.command("publish", epilog=publish.EPILOG)(publish.publish)
app.command("events", epilog=read.EVENTS_EPILOG)(read.events)
app.command("tail", epilog=read.TAIL_EPILOG)(read.tail)
app.command("sources", epilog=sources.EPILOG)(sources.sources)
app.command("stats", epilog=read.STATS_EPILOG)(read.stats)
app.command("verify", epilog=server.VERIFY_EPILOG)(server.verify)
app.command("backup", epilog=server.BACKUP_EPILOG)(server.backup)
app.command("restore", epilog=server.RESTORE_EPILOG)(server.restore)
app.add_typer(keys.app, name="keys")
app.add_typer(subscriptions.app, name="subscriptions")
app.command("bench", epilog=bench.EPILOG)(bench.bench)


def main() -> None:
    """Run the command that the arguments name."""
    app()
