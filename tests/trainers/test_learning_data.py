"""From logs to a data set on each database and each store: two nights at once, and one result."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from infra.calls.record import FeedbackRecord
from infra.database.events import list_events
from infra.objects.open import open_store
from infra.settings.serving import Storage
from tests.trainers.recorded import SETTINGS, START, home, put_log, ticket
from trainers.data_sets.freeze import freeze
from trainers.data_sets.versions import read_split
from trainers.discover.discover import discover
from trainers.ingest.ingest import ingest, totals

NIGHTS = 3


@pytest.fixture(params=["directory", "s3"])
def each_store(request, tmp_path):
    if request.param == "directory":
        return open_store(Storage(url=str(tmp_path / "objects")))
    server = request.getfixturevalue("s3_server")
    bucket = f"learning-{tmp_path.name.lower().replace('_', '-')[-40:].strip('-')}"
    keys = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    server.make_bucket(bucket)
    fields = {"url": f"s3://{bucket}/p", "endpoint_url": server.endpoint_url, **keys}
    return open_store(Storage.model_validate({**fields, "region": server.region}))


def test_nights_at_once_come_to_one_result(each_store, each_database):
    store, database = each_store, each_database
    feedback = FeedbackRecord(call_id="call-00001", score=0.0, time=START)
    for sequence in range(4):
        records = [home(sequence * 100 + n) for n in range(15)]
        records += [ticket(sequence * 100 + 50 + n) for n in range(15)]
        put_log(store, [*records, *([feedback] if sequence == 0 else [])], sequence, b"rubbish")
    barrier = Barrier(NIGHTS)

    def night(number):
        barrier.wait(60)
        report = ingest(store, database, SETTINGS, holder=f"night-{number}", now=START)
        barrier.wait(60)
        found = discover(store, database, SETTINGS, START)
        barrier.wait(60)
        return report, found, [freeze(store, database, SETTINGS, task.id, START) for task in found]

    with ThreadPoolExecutor(NIGHTS) as pool:
        nights = list(pool.map(night, range(NIGHTS)))

    reports = [report for report, _, _ in nights]
    assert sum(report.objects for report in reports) == 4
    assert sum(report.calls for report in reports) == totals(database).calls == 120
    assert (totals(database).quarantined, totals(database).lost) == (4, 0)
    assert nights[0][1:] == nights[1][1:] == nights[2][1:]
    assert [task.size for task in nights[0][1]] == [60, 60]
    for version in nights[0][2]:
        rows = sum(
            len(read_split(store, version, name)) for name in ("train", "validation", "test")
        )
        rows += version.manifest["dropped"].get("near-copy", 0)
        assert rows in (59, 60)
    with database.read() as connection:
        assert len(list_events(connection, what="task.created")) == 2
        assert len(list_events(connection, what="dataset.frozen")) == 2
        assert len(list_events(connection, what="ingest.quarantined")) == 4
