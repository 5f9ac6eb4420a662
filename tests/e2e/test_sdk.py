"""The Python SDK against real processes: what the README prints, what futures promise, and what they outlive."""

import asyncio
import concurrent.futures
import datetime
import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from decimal import Decimal
from pathlib import Path

import pytest

import ostler
from e2e.fleet import TASKS, Fleet, until
from e2e.proxy import Way
from lossy_proxy import LossyProxy
from ostler.sdk.failed import RemoteTraceback

sys.path.insert(0, str(TASKS.parent))  # as a program beside the task folder has it
from tasks import calls

NOT_OVER = "queued,leased,acked,preparing,running,uploading,retry_wait"
SOON = {"OSTLER_NODE__HEARTBEAT__BACKOFF__MIN_S": "0.2"}  # a node that looks sooner whether its coordinator is back
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a user has beside a program: the folder `tasks`, as the README prints it."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in printed("README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory, folder):
    """A coordinator and two nodes."""
    places = [str(TASKS), str(folder / "tasks")]
    settings = {"OSTLER_NODE__RUNNERS__PYTHON__TASK_PATHS": json.dumps(places)}
    data = tmp_path_factory.mktemp("two") / "data"
    with Fleet(data, slots=2, settings=settings) as fleet, fleet.join("second", tasks=places):
        yield fleet


@pytest.fixture
def client(two):
    with ostler.Client(two.url, token=two.token) as one:
        yield one


@pytest.fixture
def ex(client):
    with ostler.Executor(client, timeout_s=60) as one:
        yield one


def program(fleet, text, **env):
    """Run a program as a user has it, in a process of its own."""
    env = {**fleet.env, "PYTHONPATH": str(TASKS.parent), **env}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def printed(page):
    """The files in Python that a page prints, as (name, text)."""
    return re.findall(r"```python file=(\S+)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_readme_s_example_on_two_nodes(two, client, folder):
    """As printed: 1,000 calls in jobs of 50, whose results come in order; both nodes took part."""
    before = {job.job_id for job in client.jobs(limit=10_000)}
    done = subprocess.run(
        [sys.executable, "squares.py"], cwd=folder, env=two.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{sum(n * n for n in range(1000))}\n"
    mine = [job for job in client.jobs(limit=10_000) if job.job_id not in before]
    assert len(mine) == 20
    assert {job.state for job in mine} == {"done"}
    assert len({job.node_id for job in mine}) == 2


def test_a_thousand_calls_are_a_handful_of_requests(two, ex):
    def count():
        text = two.http.get(f"{two.url}/metrics").text
        found = re.findall(r'^ostler_request_duration_seconds_count\{route="(\w+)"\} (\S+)', text, re.MULTILINE)
        return {"get_artifact": 0.0, **{name: float(number) for name, number in found}}

    before = count()
    assert list(ex.map(calls.square, range(1000))) == [n * n for n in range(1000)]
    after = count()
    assert after["submit_jobs"] - before["submit_jobs"] <= 20
    assert after["get_artifact"] == before["get_artifact"]


def test_chunks_are_one_job_each(client, ex):
    before = len(client.jobs(limit=10_000))
    assert list(ex.map(calls.together, range(25), "x" * 25, chunksize=10)) == [((n, "x"), {}) for n in range(25)]
    assert len(client.jobs(limit=10_000)) == before + 3
    with pytest.raises(ValueError, match="chunksize"):
        ex.map(calls.square, [1], chunksize=0)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**80), 1.5, -0.0, math.inf, "", "é\0\U0001f40e", b"\0\xff", (), (1, [2, (3,)]), {1, 2}, frozenset({(1, 2)}),
        {"a": 1}, {1: {(2, 3): None}}, {"$tuple": [1]}, 1j, Decimal("1.10"), datetime.date(2024, 2, 29),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(microseconds=1), bytearray(b"x"), [[]] * 20,
    ],
)  # fmt: skip
def test_values_come_back_equal_and_of_the_same_type(ex, value):
    came = ex.submit(calls.give, value).result(60)
    assert (type(came), came) == (type(value), value)
    assert str(came) == str(value)


def test_nan_comes_back(ex):
    assert math.isnan(ex.submit(calls.give, math.nan).result(60))


