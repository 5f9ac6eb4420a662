"""A coordinator that lets each caller ask little: commands wait as they are told, and jobs run."""

from e2e.fleet import Fleet


def test_commands_come_back_when_they_are_told_to(tmp_path):
    settings = {"OSTLER_COORDINATOR__LIMITS__CALLS_PER_S": "2", "OSTLER_COORDINATOR__LIMITS__BURST": "40"}
    with Fleet(tmp_path / "data", settings=settings) as fleet:
        for _ in range(60):
            if fleet.http.get("/jobs").status_code == 429:
                break
        else:
            raise AssertionError("there was no limit")
        for words in (("job", "list"), ("token", "create", "--join"), ("run", "--", "echo", "hi")):
            done = fleet.cli(*words)
            assert done.returncode == 0, done.stderr
        assert done.stdout == "hi\n"
        page = fleet.http.get(f"{fleet.url}/metrics").text
        assert 'ostler_refused_calls_total{reason="calls"} 0.0' not in page
        assert 'ostler_refused_calls_total{reason="calls"}' in page
