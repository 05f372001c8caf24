import pytest

from gpt_parallel.bench.figures import figures
from gpt_parallel.bench.summarise import percentile, summarise
from gpt_parallel.schema.result import AttentionKernels, Environment, RunResult, Verification
from gpt_parallel.schema.run import MeshSpec
from tests.support.factories import rank_report, round_report, run_spec


def test_the_slowest_rank_is_the_round():
    ranks = [
        rank_report(0, rounds=(round_report(1.0, 0.0, (0.5, 1.0)), round_report(2.0, 10.0, (10.5, 11.0)))),
        rank_report(1, rounds=(round_report(3.0, 0.0, (0.5, 1.0)), round_report(1.0, 10.0, (10.5, 11.0)))),
    ]

    measured = figures(run_spec(mesh=MeshSpec(dp=2)), ranks)

    assert measured.round_seconds == (3.0, 2.0)
    assert measured.throughput_tok_s == pytest.approx(3 / 2.5)
    assert measured.throughput_per_gpu_tok_s == pytest.approx(3 / 5)
    assert measured.imbalance_by_round == pytest.approx((3 / 2, 2 / 1.5))
    assert measured.imbalance == pytest.approx((3 / 2 + 2 / 1.5) / 2)


def test_latencies_join_the_first_stage_and_the_last():
    first = rank_report(0, rounds=(round_report(9.0, 100.0),))
    last = rank_report(1, stage=1, rounds=(round_report(9.0, None, (102.0, 103.0, 107.0)),))

    measured = figures(run_spec(mesh=MeshSpec(pp=2)), [first, last])

    assert measured.ttft_samples_s == (2.0,)
    assert measured.itl_samples_s == (1.0, 4.0)
    assert measured.tpot_samples_s == (2.5,)
    assert measured.latency_samples_s == (7.0,)


def test_of_several_shards_the_earliest_starts_and_the_latest_has_the_token():
    ranks = [
        rank_report(0, rounds=(round_report(1.0, 5.0, (6.0,)),)),
        rank_report(1, rounds=(round_report(1.0, 4.5, (6.5,)),)),
    ]

    measured = figures(run_spec(mesh=MeshSpec(tp=2)), ranks)

    assert measured.ttft_samples_s == (2.0,)
    assert measured.tpot_samples_s == ()
    assert measured.tpot_s is None


def test_nothing_timed_is_nothing():
    assert figures(run_spec(), [rank_report()]).throughput_tok_s is None


def test_percentiles_need_samples_that_carry_them():
    assert percentile([1.0] * 9, 90) is None
    assert percentile(list(map(float, range(11))), 90) == 9.0
    assert percentile([1.0] * 19, 95) is None
    assert percentile(list(map(float, range(21))), 95) == 19.0
    assert percentile([1.0] * 99, 99) is None
    assert percentile([1.0] * 100, 99) == 1.0


def launch(seconds, status="exact"):
    spec = run_spec()
    ranks = (
        rank_report(
            rounds=(round_report(seconds, 0.0, (seconds / 3, seconds / 2, seconds)),),
            peak_memory_bytes=int(seconds * 100),
        ),
    )
    return RunResult(
        spec=spec,
        weights_origin="random (seed 0)",
        verification=Verification(status=status, tokens_compared=3),
        figures=figures(spec, ranks),
        environment=Environment(
            gpt_parallel="0",
            torch="2",
            python="3",
            platform="p",
            cpu="c",
            num_cores=1,
            device_names=("CPU",),
            hostname="h",
        ),
        ranks=ranks,
        outputs=(),
    )


def test_a_case_is_the_median_of_its_launches_which_stay_apart():
    row = summarise([launch(1.0), launch(3.0), launch(2.0)])

    assert row.throughput_tok_s == pytest.approx(1.5)
    assert [entry.throughput_tok_s for entry in row.launches] == pytest.approx([3.0, 1.0, 1.5])
    assert row.ttft_s == pytest.approx(2 / 3)
    assert (row.ttft_samples, row.ttft_p95_s) == (3, None)
    assert row.rounds == 3
    assert row.max_peak_memory_bytes == 300


def test_one_launch_with_ties_makes_the_case_a_tie():
    assert summarise([launch(1.0), launch(1.0, "tie")]).verified == "tie"


@pytest.mark.parametrize(
    ("launches", "expected"), [((True, True), True), ((True, False), False), ((None, True), True), ((None, None), None)]
)
def test_a_case_repeats_if_all_its_launches_do(launches, expected):
    results = []
    for repeatable in launches:
        verification = Verification(status="exact", repeatable=repeatable, judge="engine")
        results.append(launch(1.0).model_copy(update={"verification": verification}))

    assert summarise(results).repeatable is expected
    assert summarise(results).judge == "engine"


def test_kernels_of_all_ranks_are_told():
    """The second stage's and the first's; one may have no layers."""
    kernels = [AttentionKernels(prefill="flash", decode="flash+math"), AttentionKernels(prefill="efficient"), None]
    result = launch(1.0)
    ranks = tuple(rank_report(attention=own) for own in kernels)

    row = summarise([result.model_copy(update={"ranks": ranks})])

    assert (row.attention_prefill, row.attention_decode) == ("efficient+flash", "flash+math")


def test_the_workload_digest_changes_with_the_work():
    same, other = launch(1.0), launch(1.0)
    spec = other.spec.model_copy(update={"workload": other.spec.workload.model_copy(update={"batch_size": 9})})
    changed = other.model_copy(update={"spec": spec})

    assert summarise([same]).workload_sha256 == summarise([other]).workload_sha256
    assert summarise([same]).workload_sha256 != summarise([changed]).workload_sha256
