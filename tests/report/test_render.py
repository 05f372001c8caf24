"""The files of a report: stable, self-contained, and inert whatever the names in the data are."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpt_parallel.cli import app
from gpt_parallel.report.render import FORMATS, write_report
from gpt_parallel.report.saved_run import ReportError, load_run
from tests.support.factories import bench, document, stats

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd()",
    "a|b",
    "\x1b[31mred\x1b[0m",
    "[x](http://evil)",
    "{{ 7191 * 7 }}",
    "$x_1$",
    "HTTPS://evil.example www.evil.example @org/team me@evil.example",
    "\ud800\uffff",
]


class Page(HTMLParser):
    """Collects a page's tags, and the addresses it asks for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag != "wbr":  # stands after each underscore of a name
            self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "srcset", "data")]


@pytest.fixture
def report(saved, tmp_path):
    """Writes the report of documents and returns its directory."""

    def write(*documents, formats=FORMATS):
        runs = [saved(f"run{index}" if index else "run", each) for index, each in enumerate(documents)]
        write_report(runs, tmp_path / "report", formats)
        return tmp_path / "report"

    return write


@pytest.fixture(scope="module")
def golden_report(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden")
    write_report([load_run(GOLDEN / "run.json")], directory)
    return directory


@pytest.mark.parametrize("name", ["performance_summary.csv", "performance_report.txt", "report.md"])
def test_golden_files(name, golden_report):
    """To accept a change: gpt-parallel report run.json --output-dir . --format csv,txt,md, in tests/report/golden."""
    assert (golden_report / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_charts_and_page_are_stable_too(report):
    first = {path.name: path.read_bytes() for path in report(document(bench())).rglob("*") if path.is_file()}
    second = {path.name: path.read_bytes() for path in report(document(bench())).rglob("*") if path.is_file()}

    assert first == second
    assert {"report.html", "throughput.png", "throughput.svg"} <= set(first)


def test_page_stands_alone(golden_report):
    text = (golden_report / "report.html").read_text()

    page = Page(text)
    assert page.tags.count("img") == 8
    assert all(address.startswith("data:") for address in page.addresses)
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text


def named(name):
    """Two documents in which every name is the given one."""
    names = dict.fromkeys(("strategy", "mesh", "model", "weights", "prompts"), name)
    plain = {"name": name, "fullname": name, "group": name, "stats": stats([0.1])}
    not_run = {"not_run": [{"case": name, "outcome": "failed", "reason": name}]}
    commit = {"id": name, "branch": name}
    return document(bench(name, **names), plain, gpt_parallel=not_run, commit_info=commit), document(bench("other"))


@pytest.fixture(scope="module")
def harmless_tags(tmp_path_factory):
    directory = tmp_path_factory.mktemp("harmless")
    paths = [directory / "run.json", directory / "run1.json"]
    for path, content in zip(paths, named("harmless"), strict=True):
        path.write_text(json.dumps(content))
    write_report([load_run(path) for path in paths], directory, ("html",))
    return Page((directory / "report.html").read_text()).tags


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_are_inert_everywhere(hostile, report, harmless_tags):
    directory = report(*named(hostile))

    page = Page((directory / "report.html").read_text())
    assert page.tags == harmless_tags
    for name in ("report.html", "report.md", "performance_report.txt", "performance_summary.csv"):
        text = (directory / name).read_text()
        assert "\x1b" not in text
        assert "50337" not in text, "a template in a name was filled in"
    rows = list(csv.reader(io.StringIO((directory / "performance_summary.csv").read_text())))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not any(cell.startswith(("=", "@", "+")) for row in rows for cell in row)
    lines = (directory / "report.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {17, 10}
    assert "<script>" not in "\n".join(lines)
    assert "x](http" not in "\n".join(lines)
    assert not re.search(r"https?://|www\.|@\w", "\n".join(lines), re.IGNORECASE), "GitHub would make it live"


def test_hostile_names_reach_the_terminal_as_text(save, tmp_path):
    path = save("run", document(bench("\x1b]0;title\x07", strategy="\x1b[2J"), bench("b", mesh="\x9b2J")))

    done = CliRunner().invoke(app, ["gate", str(path), str(path), "--allow-single-launch"])

    assert done.exit_code == 0
    assert not {"\x1b", "\x07", "\x9b"} & set(done.output)


def test_comparison_is_in_every_text(report):
    directory = report(document(bench(), bench("gone", mesh="x")), document(bench(device_name="H100")))

    for name in ("report.html", "report.md", "performance_report.txt"):
        text = (directory / name).read_text()
        assert "not comparable" in text
        assert "differ in device: CPU and H100" in text
        assert "is missing" in text


def test_text_fits_a_terminal(report):
    """Both tables, with every column filled in."""
    peer = bench("peer", (12.5,), engine="transformers", strategy="transformers")
    long = bench("b", (1234.56,), strategy="pipeline_data_hybrid", num_gpus=8, oversubscribed=True, mesh="pp4·dp2")
    directory = report(document(peer, bench("a", (9.5,)), long), formats=("txt",))

    lines = (directory / "performance_report.txt").read_text().splitlines()
    rules = [index for index, line in enumerate(lines) if line.startswith("──")]
    assert len(rules) == 2
    assert max(len(line) for index in rules for line in lines[index - 3 : index + 4]) <= 100
    assert "formers" in "\n".join(lines)
    assert "utili-" in "\n".join(lines)


def test_charts_of_an_earlier_report_do_not_stay(report):
    two = [bench("a"), bench("b", num_gpus=2, mesh="dp2")]
    other = [bench("c", workload_sha256="cd" * 32)]
    directory = report(document(*two, *other), formats=("png",))
    (directory / "charts" / "mine.png").write_text("")
    assert (directory / "charts" / "scaling.svg").exists()
    assert (directory / "charts" / "throughput_2.png").exists()

    report(document(bench("a")), formats=("png",))

    left = {path.name for path in (directory / "charts").iterdir()}
    assert {"throughput.png", "mine.png"} <= left
    assert not {"scaling.png", "scaling.svg", "throughput_2.png", "throughput_2.svg"} & left


def test_csv_says_where_and_what(report):
    plain = {"name": "p", "fullname": "p", "stats": stats([0.1])}
    directory = report(document(bench(), plain), formats=("csv",))

    ours, other = csv.DictReader(io.StringIO((directory / "performance_summary.csv").read_text()))
    wanted = ("cpu", "num_cores", "hostname", "workload", "batch_size")
    assert [ours[name] for name in wanted] == ["AMD EPYC", "2", "bench-1", "8 requests × (32 + 8 tokens), batch 2", "2"]
    assert [other[name] for name in wanted] == ["", "", "bench-1", "", ""]


def test_cases_that_shared_their_devices_are_marked(report):
    directory = report(document(bench(), bench("b", num_gpus=2, mesh="dp2", shared=True)), formats=("csv", "md"))
    text = (directory / "report.md").read_text()

    assert "| 2§ |" in text
    assert "\n§ shared: another run" in text
    rows = csv.DictReader(io.StringIO((directory / "performance_summary.csv").read_text()))
    assert [row["shared"] for row in rows] == ["False", "True"]


def test_only_the_asked_formats_are_written(report):
    directory = report(document(bench()), formats=("csv",))

    assert [path.name for path in directory.iterdir()] == ["performance_summary.csv"]


def test_no_charts_without_data(report):
    plain = bench()
    plain["extra_info"] = {}
    directory = report(document(plain))

    assert not (directory / "charts").exists()
    assert "## Charts" not in (directory / "report.md").read_text()


def test_charts_are_of_what_is_there(report):
    """One device only: nothing to scale over; no latencies: no latency chart."""
    nothing = dict.fromkeys(("ttft_s", "tpot_s", "ttft_p90_s", "tpot_p90_s", "max_peak_memory_bytes"), None)
    directory = report(document(bench(**nothing, peak_memory_bytes_by_rank=[None])))

    assert sorted(path.stem for path in directory.glob("charts/*.png")) == ["throughput", "throughput_per_gpu"]


def test_a_directory_that_cannot_be_written_is_named(saved, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ReportError, match="file: cannot be written"):
        write_report([saved("run", document(bench()))], tmp_path / "file")


def test_command_writes_and_lists_files(save, tmp_path):
    path = save("run", document(bench()))

    done = CliRunner().invoke(app, ["report", str(path), "--output-dir", str(tmp_path / "out"), "--format", "csv, txt"])

    assert done.exit_code == 0
    assert [Path(line).name for line in done.stdout.split()] == ["performance_summary.csv", "performance_report.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "pdf"), "unknown report format 'pdf'; allowed: md, html, csv, png, txt"),
        (("--baseline", "x"), "--baseline 'x': no such run; allowed: run"),
        (("absent.json",), "absent.json: cannot be read"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(arguments, message, save, tmp_path):
    path = save("run", document(bench()))

    done = CliRunner().invoke(app, ["report", str(path), *arguments, "--output-dir", str(tmp_path / "out")])

    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_telemetry_has_columns_where_there_is_any(report):
    readings = {"mbu": 0.5, "cpu_share": 0.97, "energy_j_per_token": 1.25, "breakdown_waiting": 0.31}
    formats = ("txt", "csv")
    plain = (report(document(bench()), formats=formats) / "performance_report.txt").read_text()

    both = document(bench(), bench("b", strategy="b", **readings, unavailable="mfu: no peak"))
    directory = report(both, formats=formats)

    text = (directory / "performance_report.txt").read_text()
    for heading in ("MBU", "energy", "waiting"):
        assert heading in text
        assert heading not in plain
    assert "MFU" not in text
    (one, other) = csv.DictReader(io.StringIO((directory / "performance_summary.csv").read_text()))
    assert (one["mbu"], one["utilisation_percent"], one["unavailable"]) == ("", "", "")
    assert (other["mbu"], other["energy_j_per_token"]) == ("0.5", "1.25")
    assert float(other["utilisation_percent"]) == 97
    assert other["unavailable"] == "mfu: no peak"


def test_a_gpus_utilisation_is_its_drivers(report):
    directory = report(document(bench(device="cuda", cpu_share=0.5, gpu_utilisation_percent=88.0)), formats=("csv",))

    (row,) = csv.DictReader(io.StringIO((directory / "performance_summary.csv").read_text()))
    assert float(row["utilisation_percent"]) == 88