def test_arguments_by_place_and_name(ex):
    assert ex.submit(calls.together, 1, (2,), three={3}).result(60) == ((1, (2,)), {"three": {3}})
    assert ex.submit("calls:together", self=1, fn=2).result(60) == ((), {"self": 1, "fn": 2})
    import functools

    assert ex.submit(functools.partial(calls.together, 0, a=1), 2, b=3).result(60) == ((0, 2), {"a": 1, "b": 3})


def test_coroutines_are_run(ex):
    assert ex.submit(calls.later, 5).result(60) == 5


def test_a_result_of_ten_megabytes(ex):
    assert ex.submit(calls.megabytes, 10).result(60) == b"x" * (10 << 20)


def test_exceptions_are_raised_with_their_type_and_the_traceback_there(ex):
    future = ex.submit(calls.torn, "page", 3)
    with pytest.raises(calls.Torn, match="page") as caught:
        future.result(60)
    assert caught.value.pieces == 3
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "in torn" in str(cause)
    assert "node/worker" not in str(cause)  # nothing of what stands around the function
    assert isinstance(future.exception(), calls.Torn)


@pytest.mark.parametrize(
    ("args", "kind", "text"),
    [
        (("ValueError", "bad"), ValueError, "bad"),
        (("KeyError", "k"), KeyError, "'k'"),
        (("OSError", 2, "gone", "/x"), FileNotFoundError, "[Errno 2] gone: '/x'"),
        (("SystemExit", 0), ostler.RemoteError, "SystemExit: 0"),  # a node does not end this program
    ],
)
def test_exceptions_of_python(ex, args, kind, text):
    with pytest.raises(kind) as caught:
        ex.submit(calls.fail, *args).result(60)
    assert (type(caught.value), str(caught.value)) == (kind, text)


def test_an_exception_of_a_class_that_is_not_here(ex, tmp_path):
    """It is named, and nothing is imported because a node says so."""
    del sys.modules["tasks.calls"]
    try:
        with pytest.raises(ostler.RemoteError, match=r"tasks\.calls\.Torn: page") as caught:
            ex.submit("calls:torn", "page", 3).result(60)
        assert "tasks.calls" not in sys.modules
        assert "in torn" in str(caught.value.__cause__)
    finally:
        sys.modules["tasks.calls"] = calls


def test_recursion(ex):
    with pytest.raises(RecursionError):
        ex.submit(calls.dig, 100_000).result(60)


@pytest.mark.parametrize(("call", "said"), [((calls.boxed, 1), "Box is no plain data"), ((calls.generator,), "generator"),
                                            ((calls.nest, 500), "nested")])  # fmt: skip
def test_results_that_are_no_data(ex, call, said):
    with pytest.raises(TypeError, match=f"the result cannot be sent as data: .*{said}"):
        ex.submit(*call).result(60)


def test_results_as_pickles_where_the_caller_says_so(client):
    with ostler.Executor(client, results="pickle") as trusting:
        assert trusting.submit(calls.boxed, 7).result(60) == calls.Box(7)
        assert trusting.submit(calls.square, 7).result(60) == 49
        with pytest.raises(TypeError, match="cannot be pickled"):
            trusting.submit(calls.generator).result(60)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("calls:alias", "defines no public function 'alias'"),  # another one's name
        ("calls:Path", "defines no public function 'Path'"),  # imported
        ("calls:Box", "defines no public function 'Box'"),  # a class
        ("calls:inner", "defines no public function 'inner'"),
        ("listed:hidden", "defines no public function 'hidden'"),  # not in its module's `__all__`
        ("calls:nothing", "defines no public function 'nothing'"),
        ("os:system", "this node has no task 'os:system'"),
        ("nowhere:square", "this node has no task 'nowhere:square'"),
    ],
)
def test_what_a_node_does_not_have_is_denied(ex, name, said):
    with pytest.raises(ostler.JobFailed, match=said) as caught:
        ex.submit(name).result(60)
    assert caught.value.code == "E_DENY"
    assert caught.value.job_id.startswith("call-")


