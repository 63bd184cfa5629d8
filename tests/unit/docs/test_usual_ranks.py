"""The user guide names the bands of ranks and alphas that the code goes by."""

from __future__ import annotations

import re
from pathlib import Path

from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.memory.rank_limit import MEMORY_SHARE, RANKS
from anneal_pipeline.model.advice import ALPHA_HIGH, OVERHEAD_MAX, RANK_HIGH, SHARE_MAX
from anneal_pipeline.model.task_ranks import ALPHA_PER_RANK, ANY_TASK, RATIO_USUAL, TASK_RANKS

GUIDE = (Path(__file__).parents[3] / "docs/user-guide.md").read_text(encoding="utf-8")
TIMES = {1: "equal to the rank", 2: "twice the rank", 4: "four times"}


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    text = GUIDE.partition(f"### {title}\n")[2]
    assert text, f"the guide has a section {title}"
    return text.partition("\n#")[0]


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_table_of_tasks_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| ([a-z ]+) \| ([\d to]+) \| ([\d to]+) \|$", section("Which rank"), re.M)
    assert rows == [(task.task, task.ranks, task.alphas) for task in TASK_RANKS]


def test_alpha_by_rank_is_that_of_the_code() -> None:
    low, high = RATIO_USUAL
    assert (
        f"`alpha` of {TIMES[ALPHA_PER_RANK]} is the start; {TIMES[low]} is cautious, {TIMES[high]} "
        "is bold"
    ) in words(section("Which rank"))


def test_the_ranks_that_are_tried_are_those_of_the_code() -> None:
    first = ", ".join(map(str, RANKS[:3]))
    assert (
        f"finds the highest rank of {first} ... {RANKS[-1]} whose memory stays within "
        f"{100 * MEMORY_SHARE:.0f} % of the memory"
    ) in words(section("Which rank"))


def test_the_bounds_of_the_warnings_are_those_of_the_code() -> None:
    assert (OVERHEAD_MAX, RATIO_USUAL) == (1 / 2, (1, 4)), "told in words below"
    assert (
        f"over {100 * SHARE_MAX:.0f} % trained, adapters (with gradients and moments) over half of "
        f"the base's memory, rank {RANK_HIGH} and more, `alpha` below the rank or over four times "
        f"it, or {ALPHA_HIGH:g} and more."
    ) in words(GUIDE)


def test_the_reference_of_the_field_names_the_band_of_all_tasks() -> None:
    assert f"; {ANY_TASK.ranks} is usual, by the task." in str(
        LoraConfig.model_fields["rank"].description
    )
