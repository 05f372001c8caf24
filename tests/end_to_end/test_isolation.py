"""What runs keep from others: secrets, sockets, files. Real runs, planted secrets, hostile links and masks."""

import fcntl
import ipaddress
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.escaping import slug
from gpt_parallel.bench import runner
from gpt_parallel.bench.environment import RECORDED_VARIABLES, describe_environment
from gpt_parallel.bench.suite import Suite
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.cli.common import make_writable
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import claims, fork_server, local, run_directory
from gpt_parallel.launch.claims import claim_cores
from gpt_parallel.layout.strategies import STRATEGIES, Strategy
from gpt_parallel.report.render import write_report
from gpt_parallel.report.saved_run import load_run
from gpt_parallel.schema.fault import FaultSpec
from gpt_parallel.schema.run import MeshSpec
from tests.support import mutants, warm
from tests.support.factories import bench, document, rank_report, run_result, run_spec
from tests.support.paths import ROOT
from tests.support.processes import environment, ranks_alive

SMOKE = {"num_iterations": 1, "device": "cpu", "verify": False}


# Secrets


class Planted:
    """A user's environment: a home directory with a model and the hub's token in it, and secrets in variables."""

    def __init__(self, home: Path, make_checkpoint) -> None:
        self.home = home
        self.model = make_checkpoint(home / "models" / "mine", n_head=4, vocab_size=300, n_positions=128)
        (home / "token").write_text("token-of-the-hubs-file\n")
        self.secrets = {
            "HF_TOKEN": "token-of-the-environment",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
            "https_proxy": "http://user:pr0xy-s3cret@proxy:3128",
        }
        self.environment = environment(HOME=str(home), HF_TOKEN_PATH=str(home / "token"), **self.secrets)
        self.environment["PYTHONPATH"] = str(ROOT)

    def found_in(self, text: str) -> list[str]:
        """What of all that the text gives away."""
        planted = [str(self.home), "token-of-the-hubs-file", *self.secrets.values(), "pr0xy-s3cret"]
        return [text[max(0, text.find(item) - 80) : text.find(item) + 120] for item in planted if item in text]

    def assert_kept(self, done, *directories) -> None:
        """Nothing was printed, and nothing lies in these directories."""
        assert self.found_in(done.stdout + done.stderr) == []
        files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
        assert files
        given_away = {path: self.found_in(path.read_bytes().decode(errors="replace")) for path in files}
        assert {path.name: found for path, found in given_away.items() if found} == {}

    def run(self, program, *arguments, cwd, **changes):
        command = [str(Path(sys.executable).parent / program), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=self.environment | changes, capture_output=True, text=True, timeout=200
        )


@pytest.fixture
def planted(make_tiny_checkpoint, tmp_path):
    return Planted(tmp_path / "home" / "me", make_tiny_checkpoint)