@pytest.mark.parametrize(
    ("function", "args", "said"),
    [
        (lambda: 1, (), "without a name"),
        (calls.outer(), (), "within another function"),
        (calls._private, (), "private to its module"),
        (len, (), "not a function that can be called by its name"),
        (calls.Box(1).__eq__, (), "not a function"),
        ("calls:_private", (), "does not name a function"),
        ("calls", (), "does not name a function"),
        ("calls:outer.inner", (), "does not name a function"),
        (calls.give, (object(),), "argument 1 cannot be sent: a object is no plain data"),
        (calls.give, (b"x" * (5 << 20),), "bytes with its arguments; at most"),
    ],
)
def test_what_cannot_be_sent_is_told_at_once(ex, function, args, said):
    with pytest.raises(ostler.InvalidSpec, match=said):
        ex.submit(function, *args)


def test_a_module_s_list_of_names_is_kept(ex):
    assert ex.submit("listed:offered").result(60) == "offered"


def test_a_function_of_the_program_itself(two):
    done = program(
        two,
        """
        import ostler

        def mine():
            return 1

        with ostler.Executor() as ex:
            try:
                ex.submit(mine)
            except ostler.InvalidSpec as exc:
                print(exc, "|", exc.hint)
        """,
    )
    assert "'mine' is defined in the program itself" in done.stdout
    assert "tasks/NAME.py" in done.stdout
    assert "by_value=True" in done.stdout


def test_futures_work_with_wait_and_as_completed(ex):
    futures = [ex.submit(calls.square, n) for n in range(20)]
    assert {one.result() for one in concurrent.futures.as_completed(futures, timeout=60)} == {n * n for n in range(20)}
    done, left = concurrent.futures.wait(futures, timeout=60)
    assert (len(done), len(left)) == (20, 0)


def test_callbacks_may_submit_and_wait(ex, client):
    """They run in a thread that nothing else waits for."""
    seen, over = [], threading.Event()

    def callback(future):
        follower = ex.submit(calls.square, future.result())
        follower.add_done_callback(lambda last: (seen.append(last.result()), over.set()))
        client.jobs(limit=1)

    ex.submit(calls.square, 3).add_done_callback(callback)
    assert over.wait(60)
    assert seen == [81]


def test_timeouts(ex, tmp_path):
    future = ex.submit(calls.hold, str(tmp_path / "runs"))
    with pytest.raises(TimeoutError):
        future.result(0.05)
    with pytest.raises(TimeoutError):
        list(ex.map(calls.hold, [str(tmp_path / "too")], timeout=0.05))
    assert not future.done()
    assert future.cancel()


def test_cancel_ends_what_runs(two, ex, client, tmp_path):
    mark = tmp_path / "runs"
    future = ex.submit(calls.hold, str(mark))
    until(mark.exists, what="the call")
    assert future.cancel()
    assert future.cancelled()
    assert future.cancel()
    assert concurrent.futures.wait([future], timeout=10).done == {future}
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert two.wait(future.job_id)["state"] == "cancelled"


def test_a_call_cancelled_from_elsewhere_is_cancelled_here(two, ex, tmp_path):
    mark = tmp_path / "runs"
    future = ex.submit(calls.hold, str(mark))
    until(mark.exists, what="the call")
    assert two.cli("job", "cancel", future.job_id).returncode == 0
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(60)
    assert future.cancelled()


def test_what_is_left_of_a_map_is_cancelled(ex, client, tmp_path):
    with pytest.raises(TimeoutError):
        next(ex.map(calls.hold, [str(tmp_path / f"a{n}") for n in range(4)], timeout=0.01))
    until(lambda: not client.jobs(state=NOT_OVER), what="the end of its calls")
    held = [ex.submit(calls.hold, str(tmp_path / f"b{n}")) for n in range(200)]
    ex.shutdown(cancel_futures=True)
    assert all(one.cancelled() for one in held)
    until(lambda: not client.jobs(state=NOT_OVER), what="the end of all calls")


def test_shutdown(client, tmp_path):
    ex = ostler.Executor(client)
    futures = [ex.submit(calls.square, n) for n in range(10)]
    ex.shutdown()
    assert [one.result(0) for one in futures] == [n * n for n in range(10)]
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(calls.square, 1)
    ex.shutdown()
    assert client.jobs(limit=1)  # whoever brought the client goes on with it


def test_shutdown_that_does_not_wait(two, monkeypatch):
    monkeypatch.setenv("OSTLER_URL", two.url)
    monkeypatch.setenv("OSTLER_TOKEN", two.token)
    ex = ostler.Executor()
    future = ex.submit(calls.slow_square, 3, 0.3)
    ex.shutdown(wait=False)
    assert future.result(60) == 9


