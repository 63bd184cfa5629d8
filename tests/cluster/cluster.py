#!/usr/bin/env python3
"""A real Kubernetes of one node, built from source and run on this machine without an engine.

Runs before any Python environment exists: standard library only. See README.md beside this file.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from api_server import serve_api
from builds import build, build_all
from errors import ClusterError
from places import Places, places_from

Command = Callable[[argparse.Namespace, Places], None]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the process's exit code."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        command(options, places_from(os.environ))
    except ClusterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run the same command again, or `down`\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster.py", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    one = _add(commands, "build", _build, "build the programs that are missing from the cache")
    one.add_argument("names", nargs="*", metavar="NAME", help="only these programs")

    one = _add(commands, "api-server", _api_server, "serve a bare API server until stopped")
    one.add_argument("--dir", type=Path, required=True, help="folder for its files while it runs")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Command,
    sentence: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=sentence, description=sentence)
    parser.set_defaults(command=command)
    return parser


def _build(options: argparse.Namespace, places: Places) -> None:
    if options.names:
        build(options.names, places=places)
    else:
        build_all(places=places)


def _api_server(options: argparse.Namespace, places: Places) -> None:
    serve_api(options.dir, places=places)


if __name__ == "__main__":
    sys.exit(main())