@pytest.fixture
def work(tmp_path):
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def test_a_run_gives_no_secret_away(planted, work):
    """Not even the paths that its user gave: a log of CI is read by many. `~` serves as well in a shell."""
    out = planted.home / "out"

    done = planted.run(
        *("gpt-parallel", "run", "--preset", "smoke", "--device", "cpu", "--num-iterations", "1", "--debug"),
        *("--strategy", "tensor_data_hybrid", "--num-gpus", "2", "--model", planted.model, "--weights", "checkpoint"),
        *("--log-file", work / "debug.log", "--output-dir", out, "--profile", out / "profile"),
        cwd=work,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["weights_origin"] == "checkpoint ~/models/mine"
    assert result["spec"]["execution"]["profile"] == "~/out/profile"
    assert "result: ~/out/result.json" in done.stdout
    planted.assert_kept(done, work, out)


def test_pytest_gives_no_secret_away(planted, work):
    done = planted.run(
        *("pytest", ROOT / "benchmarks", "-c", ROOT / "pytest.ini", "--rootdir", work, "-p", "no:cacheprovider"),
        *("--gpt-preset", "smoke", "--gpt-device", "cpu", "--gpt-num-iterations", "1", "-k", "2gpu and pure"),
        *("--gpt-model", planted.model, "--gpt-weights", "checkpoint", "--gpt-report", "report"),
        *("--benchmark-json", "out.json", "-v"),
        cwd=work,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((work / "out.json").read_text())["benchmarks"][0]["extra_info"]["weights"].endswith(
        " ~/models/mine"
    )
    assert (work / "report" / "report.html").is_file()
    planted.assert_kept(done, work)


@pytest.mark.parametrize("program", ["gpt-parallel", "pytest"])
def test_a_failed_run_s_logs_give_no_secret_away(planted, work, program):
    """Its rank prints the whole environment and fails with a token in its message."""
    arguments = {
        "gpt-parallel": (
            *("run", "--preset", "smoke", "--device", "cpu", "--num-iterations", "1", "--no-verify", "--debug"),
            *("--strategy", "pure_data_parallel", "--num-gpus", "2", "--model", planted.model, "--log-dir", "logs"),
        ),
        "pytest": (
            *(ROOT / "benchmarks", "-c", ROOT / "pytest.ini", "--rootdir", work, "-p", "no:cacheprovider"),
            *(
                "-p",
                "tests.support.mutants",
                "--gpt-preset",
                "smoke",
                "--gpt-device",
                "cpu",
                "--gpt-no-verify",
                "-k",
                "2gpu and pure",
            ),
            *("--gpt-model", planted.model, "--gpt-log-dir", "logs", "--gpt-report", "report"),
            *("--benchmark-json", "out.json"),
        ),
    }[program]
    starter = work / "start.py"
    starter.write_text(
        "from tests.support import mutants; mutants.pytest_configure()\nfrom gpt_parallel.cli import main; main()\n"
    )
    changes = {mutants.VARIABLE: mutants.print_environment_and_fail_with_a_token.__name__}

    if program == "pytest":
        done = planted.run(program, *arguments, cwd=work, **changes)
    else:
        done = planted.run("python", starter, *arguments, cwd=work, **changes)

    assert done.returncode == 1, done.stdout + done.stderr
    told = done.stdout + done.stderr
    (log,) = (work / "logs").rglob("rank_1.log")
    for text in (told, log.read_text()):
        assert re.search(r"PermissionError: .*token '?\*\*\*", text)
        assert "'AWS_SECRET_ACCESS_KEY': '***'" in text
    starter.unlink()
    planted.assert_kept(done, work)


def test_doctor_gives_no_secret_away(planted, work):
    for arguments in ((), ("--json",)):
        done = planted.run(
            *("gpt-parallel", "doctor", "--no-self-test", "--device", "cpu", "--model", planted.model, *arguments),
            *("--output-dir", planted.home / "out"),
            cwd=work,
            TMPDIR=str(planted.home),
        )
        assert planted.found_in(done.stdout + done.stderr) == []
        assert "~" in done.stdout


def test_every_module_logs_where_it_is_redacted():
    calls = [re.findall(r"getLogger\((.*?)\)", path.read_text()) for path in (ROOT / "gpt_parallel").rglob("*.py")]

    assert {argument for found in calls for argument in found} == {'"gpt_parallel"'}


def test_results_have_listed_variables_and_no_other(monkeypatch, tmp_path):
    for name in RECORDED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("LD_PRELOAD", f"{tmp_path}/lib/libjemalloc.so")
    monkeypatch.setenv("NCCL_SOMETHING_NEW", "1")
    monkeypatch.setenv("OMP_NUM_THREADS_", "1")

    found = describe_environment([rank_report()]).variables

    assert found == {"NCCL_ALGO": "Ring", "LD_PRELOAD": "~/lib/libjemalloc.so"}
    assert all(name == name.upper() and "*" not in name for name in RECORDED_VARIABLES)


# Sockets


def listening_addresses(pid):
    """The addresses on which a process listens, of all interfaces: `/proc/PID/net/tcp{,6}` with its own sockets."""
    own = {link.removeprefix("socket:[").rstrip("]") for link in _open_files(pid) if link.startswith("socket:[")}
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local_address, _, state, *_ = columns = row.split()
            if state == "0A" and columns[9] in own:
                yield _address(local_address.split(":")[0])


def _open_files(pid):
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile, as the listing itself
            yield os.readlink(f"/proc/{pid}/fd/{descriptor}")


def _address(text):
    """The kernel writes addresses as 32-bit words in the machine's byte order."""
    words = [int(text[index : index + 8], 16).to_bytes(4, sys.byteorder) for index in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestSockets:
    def test_a_socket_that_is_open_to_others_would_be_seen(self):
        with socket.socket() as inside, socket.socket() as outside, socket.socket(socket.AF_INET6) as all_of_them:
            inside.bind(("127.0.0.1", 0))
            outside.bind(("0.0.0.0", 0))
            all_of_them.bind(("::", 0))
            for listener in (inside, outside, all_of_them):
                listener.listen()

            found = {str(address) for address in listening_addresses(os.getpid())}

        assert {"127.0.0.1", "0.0.0.0", "::"} <= found

    @pytest.mark.parametrize("num_gpus", [2, 4])
    @pytest.mark.parametrize("backend", ["shm", "gloo"])
    def test_nothing_listens_where_others_can_reach_it(self, backend, num_gpus):
        """Neither ranks nor the server that forks them nor their launcher; one rank hangs, so that all can be seen."""
        if backend == "shm" and os.uname().machine != "x86_64":
            pytest.skip("shared memory is for x86-64")
        found, last = [], num_gpus - 1
        for fault, phase in (("load", "load weights"), ("decode", "round 1 of 3"), ("finish", "finish")):

            def look(rank, entered, phase=phase):
                if (rank, entered) == (last, phase):
                    server = fork_server._current.pid
                    ranks = _children(server)
                    assert len(ranks) == num_gpus
                    found.append({a for pid in (os.getpid(), server, *ranks) for a in listening_addresses(pid)})
                    raise KeyboardInterrupt

            settings = make_settings("smoke", SMOKE | {"backend": backend, "num_iterations": 3})
            suite = Suite(settings, look, FaultSpec.parse(f"{fault}:{last}:hang"))
            with pytest.raises(KeyboardInterrupt):
                suite.run(suite.spec("full_model_parallel" if num_gpus == 4 else "pipeline_data_hybrid", num_gpus))

        assert [str(address) for addresses in found for address in addresses if not address.is_loopback] == []
        assert [bool(addresses) for addresses in found] == [backend == "gloo"] * 3, "on the loopback interface"

    def test_ranks_of_a_launcher_of_this_machine_do_not_either(self):
        """torchrun's own rendezvous is another matter."""
        found = []

        def look(rank, phase):
            if phase == "round 1 of 1":
                ranks = [process.pid for process in ranks_alive()]
                assert len(ranks) == 2
                found.extend([*listening_addresses(pid)] for pid in (os.getpid(), *ranks))
                raise KeyboardInterrupt

        starter = ROOT / "tests/support/starter.py"
        launcher = {"launcher": f"{sys.executable} {starter} mpirun {{num_gpus}}", "launcher_address": "127.0.0.1:0"}
        suite = Suite(make_settings("smoke", SMOKE | launcher), look)
        with pytest.raises(KeyboardInterrupt):
            suite.run(suite.spec("pipeline_data_hybrid", 2))
        suite.runner.external.close()

        assert [bool(addresses) for addresses in found] == [True] * 3
        assert [str(a) for addresses in found for a in addresses if not a.is_loopback] == []
        assert ranks_alive() == []


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# Devices


@pytest.mark.parametrize("when_busy", ["wait", "refuse", "auto"])
def test_a_launch_claims_its_cores(when_busy, monkeypatch):
    cores, told = (10_000_000 + os.getpid(),), []  # claimed by no other test; no rank is pinned to it
    monkeypatch.setattr(claims, "available_cores", lambda: cores)

    def look(rank, phase):
        told.append(phase)
        raise KeyboardInterrupt

    suite = Suite(make_settings("smoke", SMOKE | {"when_busy": when_busy}), look)
    spec = suite.spec("pure_data_parallel", 1)
    with claim_cores(cores, 1, "refuse", told.append):
        if when_busy == "refuse":
            with pytest.raises(
                SpecError, match=r"1 CPU core\(s\) are needed, but other runs of gpt_parallel leave 0 of"
            ):
                suite.run(spec)
        else:
            with pytest.raises(KeyboardInterrupt):
                suite.run(spec)

    waiting = "waiting for 1 CPU core(s), which other runs of gpt_parallel use"
    sharing = "sharing 1 CPU core(s) with other runs of gpt_parallel, which slows both"
    assert told == {"wait": [waiting], "refuse": [], "auto": [sharing]}[when_busy]


@pytest.mark.parametrize("launcher", [None, "of this machine"])
def test_figures_of_a_launch_on_shared_cores_are_marked(launcher, monkeypatch):
    cores = (10_000_000 + os.getpid(),)
    monkeypatch.setattr(claims, "available_cores", lambda: cores)
    suite = Suite(make_settings("smoke", SMOKE))
    visits = []

    def launch(job, **given):
        for visit in visits:
            with visit:
                pass
        return rank_report(), rank_report(1)

    launched = SimpleNamespace(is_local=True, launch=launch)
    if launcher is None:
        monkeypatch.setattr(runner, "launch", launched.launch)
    else:
        suite.runner.external = launched

    def is_marked():
        ranks = suite.runner.run(suite.spec("pure_data_parallel", 2)).ranks
        case = run_result(run_spec()).model_copy(update={"ranks": ranks})
        unmarked = run_result(run_spec()).model_copy(update={"ranks": (rank_report(), rank_report(1))})
        return [rank.place.shared for rank in ranks] + [summarise([unmarked, case]).shared]

    with claim_cores(cores, 1, "refuse", pytest.fail):
        assert is_marked() == [True] * 3
    assert is_marked() == [False] * 3
    visits.append(claim_cores(cores, 1, "share", str))
    assert is_marked() == [True] * 3, "another run came meanwhile"


# Files


@pytest.fixture
def umask():
    """umask(mask) until the test ends, for ranks too."""
    before = os.umask(0o022)
    with warm.users_server():
        yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o277])
def test_a_run_s_files_are_private_whatever_the_umask(umask, monkeypatch, tmp_path, mask):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    umask(mask)
    modes = {}

    def look(rank, phase):
        for directory in tmp_path.glob("gpt_parallel-run-*"):  # none yet when other runs have the cores
            modes[""] = stat.S_IMODE(directory.stat().st_mode)
            modes.update((path.name, stat.S_IMODE(path.stat().st_mode)) for path in directory.iterdir())

    suite = Suite(make_settings("smoke", SMOKE | {"backend": "gloo"}), look)
    suite.run(suite.spec("pure_data_parallel", 2))

    assert modes.pop("") == 0o700
    assert {"lock", "job.json", "rank_0.log", "rank_1.log"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o600} == {}


def test_a_private_file_is_new_and_private(umask, tmp_path):
    umask(0)
    with run_directory.create_private(tmp_path / "a") as file:
        file.write(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "b")

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    for taken in ("a", "link"):
        with pytest.raises(FileExistsError):
            run_directory.create_private(tmp_path / taken)


def test_what_others_left_is_left_alone(monkeypatch, tmp_path):
    """Neither another user's directory, though its lock is free, nor what a link leads to."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    left, target = tmp_path / "tmp" / "gpt_parallel-run-theirs", tmp_path / "precious"
    for directory in (left, target):
        directory.mkdir(parents=True)
    with run_directory.run_directory() as used:
        for directory in (left, target):
            (directory / "lock").write_bytes((used / "lock").read_bytes())
    (tmp_path / "tmp" / "gpt_parallel-run-link").symlink_to(target)
    own = os.getuid()

    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with run_directory.run_directory():
        assert left.is_dir()
    monkeypatch.setattr(os, "getuid", lambda: own)
    with run_directory.run_directory():
        assert not left.exists()
        assert (target / "lock").is_file()


@pytest.fixture
def left_behind(monkeypatch, tmp_path):
    """left_behind(days, lock) is a run's directory of that age, its lock not yet taken (None: not yet made)."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def left_behind(days, lock, name=".lock"):
        directory = tmp_path / "gpt_parallel-run-killed"
        directory.mkdir(exist_ok=True)
        if lock is not None:
            (directory / name).write_bytes(lock)
        os.utime(directory, (time.time() - days * 86400,) * 2)
        return directory

    return left_behind


@pytest.mark.parametrize("lock", [None, b"", run_directory._host()])
def test_what_a_launcher_left_that_was_killed_before_it_had_its_lock_goes_after_a_day(left_behind, lock):
    there = []
    for days in (0.99, 1.01):
        directory = left_behind(days, lock)
        with run_directory.run_directory():
            there.append(directory.exists())

    assert there == [True, False]


@pytest.mark.parametrize("name", ["lock", ".lock"])
def test_an_old_directory_of_another_host_or_whose_lock_is_held_stays(left_behind, name):
    directory = left_behind(100, b"another host", name)
    with run_directory.run_directory():
        assert directory.exists()

    left_behind(100, run_directory._host(), name)
    with (directory / name).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with run_directory.run_directory():
            assert directory.exists()


@pytest.fixture
def precious(tmp_path):
    """A file that a planted link leads to, and that must stay as it is."""
    path = tmp_path / "precious"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


def test_a_written_file_replaces_a_link(precious, tmp_path):
    for name in ("result.json", "session.jsonl", "rank_0.log"):
        (tmp_path / name).symlink_to(precious)
        write_atomically(tmp_path / name, "new")

        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"


def test_a_report_replaces_links(precious, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(document(bench())))
    paths = write_report([load_run(tmp_path / "run.json")], tmp_path / "report")
    for path in paths:
        path.unlink()
        path.symlink_to(precious)

    write_report([load_run(tmp_path / "run.json")], tmp_path / "report")

    assert [path for path in paths if path.is_symlink()] == []


def test_looking_whether_a_directory_can_be_written_follows_no_link(precious, tmp_path):
    """Depends on cli/common.py: a name that cannot be known beforehand is to be tried."""
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / ".gpt-parallel-probe").symlink_to(tmp_path / "made")

    make_writable(directory)

    assert not (tmp_path / "made").exists()
    assert (directory / ".gpt-parallel-probe").is_symlink()