def test_max_pending_holds_submit_back(client, tmp_path):
    with ostler.Executor(client, max_pending=2) as ex:
        held = [ex.submit(calls.hold, str(tmp_path / str(n))) for n in range(2)]
        third = concurrent.futures.Future()
        thread = threading.Thread(target=lambda: third.set_result(ex.submit(calls.square, 4)))
        thread.start()
        with pytest.raises(TimeoutError):
            third.result(0.2)
        held[0].cancel()
        assert third.result(30).result(60) == 16
        held[1].cancel()
        thread.join()
    with ostler.Executor(client, max_pending=7) as ex:
        assert list(ex.map(calls.square, range(50))) == [n * n for n in range(50)]


def test_one_bad_call_does_not_spoil_its_neighbours(ex):
    """The coordinator takes a batch whole or not at all; a mistake that only it can see is its call's alone."""
    bad = [ex.submit("x" * 300 + ":f") if n == 3 else ex.submit(calls.square, n) for n in range(8)]
    results = [one.exception(60) or one.result() for one in bad]
    assert [one for n, one in enumerate(results) if n != 3] == [0, 1, 4, 16, 25, 36, 49]
    assert isinstance(results[3], ostler.JobFailed | ostler.InvalidSpec)
    with ostler.Executor(ex._client, labels={"not a label!": "x"}) as spoilt, pytest.raises(ostler.InvalidSpec, match="labels"):
        spoilt.submit(calls.square, 1).result(60)


def test_retries_repeat_what_raised(client):
    with ostler.Executor(client, retries={"max": 2, "backoff_s": 0.01, "codes": ["E_TASK"]}) as ex:
        future = ex.submit(calls.fail, "ValueError", "each time")
        with pytest.raises(ValueError, match="each time"):
            future.result(60)
        assert client.job(future.job_id).refresh().tries == 3


def test_a_worker_that_dies_is_another_attempt(client, tmp_path):
    with ostler.Executor(client, retries=2) as ex:
        assert ex.submit(calls.once_then_die, str(tmp_path / "died")).result(60) == "second"


# --- by value ---


def test_functions_by_value_are_refused_by_default(two, client):
    """No node advertises that it takes them; one that is sent there all the same says which key it is about."""
    with ostler.Executor(client, by_value=True, ttl_s=0.2) as ex, pytest.raises(ostler.JobFailed, match="expired"):
        ex.submit(lambda: 1).result(60)
    with ostler.Executor(client, by_value=True) as ex:
        future = ex.submit(lambda: 1)
        assert "python-by-value" in two.cli("job", "explain", future.job_id).stdout
        future.cancel()
    with two.join("claims", tags=["python-by-value"]), ostler.Executor(client, by_value=True) as ex:
        with pytest.raises(ostler.JobFailed, match=r"runners\.python\.by_value is false") as caught:
            ex.submit(lambda: 1).result(60)
        assert caught.value.code == "E_DENY"
    with pytest.raises(ostler.InvalidSpec, match=r"requirements\.tags: must hold 'python-by-value'"):
        client.submit(runner="python", code={"pickle": "gAQu", "python": "3.11"})


@pytest.fixture(scope="module", params=["process", "bwrap"])
def open_minded(tmp_path_factory, request):
    """A node that does not take functions by value, and one that does."""
    if request.param == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed and cannot be installed without root")
    data = tmp_path_factory.mktemp("open") / "data"
    with Fleet(data, slots=2) as fleet, fleet.join("open", level=request.param, python={"by_value": True}):
        yield fleet


