"""The demo's last page: is it better, what does it say now, where is it, how is it loaded."""

from typing import Any

from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from layout import JOB_NAMESPACE, MODEL_FOLDER, REPOSITORY, RESULT_FILE
from result import Result
from target import Target
from terminal import Terminal, duration

_NUM_ANSWERS = 3
_ANSWER_CHARS = 300


def print_closing_page(
    result: Result, *, report: dict[str, Any], terminal: Terminal, target: Target, forward: str
) -> None:
    """Print the page; `forward` is the command that opens the way to MLflow, empty for none."""
    console = terminal.console
    console.print()
    console.print(Rule(f"{result.job}: {result.modelName} version {result.modelVersion}"))
    console.print(_perplexities(result, report=report))
    for pair in report["answers"][:_NUM_ANSWERS]:
        console.print(Padding(_answers(pair), (1, 0, 0, 2)))
    console.print()
    if forward:
        _fact(terminal, "open", forward)
    _fact(terminal, "MLflow", result.mlflowUrl)
    _fact(
        terminal, "model", f"models:/{result.modelName}@candidate (version {result.modelVersion})"
    )
    _fact(terminal, "files", result.outputUri)
    _fact(terminal, "ask it", _ask_command(result))
    _fact(terminal, "look", f"{target.kubectl_hint} -n {JOB_NAMESPACE} describe ftj {result.job}")
    _fact(terminal, "facts", str(RESULT_FILE.relative_to(REPOSITORY)))
    console.print(_times(terminal))


def _perplexities(result: Result, *, report: dict[str, Any]) -> Text:
    text = Text("\n  Response perplexity on ")
    text.append(f"{report['num_rows']} held-out rows:  ")
    text.append(f"{result.basePerplexity:.1f}", style="bold red")
    text.append(" base  ->  ")
    text.append(f"{result.tunedPerplexity:.1f}", style="bold green")
    text.append(f" tuned   ({-result.fall:+.0%}, in {duration(result.trainSeconds)} of training)")
    return text


def _answers(pair: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("asked", Text(pair["prompt"], style="bold"))
    table.add_row("base", Text(_shortened(pair["base"])))
    table.add_row("tuned", Text(_shortened(pair["tuned"]), style="green"))
    return table


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ANSWER_CHARS else f"{line[:_ANSWER_CHARS].rstrip()} ..."


def _fact(terminal: Terminal, name: str, value: str) -> None:
    # Not wrapped: addresses and commands must survive being copied.
    terminal.console.print(Text.assemble((f"  {name:<8}", "dim"), value))


def _ask_command(result: Result) -> str:
    server = result.mlflowUrl.partition("/#")[0]
    base = str(MODEL_FOLDER)
    return (
        f".venv/bin/python examples/python-help/ask.py --tracking {server} --base {base} "
        '"What does `shutil.rmtree` do in Python?"'
    )


def _times(terminal: Terminal) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", style="green")
    for name, seconds in terminal.seconds.items():
        table.add_row(f"  {name}", duration(seconds))
    table.add_row("  in all", duration(terminal.total_seconds), style="bold")
    return table
