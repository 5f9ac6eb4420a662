"""Arrays through the installed command line: real jobs, their numbers, their end, and the codes that stand for them."""

import json

import pytest

from e2e.fleet import until


def submit(fleet, manifest, *options):
    return fleet.cli("job", "submit", *options, "-", stdin=json.dumps(manifest))


def script(text, **fields):
    return {"command": "sh", "args": ["-c", text], **fields}


def counts(fleet, group_id):
    return json.loads(fleet.cli("job", "show", group_id, "--json").stdout)["counts"]


def test_each_job_knows_its_number(fleet):
    text = "echo {index} $OSTLER_ARRAY_INDEX of $OSTLER_ARRAY_COUNT; cat in"
    done = submit(
        fleet,
        script(
            text, job_id="numbers", array=3, stdout="out-{index}.txt", artifacts=[{"path": "out-{index}.txt"}],
            input={"inline": {"in": "kept {index}\n"}},
        ),
        "--wait",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "array numbers: 3 jobs\n"), done.stderr
    for index in range(3):
        said = f"{index} {index} of 3\nkept {{index}}\n"
        assert fleet.cli("job", "logs", f"numbers-{index}").stdout == said
        assert fleet.get(f"/jobs/numbers-{index}/artifacts/out-{index}.txt").text == said
    listed = json.loads(fleet.cli("job", "list", "--group", "numbers", "--json").stdout)["items"]
    assert [one["job_id"] for one in listed] == ["numbers-2", "numbers-1", "numbers-0"]
    page = fleet.cli("job", "show", "numbers").stdout
    assert "jobs       3: 3 done\n" in page
    assert "array      numbers\n" in fleet.cli("job", "show", "numbers-1").stdout


def test_a_python_task_of_an_array(fleet):
    done = submit(fleet, {"runner": "python", "task": "number", "params": {"text": "no {index}:"}, "array": 2}, "--wait")
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[1].rstrip(":")
    assert [fleet.cli("job", "logs", f"{name}-{index}").stdout for index in range(2)] == ["no 0: 0 2\n", "no 1: 1 2\n"]


@pytest.mark.parametrize(
    ("text", "code", "counted"),
    [
        ("exit 0", 0, {"done": 4}),
        ("exit $(( {index} * ({index} > 1) ))", 2, {"done": 2, "failed": 2}),  # of the first that failed, in their order
        ("if [ {index} = 1 ]; then kill -9 $$; fi", 137, {"done": 3, "failed": 1}),
    ],
)
def test_the_code_of_an_array(fleet, text, code, counted):
    done = submit(fleet, script(text, array=4))
    name = done.stdout.split()[1].rstrip(":")
    done = fleet.cli("job", "wait", name)
    assert done.returncode == code, done.stderr
    assert counts(fleet, name) == counted
    if code:
        assert f"array {name} is failed: {counted['done']} done, {counted['failed']} failed" in done.stderr
        failed = [line.split()[0] for line in fleet.cli("job", "show", name).stdout.splitlines() if line.startswith(f"{name}-")]
        assert len(failed) == counted["failed"]
    assert json.loads(fleet.cli("job", "wait", name, "--json").stdout)["counts"] == counted


def test_a_program_that_ended_well_and_left_nothing_has_no_code(fleet):
    done = submit(fleet, script("exit 0", array=2, artifacts=[{"path": "none-{index}"}]), "--wait")
    assert done.returncode == 125, done.stderr
    assert "E_OUTPUT: the artifact 'none-0' is missing" in done.stderr


def test_cancel_of_a_half_done_array(fleet):
    done = submit(fleet, script("if [ {index} -gt 2 ]; then sleep 100; fi", job_id="half", array=40))
    assert done.stdout == "array half: 40 jobs\n"
    until(lambda: (now := counts(fleet, "half")).get("done") == 3 and now.get("running") == fleet.slots, what="half of the array")
    assert fleet.cli("job", "wait", "--timeout", "50ms", "half").returncode == 124
    done = fleet.cli("job", "cancel", "--reason", "enough", "half")
    assert (done.returncode, done.stdout) == (0, "half is being cancelled\n")
    done = fleet.cli("job", "wait", "half")
    assert done.returncode == 125, done.stderr
    assert "array half is cancelled: 3 done, 37 cancelled\n" in done.stderr
    assert fleet.cli("job", "cancel", "half").stdout == "half is cancelled\n"
    assert fleet.cli("job", "cancel", "numbers-none").returncode == 3
    assert "is cancelled" not in fleet.cli("job", "show", "half-0").stdout


def test_what_is_misused_is_told(fleet):
    assert submit(fleet, script("true", job_id="told", array=2), "--wait").returncode == 0
    for words, said in (
        (["job", "logs", "told"], "told is an array of jobs and no job: this is for one of told-0 to told-1"),
        (["job", "hold", "told"], "told is an array of jobs"),
        (["job", "cancel", "told"], "group told is done: cancel is not possible"),
        (["job", "show", "told-2"], "there is no job told-2"),
        (["job", "wait", "nope"], "there is no job nope"),
        (["job", "cancel", "nope"], "there is no job nope"),
    ):
        done = fleet.cli(*words)
        assert (done.returncode, done.stdout) == (3, ""), words
        assert said in done.stderr
    done = submit(fleet, {"command": "true", "array": 10_001})
    assert (done.returncode, done.stdout) == (3, "")
    assert "array: must be from 1 to 10000" in done.stderr
    done = submit(fleet, {"command": "true", "array": 9, "artifacts": [{"path": "{index}"}, {"path": "8"}]})
    assert "<stdin>:1: artifacts[1].path: '8' stands twice (in job 8 of the array)" in done.stderr
    done = submit(fleet, [{"command": "true", "job_id": "free"}, {"command": "true", "job_id": "told-1"}])
    assert "job told-1 exists already; nothing was submitted" in done.stderr
    assert fleet.cli("job", "show", "free").returncode == 3
    assert submit(fleet, {"command": "true", "job_id": "told"}).returncode == 3