def test_functions_by_value_where_a_node_allows_them(open_minded, tmp_path):
    """Closures, lambdas and what stands in a program itself; only the node that allows it gets them, in the sandbox as any task."""
    offset = 5

    class Local(Exception):
        pass

    def fails():
        raise Local("mine")

    with ostler.Client(open_minded.url, token=open_minded.token) as client:
        with ostler.Executor(client, by_value=True, timeout_s=60) as ex:
            assert list(ex.map(lambda n: n + offset, range(20))) == [n + 5 for n in range(20)]
            assert list(ex.map(lambda n: n * 2, range(20), chunksize=7)) == [n * 2 for n in range(20)]
            assert {one.node_id for one in client.jobs(limit=100)} == {"open"}
            assert client.jobs(limit=1)[0].title == "test_functions_by_value_where_a_node_allows_them.<lambda>"
            assert ex.submit(calls.together, object, x=1).exception(60)  # a class is no data, as a result
            with pytest.raises(ostler.RemoteError, match="Local: mine"):
                ex.submit(fails).result(60)
            assert ex.submit(os.getpid).result(60) != ex.submit(os.getpid).result(60)  # no warm worker
            with pytest.raises(ostler.InvalidSpec, match="cannot be pickled"):
                ex.submit(threading.Lock().acquire)
            with pytest.raises(ostler.InvalidSpec, match="is a name"):
                ex.submit("calls:square", 1)
        with ostler.Executor(client, by_value=True, results="pickle", requirements={"tags": []}) as ex:
            assert ex.submit(lambda: calls.Box(offset)).result(60) == calls.Box(5)
        old = {"runner": "python", "code": {"pickle": "gAQu", "python": "3.9"}, "requirements": {"tags": ["python-by-value"]}}
        with pytest.raises(ostler.JobFailed, match=r"sent by Python 3\.9"):
            client.submit(**old).result(60)
        junk = {**old, "code": {"pickle": "AAAA", "python": f"{sys.version_info.major}.{sys.version_info.minor}"}}
        with pytest.raises(ostler.JobFailed, match="E_TASK"):
            client.submit(**junk, retries=0).result(60)


def test_functions_by_name_in_each_sandbox(open_minded):
    client = ostler.Client(open_minded.url, token=open_minded.token)
    with client, ostler.Executor(client, requirements={"node": "open"}, timeout_s=60) as ex:
        assert list(ex.map(calls.square, range(5))) == [0, 1, 4, 9, 16]
        with pytest.raises(calls.Torn, match="page"):
            ex.submit(calls.torn, "page", 2).result(60)


def test_a_program_s_own_functions_by_value(open_minded):
    done = program(
        open_minded,
        """
        import ostler

        def mine(n):
            return helper(n) + 1

        def helper(n):
            return n * 10

        with ostler.Executor(by_value=True) as ex:
            print(list(ex.map(mine, range(3))))
        """,
    )
    assert done.stdout == "[1, 11, 21]\n", done.stderr


# --- what futures outlive ---


def test_the_coordinator_is_killed_in_the_middle_of_a_map(own_fleet, caplog):
    with own_fleet(slots=4, settings=SOON) as fleet, ostler.Client(fleet.url, token=fleet.token) as client:
        with ostler.Executor(client) as ex:
            results = ex.map(calls.slow_square, range(300))
            came = [next(results) for _ in range(20)]
            for _ in range(2):
                fleet.kill("coordinator")
                came += [next(results) for _ in range(60)]
            assert came + list(results) == [n * n for n in range(300)]
        jobs = client.jobs(limit=1000)
        assert len(jobs) == 300  # a submit that was made again is the same one
    assert all(one.levelname == "WARNING" and one.exc_info is None for one in caplog.records if one.name.startswith("ostler"))


def test_the_coordinator_is_away_while_calls_are_submitted(own_fleet):
    fleet = own_fleet(slots=4, settings=SOON).start()
    with ostler.Client(fleet.url, token=fleet.token) as client, ostler.Executor(client) as ex:
        assert ex.submit(calls.square, 2).result(60) == 4
        fleet.kill("coordinator")
        futures = [ex.submit(calls.square, n) for n in range(50)]
        job = client.submit(["echo", "later"])  # waits for it to be there again
        assert [one.result(60) for one in futures] == [n * n for n in range(50)]
        assert job.result(60).state == "done"
        assert len(client.jobs(limit=1000)) == 52


def test_a_node_is_killed_in_the_middle_of_a_map(own_fleet):
    """Its calls run again on the other one, once its lease is over."""
    with (
        own_fleet(slots=2, settings={"OSTLER_COORDINATOR__LEASE": "6s", "OSTLER_COORDINATOR__HEARTBEAT": "1s"}) as fleet,
        fleet.join("second") as second,
        ostler.Client(fleet.url, token=fleet.token) as client,
        ostler.Executor(client) as ex,
    ):
        futures = [ex.submit(calls.slow_square, n) for n in range(100)]
        until(lambda: any(one.node_id == "second" for one in client.jobs(limit=200, state="done")), what="work on both nodes")
        second.kill()
        assert [one.result(120) for one in futures] == [n * n for n in range(100)]


