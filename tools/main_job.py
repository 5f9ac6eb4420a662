"""The main job: a real video is transcoded on a node through a coordinator, from nothing to a checked file and a table."""

import argparse
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import imageio_ffmpeg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ostler.model.errors import OstlerError
from ostler.protocol import messages, routes
from ostler.protocol.client import Client

ROOT = Path(__file__).resolve().parent.parent
OSTLER = Path(sys.executable).with_name("ostler")
DATA = ROOT / "var" / "demo"
SECONDS = 10
STATES = {
    "submit": "queued", "lease": "leased", "ack": "acked", "prepare": "preparing", "start": "running", "upload": "uploading",
    "retry": "retry_wait", "due": "queued", "return": "queued",
}  # fmt: skip
console = Console(highlight=False, soft_wrap=True)  # the terminal wraps, and a command stays whole for copying


def say(text: str) -> None:
    """One step, for the person who watches."""
    console.print(f"==> {text}")


def make_video(ffmpeg: str, path: Path) -> None:
    """A moving test picture with a tone, from ffmpeg's own sources."""
    picture = f"testsrc=duration={SECONDS}:size=640x360:rate=25"
    tone = f"sine=frequency=440:duration={SECONDS}"
    argv = [ffmpeg, "-v", "error", "-y", "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone]
    subprocess.run([*argv, "-c:v", "mpeg4", "-q:v", "4", "-c:a", "aac", str(path)], check=True)


def duration_s(ffmpeg: str, path: Path) -> float:
    """How long a video plays; 0 where ffmpeg cannot tell."""
    shown = subprocess.run([ffmpeg, "-hide_banner", "-i", str(path)], capture_output=True, text=True, check=False).stderr
    found = re.search(r"Duration: (\d+):(\d+):([\d.]+)", shown)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else 0.0


def start() -> tuple[subprocess.Popen[str], str, str]:
    """`ostler up` on a directory of its own: the process, its URL and the token."""
    DATA.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [OSTLER, "up", "--data", DATA, "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OSTLER_PROFILE": str(DATA / "user.yaml")},  # the user's own names nothing that is gone in a minute
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready "):
            return process, line.split()[1], (DATA / "admin.token").read_text().strip()
        console.print(f"    {line.rstrip()}", style="dim")
    raise SystemExit("ostler up did not get ready; its messages stand above, its logs in var/demo/log")


def stop(process: subprocess.Popen[str]) -> None:
    """Stop what `start` started."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
        return
    process.kill()


def follow(client: Client, job_id: str, length_s: float) -> messages.JobView:
    """Show the log as progress until the job is over: ffmpeg prints `out_time_us=N` and what it says on stderr."""
    columns = (TextColumn("    {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    offsets = {"stdout": 0, "stderr": 0}
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("queued", total=length_s or None)
        while True:
            view: messages.JobView = client.call(routes.AWAIT_JOB, job_id=job_id, query=messages.WaitQuery(wait_s=0.3))
            for stream, offset in tuple(offsets.items()):
                query = messages.LogQuery(stream=stream, offset=offset)
                with client.download(routes.READ_LOG, job_id=job_id, query=query) as answer:
                    data = b"".join(answer.blocks())
                offsets[stream] = offset + len(data)
                for line in data.decode(errors="replace").splitlines():
                    if stream == "stderr" and line.startswith(("Input #", "Output #", "  Stream #", "frame=")):
                        progress.console.print(f"    {line.strip()[:100]}", style="dim", markup=False)
                    if found := re.fullmatch(r"out_time_us=(\d+)", line):
                        progress.update(bar, completed=int(found[1]) / 1e6)
            progress.update(bar, description=view.state.value)
            if view.finished_at is not None:
                if view.state.value == "done":
                    progress.update(bar, completed=length_s, description="done")
                return view


def times(view: messages.JobView) -> list[tuple[str, float]]:
    """(state, seconds) for each state that the job was in, in order."""
    spent: dict[str, float] = {}
    for event, after in itertools.pairwise(view.timeline):
        if state := STATES.get(event.kind):
            spent[state] = spent.get(state, 0.0) + (after.at - event.at).total_seconds()
    return list(spent.items())


def report(view: messages.JobView, output: Path | None, facts: messages.ArtifactEntry | None) -> None:
    """The table: who did it, how long each state took, what it used, what came out."""
    last = view.attempts[-1] if view.attempts else None
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("job", view.job_id)
    if last:
        table.add_row("node", last.node_id)
        table.add_row("attempt", f"{last.attempt} (sandbox: {last.sandbox or 'unknown'})")
    table.add_row("state", ", ".join(f"{state} {seconds:.2f} s" for state, seconds in times(view)) + f" → {view.state.value}")
    if last and last.usage:
        use = last.usage
        table.add_row("stages", f"prepare {use.prepare_s:.2f} s, run {use.wall_s:.2f} s, upload {use.upload_s:.2f} s")
        table.add_row("peak memory", f"{use.peak_memory_mb:.0f} MB")
        table.add_row(
            "CPU", f"{use.cpu_user_s + use.cpu_system_s:.2f} s ({use.cpu_user_s:.2f} user, {use.cpu_system_s:.2f} system)"
        )
    table.add_row("exit", "–" if view.exit_code is None else str(view.exit_code))
    if view.failure:
        table.add_row("failure", f"{view.failure.code.value}: {view.failure.message}")
    if output and facts:
        table.add_row("output", f"{output.relative_to(ROOT)}, {facts.size:,} bytes")
        table.add_row("sha256", facts.sha256)
    console.print(table)


def transcode(client: Client, ffmpeg: str, video: Path) -> int:
    """Submit, follow, download, check, report."""
    length_s = duration_s(ffmpeg, video)
    name = "input" + (video.suffix.lower() if video.suffix.lower() in {".mp4", ".mkv", ".wav"} else ".mp4")
    say(f"uploading {video.name} ({video.stat().st_size / 1e6:.1f} MB, {length_s:.0f} s)")
    blob = client.upload(routes.UPLOAD_BLOB, video)
    args = ["-y", "-i", name, "-c:v", "libx264", "-c:a", "aac", "-b:v", "800k", "-progress", "pipe:1", "output.mp4"]
    manifest = {
        "runner": "cli",
        "command": "ffmpeg",
        "args": args,
        "timeout_s": 3600,
        "input": {"files": [{"name": name, "sha256": blob.sha256, "size": blob.size}]},
        "artifacts": [{"path": "output.mp4", "type": "video/mp4", "max_mb": 5000}],
        "labels": {"demo": "transcode"},
    }
    job_id = client.call(routes.SUBMIT, manifest).items[0].job_id
    say(f"submitted {job_id}: ffmpeg {' '.join(args)}")
    follow(client, job_id, length_s)
    view: messages.JobView = client.call(routes.SHOW_JOB, job_id=job_id)
    if view.state.value != "done":
        report(view, None, None)
        return 1
    facts = next(one for one in view.artifacts if one.path == "output.mp4")
    output = DATA / "output.mp4"
    digest = hashlib.sha256()
    with client.download(routes.GET_ARTIFACT, job_id=job_id, path="output.mp4") as answer, output.open("wb") as file:
        for block in answer.blocks():
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != facts.sha256:
        say(f"output.mp4 arrived with sha256 {digest.hexdigest()}, not {facts.sha256}")
        return 1
    say("downloaded output.mp4 and compared its sha256; decoding it whole")
    checked = subprocess.run(
        [ffmpeg, "-v", "error", "-i", output, "-f", "null", "-"], capture_output=True, text=True, check=False
    )
    if checked.returncode or checked.stderr:
        say(f"output.mp4 does not decode: {checked.stderr.strip()[:300]}")
        return 1
    report(view, output, facts)
    return 0


def main() -> int:
    """From nothing to a checked video."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, help="a video of yours instead of the test picture")
    args = parser.parse_args()
    if args.video and not args.video.is_file():
        say(f"there is no file {args.video}")
        return 2
    begin = time.monotonic()
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    DATA.mkdir(parents=True, exist_ok=True)
    video = args.video or DATA / "input.mp4"
    if not args.video and not video.exists():
        say(f"making a {SECONDS}-second video with sound")
        make_video(ffmpeg, video)
    say("starting coordinator, node and keeper (state in var/demo)")
    process, url, token = start()
    say(f"ready at {url}")
    try:
        with Client(url, token=token) as client:
            code = transcode(client, ffmpeg, video)
    except OstlerError as exc:
        say(str(exc))
        code = 1
    except KeyboardInterrupt:
        say("stopping")
        code = 130
    finally:
        stop(process)
    if code == 0:
        say(f"all of it in {time.monotonic() - begin:.1f} s; everything that was started is stopped")
        ostler = shutil.which("ostler") or OSTLER.relative_to(ROOT)
        console.print("\nTry next:")
        console.print(
            f"  make run VIDEO=/path/to/your.mp4\n  {ostler} up                                # your own set, in another terminal"
        )
        console.print(
            f"  {ostler} run -- echo hello world            # then: {ostler} job list, {ostler} node list, {ostler} doctor"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
