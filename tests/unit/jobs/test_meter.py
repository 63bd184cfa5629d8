from anneal_jobs.storage.meter import ByteMeter


def test_chunks_and_whole_files_add_up() -> None:
    seen: list[tuple[int, int]] = []
    meter = ByteMeter(30, lambda done, total: seen.append((done, total)))
    meter.start()
    meter.add(4)
    meter.add(6)
    meter.settle(10)
    meter.settle(5)
    meter.add(15)
    meter.settle(15)
    assert [done for done, _ in seen] == [0, 4, 10, 10, 15, 30, 30]
    assert {total for _, total in seen} == {30}


def test_a_part_that_is_sent_again_is_taken_back_and_never_more_than_all() -> None:
    seen: list[int] = []
    meter = ByteMeter(10, lambda done, total: seen.append(done))
    for count in (8, -8, 8, 5):
        meter.add(count)
    assert seen == [8, 0, 8, 10]
