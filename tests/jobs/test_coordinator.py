"""The coordinator and the workers' loop together, in one process and without Ray."""

import pytest

from jobs.coordinator import Coordinator, verdict
from jobs.fleet_types import PackReport, Plan
from jobs.fleet_worker import work
from perpcs.errors import ConfigError, DataError, MismatchError, StoreError

USERS = [f"u{i:02d}" for i in range(12)]


class Store:
    """Committed users, and the log of every training."""

    def __init__(self):
        self.done, self.trained = set(), []

    def todo(self):
        return [user for user in USERS if user not in self.done]


class Worker:
    def __init__(self, store, behave=lambda users: None):
        self.store, self.behave = store, behave

    def run(self, users):
        self.behave(users)
        self.store.trained += users
        self.store.done |= set(users)
        return PackReport(tuple(users), seconds=2.0, tokens=10)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_desk(store, clock):
    def open_desk(*, pack=4, workers=1, retries=1, restarted=False):
        plan = Plan(len(USERS), pack, workers, retries, longest_pause_s=0.0)
        return Coordinator(store.todo, plan, restarted=restarted, clock=clock)

    return open_desk


def serve(desk, make, worker="0"):
    return work(desk, worker, make, beat_s=0.01)


def kinds(desk):
    return [event.kind for event in desk.news().events if event.kind != "lease"]


def test_all_are_trained_once(store, open_desk):
    desk = open_desk()
    assert serve(desk, lambda: Worker(store)) == len(USERS)
    assert store.trained == USERS
    assert kinds(desk) == ["joined", "pack", "pack", "pack"]
    last = desk.news().events[-1]
    assert (last.done, last.total, last.tokens) == (12, 12, 10)
    assert last.text == "worker 0: 4 users in 2.0 s (2.0 users/s)"


def test_a_poison_user_is_reported_and_stops_nobody(store, open_desk):
    def behave(users):
        if "u05" in users:
            raise DataError("u05: empty history")

    desk = open_desk()
    serve(desk, lambda: Worker(store, behave))
    news = desk.news()
    assert news.failed == {"u05": "u05: empty history"} and news.error is None
    assert sorted(store.trained) == [user for user in USERS if user != "u05"]
    assert "failed" in kinds(desk) and "retry" in kinds(desk)


def test_errors_of_other_libraries_travel_as_text(store, open_desk):
    class DeviceError(Exception):
        pass

    def behave(users):
        raise DeviceError("out of memory")

    desk = open_desk(pack=1, retries=0)
    serve(desk, lambda: Worker(store, behave))
    assert desk.news().failed["u00"] == "DeviceError: out of memory"


def test_when_everybody_fails_the_error_itself_comes_back(store, open_desk):
    def behave(users):
        raise TypeError("our bug")

    desk = open_desk(retries=50)
    serve(desk, lambda: Worker(store, behave))
    error = desk.news().error
    assert isinstance(error, TypeError) and "in behave" in error.__notes__[0]


@pytest.mark.parametrize("error", [ConfigError("no"), MismatchError("another base")])
def test_what_no_pack_can_mend_ends_the_fleet(store, open_desk, error):
    def behave(users):
        raise error

    desk = open_desk()
    assert serve(desk, lambda: Worker(store, behave)) == 0
    assert type(desk.news().error) is type(error)
    assert desk.news().failed == {}


def test_a_busy_store_is_waited_for_and_charged_to_nobody(store, open_desk):
    left = iter([StoreError("busy")] * 4)

    def behave(users):
        if error := next(left, None):
            raise error

    desk = open_desk(retries=0)
    assert serve(desk, lambda: Worker(store, behave)) == len(USERS)
    assert desk.news().failed == {} and kinds(desk).count("ill") == 4


def test_a_full_disk_ends_the_fleet_after_some_patience(store, open_desk):
    def behave(users):
        raise OSError(28, "No space left on device")

    desk = open_desk(retries=0)
    serve(desk, lambda: Worker(store, behave))
    assert desk.news().error.errno == 28 and desk.news().failed == {}


def test_a_users_mistake_in_making_the_worker_ends_the_fleet_at_once(open_desk):
    calls = []

    def make():
        calls.append(1)
        raise MismatchError("fingerprint")

    desk = open_desk()
    assert serve(desk, make) == 0
    assert len(calls) == 1 and isinstance(desk.news().error, MismatchError)


def test_making_the_worker_is_tried_again(store, open_desk):
    errors = iter([RuntimeError("device busy")])

    def make():
        for error in errors:
            raise error
        return Worker(store)

    assert serve(open_desk(), make) == len(USERS)


def test_a_worker_that_rejoins_gives_back_what_it_had_not_committed(store, open_desk):
    desk = open_desk()
    desk.join("0", "here")
    lease = desk.order("0").lease
    store.done |= set(lease.users[:1])
    serve(desk, lambda: Worker(store))
    assert sorted(store.trained) == USERS[1:]
    assert kinds(desk)[:4] == ["joined", "lost", "retry", "joined"]


def test_a_store_that_cannot_be_read_is_no_reason_to_stop(store, open_desk, monkeypatch):
    desk = open_desk(pack=12)

    def behave(users):
        if len(users) == 12:
            raise MemoryError

    def unreadable():
        raise StoreError("no route to the store")

    monkeypatch.setattr(desk, "_todo", unreadable)
    assert serve(desk, lambda: Worker(store, behave)) == len(USERS)
    assert "ill" in kinds(desk)


def test_processes_that_die_before_they_ask_for_work_are_counted(open_desk):
    desk = open_desk()
    for _ in range(7):
        desk.join("0", "here")
    assert "died before it could load" in str(desk.news().error)
    assert desk.order("0").stop


def test_a_silent_worker_loses_its_lease_to_the_next(store, open_desk, clock):
    desk = open_desk(workers=2, pack=16)
    lease = desk.order("0").lease
    clock.now = 31.0
    serve(desk, lambda: Worker(store), worker="1")
    assert set(store.trained) == set(USERS)
    assert not desk.beat("0", lease)


def test_after_a_restart_nothing_is_given_away_twice(store, open_desk, clock):
    first = open_desk(pack=6)
    lease = first.order("0").lease
    cursor = first.news().cursor
    second = open_desk(pack=6, restarted=True)
    assert second.order("1").lease is None and not second.order("1").stop
    assert second.beat("0", lease)
    clock.now = 60.0
    second.beat("0", lease)
    assert set(second.order("1").lease.users).isdisjoint(lease.users)
    assert [event.kind for event in second.news(cursor).events] == ["restarted", "lease"]


def test_workers_stop_when_the_driver_goes(store, open_desk):
    desk = open_desk()
    assert serve(desk, lambda: Worker(store, lambda users: desk.dismiss())) == 4


def test_news_are_given_once_and_then_forgotten(store, open_desk):
    desk = open_desk()
    desk.join("0", "here")
    news = desk.news()
    assert [event.kind for event in news.events] == ["joined"]
    assert desk.news(news.cursor).events == ()
    desk.join("1", "there")
    assert [event.worker for event in desk.news(news.cursor).events] == ["1"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError(""), "fatal"),
        (MismatchError(""), "fatal"),
        (StoreError(""), "ill"),
        (OSError(28, ""), "ill"),
        (OSError(2, ""), "pack"),
        (DataError(""), "pack"),
        (MemoryError(), "pack"),
    ],
)
def test_whose_fault_an_error_is(error, kind):
    assert verdict(error) == kind