def test_kept_logs_replace_links_and_their_directory_has_a_plain_name(precious, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "WORKER", "tests.support.mutants")
    monkeypatch.setenv(mutants.VARIABLE, mutants.raise_on_rank_1_while_loading.__name__)
    suite = Suite(make_settings("smoke", SMOKE | {"log_dir": str(tmp_path / "logs")}))
    spec = suite.spec("pure_data_parallel", 2).model_copy(update={"strategy": "../ü\x1b" + "x" * 300})

    with pytest.raises(local.LaunchError):
        suite.run(spec)

    (directory,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"[A-Za-z0-9._-]+", directory.name)
    assert (directory / "rank_1.log").is_file()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pure_data_parallel-2gpu-batch4", "pure_data_parallel-2gpu-batch4"),
        ("../../etc/passwd", "etc-passwd-"),
        ("owner/name", "owner-name-"),
        ("a\x1b[31m\n b", "a-31m-b-"),
        (".hidden", "hidden-"),
        ("--option", "option-"),
        ("ünïcode\udcff", "n-code-"),
    ],
)
def test_names_become_names_of_files(name, expected):
    assert slug(name).startswith(expected)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", slug(name))


def test_slugs_are_short_and_differ_where_names_do():
    names = ["", ".", "..", "/", "a/b", "a\\b", "a b", "ü", "ö", "x" * 500, "x" * 501]

    slugs = {slug(name) for name in names}

    assert len(slugs) == len(names)
    assert all(0 < len(text) < 120 and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text) for text in slugs)


def test_profiles_of_a_case_lie_in_the_given_directory(tmp_path, monkeypatch):
    name = "ü" * 200  # an identifier, as strategies' names are
    monkeypatch.setitem(STRATEGIES, name, Strategy(name, lambda num_gpus: MeshSpec(dp=num_gpus)))
    suite = Suite(make_settings("smoke", SMOKE | {"profile": str(tmp_path)}))

    directory = Path(suite.spec(name, 1).execution.profile)

    assert directory.parent == tmp_path
    directory.mkdir()
