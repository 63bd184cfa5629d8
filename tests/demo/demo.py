#!/usr/bin/env python3
"""`make demo`: from a fresh clone to a fine-tuned, registered language model on a real Kubernetes.

Each step may be repeated and skips what exists; an interrupted demo goes on where it stopped.
"""

import argparse
import json
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext

from closing_page import print_closing_page
from diagnosis import diagnosis
from failure import DemoError, JobFailedError
from inputs import build_dataset, import_model, upload_inputs
from job import JOB_NAME, apply_job, follow
from layout import JOB_NAMESPACE, MODEL_FOLDER, OPERATOR_NAMESPACE, SERVICES_NAMESPACE
from mlflow_page import check_page_opens
from pod_images import Images, Kind, check_choice, prepare_test_cluster_images, push_images
from progress import show
from releases import (
    FORWARDED_ADDRESSES,
    MLFLOW_NODE_PORT,
    MLFLOW_PORT,
    S3_NODE_PORT,
    S3_PORT,
    TEST_CLUSTER_ADDRESSES,
    install_operator,
    install_services,
    make_namespaces,
)
from result import Result, result_of
from storage import Storage, open_storage
from target import Target, given_cluster, start_test_cluster
from terminal import Terminal
from tunnel import Tunnel, opened

_TO_MLFLOW = Tunnel(
    namespace=SERVICES_NAMESPACE, service="mlflow", local_port=MLFLOW_NODE_PORT, port=MLFLOW_PORT
)
_TO_S3 = Tunnel(namespace=SERVICES_NAMESPACE, service="s3", local_port=S3_NODE_PORT, port=S3_PORT)


def main() -> int:
    """Run the demo; return the process's exit code."""
    options = _parser().parse_args()
    terminal = Terminal()
    targets: list[Target] = []
    try:
        kind = check_choice(options.images, context=options.context, registry=options.registry)
        with terminal.step("cluster"):
            targets.append(
                given_cluster(options.context) if options.context else start_test_cluster()
            )
        _run(targets[0], kind=kind, registry=options.registry, terminal=terminal)
    except DemoError as error:
        terminal.say(f"error: {error}")
        if isinstance(error, JobFailedError):
            for part in diagnosis(targets[0]):
                terminal.say(part)
        return 1
    except KeyboardInterrupt:
        terminal.say(_farewell(targets))
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--images", default="thin", help="thin or full")
    parser.add_argument("--context", default="", help="kubectl context; else the test cluster")
    parser.add_argument("--registry", default="", help="where to push images for the context")
    return parser


def _run(target: Target, *, kind: Kind, registry: str, terminal: Terminal) -> None:
    addresses = TEST_CLUSTER_ADDRESSES if target.is_test_cluster else FORWARDED_ADDRESSES
    with terminal.step("images"):
        make_namespaces(target)
        images = _images(target, kind=kind, registry=registry)
    with terminal.step("MLflow and S3 server"):
        install_services(target, images=images)
    with terminal.step("operator"):
        install_operator(target, images=images, addresses=addresses)
    with terminal.step("base model"):
        made = import_model()
        terminal.say(f"    {MODEL_FOLDER}{'' if made else ' exists'}")
    with ExitStack() as stack:
        stack.enter_context(_way(_TO_S3, target=target))
        storage = open_storage(target, endpoint=addresses.s3)
        with terminal.step("model and data to S3"):
            build_dataset()
            num_sent = upload_inputs(storage)
            terminal.say(f"    {num_sent} files sent" if num_sent else "    all there already")
        job_result = _train(target, terminal=terminal)
        stack.enter_context(_way(_TO_MLFLOW, target=target))
        check_page_opens(job_result)
        _close(job_result, storage=storage, target=target, terminal=terminal)


def _images(target: Target, *, kind: Kind, registry: str) -> Images:
    if not target.is_test_cluster:
        return push_images(registry)
    namespaces = [OPERATOR_NAMESPACE, SERVICES_NAMESPACE, JOB_NAMESPACE]
    return prepare_test_cluster_images(kind, namespaces=namespaces)


def _train(target: Target, *, terminal: Terminal) -> Result:
    with terminal.step("fine-tuning"):
        terminal.say(f"    {apply_job(target)}")
        watch = f"{target.kubectl_hint} -n {JOB_NAMESPACE} get ftj -w"
        terminal.say(f"    watch it elsewhere: {watch}")
        job = show(follow(target), terminal=terminal)
    if job.phase != "Succeeded":
        raise JobFailedError(f"finetunejob {JOB_NAMESPACE}/{JOB_NAME} is {job.phase}")
    return result_of(job, total_seconds=terminal.total_seconds)


def _close(result: Result, *, storage: Storage, target: Target, terminal: Terminal) -> None:
    report = json.loads(storage.read(f"{result.outputUri}/evaluation/report.json"))
    result.write()
    forward = ""
    if not target.is_test_cluster:
        forward = " ".join([target.kubectl_hint, *_TO_MLFLOW.words])
    print_closing_page(result, report=report, terminal=terminal, target=target, forward=forward)


def _way(tunnel: Tunnel, *, target: Target) -> AbstractContextManager[None]:
    """A tunnel, unless node ports are in reach."""
    return nullcontext() if target.is_test_cluster else opened(tunnel, target=target)


def _farewell(targets: list[Target]) -> str:
    lines = ["interrupted; run `make demo` again to go on where this stopped"]
    if targets:
        hint = targets[0].kubectl_hint
        lines += [
            "a job that has been applied goes on by itself; to stop it:",
            f"    {hint} -n {JOB_NAMESPACE} delete ftj {JOB_NAME}",
        ]
    if targets and targets[0].is_test_cluster:
        lines.append("to remove the cluster: make cluster-down")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
