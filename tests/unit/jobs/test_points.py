from anneal_jobs.tracking.flat import flatten
from anneal_jobs.tracking.points import Spool, points_of


def test_points_are_kept_until_they_have_arrived() -> None:
    spool = Spool()
    spool.add(points_of({"loss": 1.0, "rate": 2.0}, step=1, timestamp_ms=5))
    batch = spool.oldest(10)
    assert [point.key for point in batch] == ["loss", "rate"]
    assert len(spool) == 2
    spool.acknowledge(batch[:1])
    assert spool.oldest(10) == batch[1:]


def test_a_full_spool_gives_up_the_oldest_and_counts_them() -> None:
    spool = Spool(capacity=3)
    for step in range(5):
        spool.add(points_of({"loss": float(step)}, step=step, timestamp_ms=step))
    assert [point.step for point in spool.oldest(10)] == [2, 3, 4]
    assert spool.num_dropped == 2


def test_replayed_points_come_first_with_their_first_timestamps() -> None:
    earlier, later = Spool(), Spool()
    earlier.add(points_of({"loss": 1.5}, step=7, timestamp_ms=70))
    later.add(points_of({"loss": 1.4}, step=8, timestamp_ms=80))
    later.replay(earlier.to_state())
    assert [(p.step, p.timestamp_ms, p.is_always_sent) for p in later.oldest(9)] == [
        (7, 70, True),
        (8, 80, False),
    ]


def test_a_configuration_becomes_flat_parameters() -> None:
    data = {"training": {"learningRate": 2e-4, "packing": False}, "prompts": ["a", "b"]}
    assert flatten(data) == {
        "training.learningRate": "0.0002",
        "training.packing": "False",
        "prompts": "a, b",
    }