def test_a_coordinator_that_was_never_there(tmp_path):
    with pytest.raises(ostler.CoordinatorUnreachable), ostler.Client("http://127.0.0.1:1", token="x") as client:
        ostler.Executor(client)
    with pytest.raises(ostler.Rejected, match="not the URL"):
        ostler.Client("nowhere")


def test_a_token_that_is_none(two):
    with ostler.Client(two.url, token="wrong") as client, pytest.raises(ostler.Rejected):
        ostler.Executor(client)


def test_patience_ends(own_fleet):
    with own_fleet(slots=1) as fleet, ostler.Client(fleet.url, token=fleet.token, patience_s=0.5) as client:
        job = client.submit(["sleep", "600"])
        fleet.stop()
        with pytest.raises(ostler.CoordinatorUnreachable):
            job.result(60)


# --- jobs ---


def test_a_command_from_start_to_end(client, tmp_path):
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    job = client.submit(
        ["sh", "-c", "cat words.txt more > out.txt; echo said; echo no >&2"],
        inputs={"words.txt": tmp_path / "words.txt", "more": b"three\n"},
        artifacts=["out.txt"],
        labels={"kind": "test"},
        timeout_s=30,
    )
    view = job.result(60)
    assert (view.state, view.exit_code, view.labels) == ("done", 0, {"kind": "test"})
    assert (job.logs(), job.logs("stderr")) == ("said\n", "no\n")
    assert [one.path for one in job.artifacts()] == ["out.txt"]
    [out] = job.download(tmp_path / "got")
    assert out.read_text() == "one\ntwo\nthree\n"
    again = client.job(job.job_id)
    assert again.done() or again.result(10)
    assert again.result(10).state == "done"
    with pytest.raises(ostler.InvalidSpec, match="no such artifact"):
        job.download(tmp_path, "other")


def test_a_failed_job_is_an_exception_where_its_result_is_asked_for(client):
    job = client.submit(["sh", "-c", "exit 7"])
    with pytest.raises(ostler.JobFailed, match="E_EXIT") as caught:
        job.result(60)
    assert (caught.value.code, caught.value.job.exit_code, caught.value.job_id) == ("E_EXIT", 7, job.job_id)
    assert isinstance(job.exception(), ostler.JobFailed)
    assert job.job.state == "failed"


def test_jobs_are_futures_too(client):
    jobs = client.submit_many({"command": "sh", "args": ["-c", f"exit {n % 2}"], "retries": 0} for n in range(10))
    done, _ = concurrent.futures.wait(jobs, timeout=60)
    assert sum(one.exception() is None for one in done) == 5
    seen = threading.Event()
    jobs[0].add_done_callback(lambda one: seen.set())
    assert seen.wait(10)


def test_a_job_may_have_several_futures(client, ex):
    first = client.submit(["sleep", "1"])
    others = [client.job(first.job_id) for _ in range(2)]
    assert [one.result(60).state for one in (first, *others)] == ["done"] * 3
    call = ex.submit(calls.slow_square, 3, 600)
    until(lambda: call.job_id in {one.job_id for one in client.jobs(state=NOT_OVER)}, what="it is there")
    watched = client.job(call.job_id)
    assert call.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        watched.result(60)


async def test_a_closed_client_takes_nothing(two):
    client = ostler.AsyncClient(two.url, token=two.token)
    await client.jobs(limit=1)
    await client.close()
    for call in (client.submit(["true"]), client.jobs()):
        with pytest.raises(ostler.Rejected, match="this client is closed"):
            await call


def test_a_callback_that_leaves_the_program_ends_no_other_future(client):
    job = client.submit(["true"])
    job.add_done_callback(lambda _: sys.exit(3))
    assert client.submit(["true"]).result(60).state == "done"
    assert client.submit(["true"]).result(60).state == "done"


