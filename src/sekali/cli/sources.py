"""``sekali sources``: what arrived of the numbers that publishers gave their events."""

import json as json_module
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from sekali.cli.connect import ApiKeyFile, CaFile, connect
from sekali.cli.options import Json, Url, load_settings
from sekali.cli.output import EXIT_NOT_ALL, console, reported_errors, write_json
from sekali.client.errors import NotSekali
from sekali.client.http import Params
from sekali.printable import escape_controls
from sekali.settings import PublisherSettings

EPILOG = """Examples:

sekali sources --topic 'pumps/**'

sekali sources --topic pumps/7 --source plc-1 --from 1 --to 5000 --json | jq .missing_ranges
"""
RANGES_SHOWN_MAX = 5


def sources(
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    topic: Annotated[str | None, typer.Option(help="A topic, or a pattern: * is one segment, ** any number.")] = None,
    source: Annotated[str | None, typer.Option(help="Exactly this one.")] = None,
    first: Annotated[int | None, typer.Option("--from", help="The first number asked about.")] = None,
    last: Annotated[int | None, typer.Option("--to", help="The last number asked about.")] = None,
    json: Json = False,
) -> None:
    """Show the sources that number their events (source_seq): what came of the numbers, and what is missing.

    Exit codes: 0 nothing is missing; 1 something is, or refused; 2 usage; 3 the server is not there.
    """
    settings = load_settings(PublisherSettings, aggregator_url=url, api_key_file=api_key_file, ca_file=ca_file)
    table = Table("topic", "source", "numbers", "received", "missing", "complete", "gaps", box=None)
    is_complete = True
    with connect(settings, give_up_after_s=0) as server, reported_errors():
        params: Params | str | None = {"topic": topic, "source": source, "from": first, "to": last}
        while params is not None:
            page = server.get("/sources", params)
            try:
                found = json_module.loads(page.text)
                rows = [(one, _cells(one)) for one in found]
                is_complete = is_complete and not any(one["missing"] for one in found)
            except (ValueError, LookupError, TypeError) as error:
                raise NotSekali(
                    f"{server.url}: /sources is not answered as a Sekali server does. Check the URL"
                ) from error
            for one, cells in rows:
                if json:
                    write_json(one)
                else:
                    table.add_row(*map(Text, cells))
            params = page.next
        if not json:
            console().print(table)
    if not is_complete:
        raise typer.Exit(EXIT_NOT_ALL)


def _cells(found: dict[str, Any]) -> list[str]:
    ranges = found["missing_ranges"]
    gaps = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:RANGES_SHOWN_MAX])
    more = found["missing_ranges_count"] - len(ranges[:RANGES_SHOWN_MAX])
    return [
        escape_controls(found["topic"]),
        escape_controls(found["source"]),
        f"{found['lowest']}-{found['highest']}",
        f"{found['received']:,}",
        f"{found['missing']:,}",
        f"{found['completeness']:.4%}",
        f"{gaps} and {more:,} more" if more > 0 else gaps,
    ]
