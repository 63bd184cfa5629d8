#!/usr/bin/env python3
"""A real Kubernetes of one node, built from source and run on this machine without an engine.

Runs before any Python environment exists: standard library only. See README.md beside this file.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from api_server import serve_api
from builds import build, build_all
from errors import ClusterError
from image_names import FULL, SMALL
from images import build_images
from lifecycle import bring_up
from loading import load_images
from logs import LINES
from needs import check_needs, check_root
from places import Places, places_from
from pushing import push_images
from runtime import environment_folder, published_folder
from status import show_logs, show_status
from teardown import take_down
from turns import be_the_only_one
from volumes import publish_folder

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

    one = _add(commands, "needs", _needs, "check the machine, and install what is missing")
    one.add_argument("packages", nargs="*", metavar="PACKAGE", help="further Debian packages")

    one = _add(commands, "build", _build, "build the programs that are missing from the cache")
    one.add_argument("names", nargs="*", metavar="NAME", help="only these programs")

    _add(commands, "up", _up, "start the cluster; repeat it to start what has died")
    _add(commands, "down", _down, "stop the cluster and remove everything it made")
    _add(commands, "status", _status, "show each component, and where the kubeconfig is")

    one = _add(commands, "logs", _logs, "print the end of each component's log")
    one.add_argument("--lines", type=int, default=LINES, help="lines of each (%(default)s)")

    one = _add(commands, "images", _images, "build the images thin, s3 and pause with buildah")
    one.add_argument("--full", action="store_true", help="also operator, mlflow and trainer")
    one.add_argument("names", nargs="*", metavar="NAME", help="only these images")

    _add(commands, "load", _load, "import the built images into the running cluster")

    one = _add(commands, "push", _push, "build the full images and push them to a registry")
    one.add_argument("registry", metavar="REGISTRY", help="e.g. registry.example.com/ml")
    one.add_argument("--plain-http", action="store_true", help="the registry speaks no TLS")

    one = _add(commands, "runtime", _runtime, "install the Python that thin images run")
    one.add_argument("--lock", default="runtime", help="requirements/LOCK.txt (%(default)s)")
    one.add_argument("--publish", metavar="NAMESPACE", help="lend it to this namespace's pods")
    one.add_argument("--claim", default="anneal-runtime", help="by this claim (%(default)s)")

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


def _needs(options: argparse.Namespace, places: Places) -> None:
    check_needs(options.packages, install=os.environ.get("INSTALL", "yes") != "no", places=places)


def _build(options: argparse.Namespace, places: Places) -> None:
    if options.names:
        build(options.names, places=places)
    else:
        build_all(places=places)


def _up(options: argparse.Namespace, places: Places) -> None:
    check_root()
    with be_the_only_one(places.state.parent / "cluster.lock", doing="`up` or `down`"):
        bring_up(places=places)


def _down(options: argparse.Namespace, places: Places) -> None:
    check_root()
    with be_the_only_one(places.state.parent / "cluster.lock", doing="`up` or `down`"):
        take_down(places=places)


def _status(options: argparse.Namespace, places: Places) -> None:
    if not show_status(places=places):
        raise ClusterError("the cluster is not well")


def _logs(options: argparse.Namespace, places: Places) -> None:
    show_logs(lines=options.lines, places=places)


def _images(options: argparse.Namespace, places: Places) -> None:
    check_root()
    names = options.names or (SMALL + FULL if options.full else SMALL)
    _print_json(build_images(names, places=places))


def _load(options: argparse.Namespace, places: Places) -> None:
    check_root()
    _print_json(load_images(places=places))


def _push(options: argparse.Namespace, places: Places) -> None:
    check_root()
    references = push_images(options.registry, uses_tls=not options.plain_http, places=places)
    _print_json(references)


def _runtime(options: argparse.Namespace, places: Places) -> None:
    check_root()
    if options.lock == "runtime":
        folder = published_folder(places=places)
    else:
        folder = environment_folder(options.lock, places=places)
    if options.publish:
        publish_folder(folder, namespace=options.publish, claim=options.claim, places=places)
    sys.stdout.write(f"{folder}\n")


def _print_json(references: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(references, indent=2) + "\n")


def _api_server(options: argparse.Namespace, places: Places) -> None:
    serve_api(options.dir, places=places)


if __name__ == "__main__":
    sys.exit(main())