def test_a_job_is_cancelled(client):
    job = client.submit(["sleep", "600"])
    assert job.cancel("no longer wanted")
    with pytest.raises(concurrent.futures.CancelledError):
        job.result(60)
    assert job.cancelled()
    assert not job.cancel()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"command": "echo hi"}, "a command is a list of words"),
        ({"command": []}, "is empty"),
        ({"command": 5}, "is of the type int"),
        ({"command": b"true"}, "is of the type bytes"),
        ({"command": ["echo", None]}, r"command\[1\]: is of the type NoneType"),
        ({"command": ["echo"], "args": ["x"]}, "stand in the command"),
        ({"command": ["true"], "artifacts": "out.txt"}, "are a list of paths"),
        ({"command": ["true"], "inputs": ["words.txt"]}, "map names to files"),
        ({"command": ["true"], "inputs": {"x": 5}}, "5 is neither a file nor bytes"),
        ({"command": ["true"], "inputs": {"x": "/dev/zero"}}, "is not a regular file"),
        ({"command": ["true"], "retrys": 3}, "did you mean `retries`"),
        ({"command": ["true"], "array": 3}, "submit_many"),
        ({"command": ["true"], "inputs": {"x": "/no/such/file"}}, "No such file"),
        ({"command": ["true"], "task": "x"}, "belongs to the python runner"),
        ({}, "command"),
    ],
)
def test_mistakes_are_told(client, arguments, said):
    with pytest.raises(ostler.InvalidSpec, match=said):
        client.submit(**arguments)


def test_what_is_of_another_kind_is_told(client, tmp_path):
    for arguments, said in (
        ({"url": tmp_path}, "url: must be text, not PosixPath"), ({"token": tmp_path}, "token: must be text"),
        ({"token": b"x"}, "not bytes"), ({"url": "https://a", "ca_file": 3}, "ca_file: must be a path, not int"),
    ):  # fmt: skip
        with pytest.raises(ostler.InvalidSpec, match=said):
            ostler.Client(**{"url": "http://127.0.0.1:9", "token": "x", **arguments})
    with pytest.raises(ostler.InvalidSpec, match="5 is no manifest"):
        client.submit_many([{"command": "true"}, 5])
    for patience_s in (float("nan"), -1, "5", None, True):
        with pytest.raises(ostler.InvalidSpec, match="patience_s: must be seconds"):
            ostler.Client("http://127.0.0.1:9", token="x", patience_s=patience_s)
    with pytest.raises(ostler.InvalidSpec, match="job_id: is the executor's own"):
        ostler.Executor(client, job_id="mine")
    with pytest.raises(ostler.InvalidSpec, match=r"must be an ostler\.Client, not str"):
        ostler.Executor("http://127.0.0.1:9")


def test_what_is_not_there(client):
    with pytest.raises(ostler.NotFound):
        client.job("nothing-of-that-name")


async def test_the_same_in_an_event_loop(two, tmp_path):
    async with ostler.AsyncClient(two.url, token=two.token) as client:
        job = await client.submit(task="product", params={"a": 6, "b": 7}, artifacts=["product.txt"])
        assert (await job).state == "done"
        assert await job.logs() == "product 42\n"
        [file] = await job.download(tmp_path)
        assert file.read_text() == "42"
        jobs = await client.submit_many([{"command": "sh", "args": ["-c", f"exit {n}"], "retries": 0} for n in range(3)])
        ends = await asyncio.gather(*(one.exception() for one in jobs))
        assert [type(one) for one in ends] == [type(None), ostler.JobFailed, ostler.JobFailed]
        seen = asyncio.Event()
        (await client.submit(["true"])).add_done_callback(lambda one: seen.set())
        await asyncio.wait_for(seen.wait(), 60)
        long = await client.submit(["sleep", "600"])
        with pytest.raises(TimeoutError):
            await long.result(timeout=0.05)
        assert not long.done()
        assert await long.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            await long.result(60)
        assert long.cancelled()


def test_an_idle_client_is_cheap_and_closes(two):
    before = threading.active_count()
    with ostler.Client(two.url, token=two.token) as client:
        assert client.submit(["true"]).result(60)
    assert threading.active_count() == before
    client.close()
    with pytest.raises(ostler.Rejected, match="closed"):
        client.jobs()
    with ostler.Client(two.url, token=two.token) as client:
        long = client.submit(["sleep", "60"])
    with pytest.raises(ostler.Rejected, match="closed while the job was waited for"):
        long.result(10)
    with ostler.Client(two.url, token=two.token) as client:
        assert client.job(long.job_id).cancel()


def test_behind_a_fork_a_client_is_refused_and_the_connection_stays_the_parents(two):
    with ostler.Client(two.url, token=two.token) as client:
        assert client.submit(["true"]).result(60)
        child = os.fork()
        if child == 0:
            said = ""
            try:
                client.close()
                client.submit(["true"])
            except ostler.Rejected as exc:
                said = exc.hint or ""
            finally:
                os._exit("behind the fork" not in said)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.submit(["true"]).result(60)


def test_the_package_stays_cheap_to_import():
    """Daemons, keepers and workers import it, too."""
    code = (
        "import sys; import ostler; print(sorted(one for one in sys.modules if one.startswith(('ostler.', 'httpx', 'asyncio'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert {"Client", "AsyncClient", "Executor"} <= set(dir(ostler))
    with pytest.raises(AttributeError):
        _ = ostler.nothing


def test_a_program_that_ends_without_a_shutdown_leaves_its_calls_to_the_fleet(two, client):
    done = program(
        two,
        """
        import ostler
        print([ostler.Executor().submit("calls:slow_square", n, 0.5).job_id for n in range(3)][-1])
        """,
    )
    assert client.job(done.stdout.strip()).result(60).state == "done"


def test_a_network_that_loses_connections(two):
    """Frozen, cut and refused in the middle of a map and of submits: all results come, each job was submitted once."""
    way = Way(int(two.url.rpartition(":")[2]))
    try:
        with ostler.Client(way.url, token=two.token) as client, ostler.Executor(client) as ex:
            before = len(client.jobs(limit=20_000))
            results = ex.map(calls.slow_square, range(200))
            came = [next(results) for _ in range(20)]
            way.freeze()
            late = [ex.submit(calls.square, n) for n in range(20)]  # swallowed on its way, or its answer is
            assert not late[-1].done()
            way.cut()
            late.append(ex.submit(calls.square, 20))  # refused
            way.mend()
            for _ in range(3):
                came += [next(results) for _ in range(20)]
                way.cut()
                way.mend()
            assert came + list(results) == [n * n for n in range(200)]
            assert [one.result(120) for one in late] == [n * n for n in range(21)]
            assert len(client.jobs(limit=20_000)) == before + 221
    finally:
        way.close()


@pytest.mark.parametrize("job_id", [None, "mine"])
def test_a_submission_whose_answer_is_lost_is_made_once(two, job_id):
    name = job_id and f"{job_id}-{os.urandom(4).hex()}"
    with LossyProxy(two.url, losses=0) as proxy, ostler.Client(proxy.url, token=two.token) as client:
        before = len(client.jobs(limit=20_000))
        proxy.losses = 1
        job = client.submit(["echo", "once"], job_id=name)
        assert proxy.submissions == 2
        assert job.result(60).state == "done"
        assert job.logs() == "once\n"
        if name:
            with pytest.raises(ostler.OstlerError, match="exists already"):
                client.submit(["echo", "another"], job_id=name)
        proxy.losses = 1
        more = client.submit_many([{"command": "true", **({"job_id": f"{name}-2"} if name else {})}, {"command": "true"}])
        assert [one.result(60).state for one in more] == ["done", "done"]
        assert len(client.jobs(limit=20_000)) == before + 3


def test_a_submission_that_fills_the_quota_is_not_refused_when_its_answer_was_lost(two):
    token = two.cli("token", "create", "--role", "submitter", "--name", "bob").stdout.strip()
    assert two.cli("quota", "set", "bob", "--queued", "1").returncode == 0
    nowhere = {"requirements": {"tags": ["nowhere"]}}
    with LossyProxy(two.url, losses=1) as proxy, ostler.Client(proxy.url, token=token) as client:
        client.jobs()  # it has met the coordinator: from now on a lost answer is waited for
        job = client.submit(["true"], **nowhere)
        assert proxy.submissions == 2
        with pytest.raises(ostler.Rejected, match="1 of 1 jobs waiting"):
            client.submit(["true"], **nowhere)
        assert [one.job_id for one in client.jobs(state="queued")] == [job.job_id]
        assert job.cancel()


def test_a_submitter_reaches_its_own(two):
    token = two.cli("token", "create", "--role", "submitter", "--name", "ann").stdout.strip()
    with ostler.Client(two.url, token=token) as client, ostler.Executor(client) as ex:
        future = ex.submit(calls.square, 5)
        assert future.result(60) == 25
        assert [one.job_id for one in client.jobs()] == [future.job_id]
