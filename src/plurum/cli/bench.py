"""`plurum bench`: measure a server with Triton's own load generator."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.settings.benchmarks import BenchSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from plurum.benchmarks.bench.comparison import BenchComparison
    from plurum.benchmarks.bench.perf_analyzer import PerfAnalyzer
    from plurum.benchmarks.bench.result import BenchResult

__all__ = ["bench"]

_FILES = {"bench.json", "bench.csv", "latency_throughput.png", "breakdown.png"}
Protocol = Literal["grpc", "http"]


@with_options
def bench(
    settings: BenchSettings,
    repository: Annotated[
        Path | None, typer.Argument(help="Model repository to serve and measure.", metavar="REPO")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="Running server to measure instead: HOST:PORT for gRPC, http://HOST:PORT for HTTP; repeat for both."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder for results and plots, written atomically.")] = Path(
        "runs/bench"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare result B with result A instead of measuring."),
    ] = None,
    setup: Annotated[bool, typer.Option("--setup", help="Only install perf_analyzer in your cache folder.")] = False,
) -> None:
    """Measure a server's throughput and latency with perf_analyzer, and break down the time of a request.

    perf_analyzer is taken from PATH, or downloaded once into your cache folder. The result is bench.json, bench.csv,
    latency_throughput.png and breakdown.png.

    [bold]Examples[/bold]

      plurum bench runs/digits/model_repository --images scans/

      plurum bench --url 127.0.0.1:8001 --url http://127.0.0.1:8000 --model ensemble --concurrency 1,16 --rate 20

      plurum bench --compare runs/bench-before runs/bench-after
    """
    if compare is not None:
        _compare(*compare, as_json=as_json)
        return
    if setup:
        _set_up()
        return
    from plurum.benchmarks.tools.command import check_results_folder, interrupt_on_sigterm

    check_results_folder(out, _FILES)
    interrupt_on_sigterm()
    result = _measure(repository, url or [], settings)
    _write(result, out)
    if as_json:
        write_json(result)
    else:
        _show(result, out)


def _measure(repository: Path | None, urls: list[str], plan: BenchSettings) -> BenchResult:
    from plurum import __version__
    from plurum.benchmarks.bench.sweep import sweep
    from plurum.benchmarks.tools.machine import versions
    from plurum.benchmarks.tools.servers import server_of
    from plurum.errors import SettingsError
    from plurum.progress import show_status

    if (repository is None) == (not urls):
        raise SettingsError("REPO, --url: expected exactly one of them, a model repository or a running server")
    if plan.metrics is not None and not urls:
        raise SettingsError("--metrics: expected --url with it, got REPO, whose metrics are known. Leave it out.")
    with ExitStack() as stack:
        say = stack.enter_context(show_status("perf_analyzer"))
        analyzer = _analyzer(say)
        if repository is None:
            return sweep(analyzer, _addresses(urls), plan, ", ".join(urls), {"plurum": __version__}, say)
        say("starting the server")
        server = stack.enter_context(server_of(repository))
        known: dict[Protocol, str] = {"grpc": server.urls.grpc, "http": server.urls.http.removeprefix("http://")}
        addresses = {protocol: url for protocol, url in known.items() if plan.protocol in {protocol, "both"}}
        plan = plan.model_copy(update={"metrics": server.urls.metrics})
        return sweep(analyzer, addresses, plan, str(repository), versions(), say)


def _analyzer(progress: Callable[[str], None]) -> PerfAnalyzer:
    from plurum.benchmarks.bench.perf_analyzer import find_perf_analyzer, set_up_perf_analyzer

    if found := find_perf_analyzer():
        return found
    progress("setting up perf_analyzer in your cache folder, once")
    return set_up_perf_analyzer()


def _set_up() -> None:
    from plurum.benchmarks.bench.perf_analyzer import set_up_perf_analyzer
    from plurum.progress import show_status

    with show_status("setting up perf_analyzer"):
        analyzer = set_up_perf_analyzer()
    typer.echo(f"perf_analyzer {analyzer.version}: {analyzer.binary}")


def _addresses(urls: list[str]) -> dict[Protocol, str]:
    from plurum.errors import SettingsError

    found: dict[Protocol, str] = {}
    for url in urls:
        protocol: Protocol = "http" if url.startswith("http://") else "grpc"
        address = url.removeprefix("http://").rstrip("/")
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise SettingsError(f"--url: expected HOST:PORT for gRPC or http://HOST:PORT, got {url}")
        if protocol in found:
            raise SettingsError(
                f"--url: expected one server per protocol, got two for {protocol}. Measure one at a time."
            )
        found[protocol] = address
    return found


def _write(result: BenchResult, out: Path) -> None:
    from plurum.benchmarks.bench.plots import plots_from_result
    from plurum.benchmarks.bench.result import csv_from_result
    from plurum.benchmarks.tools.command import write_results

    pictures = {f"{name}.png": picture for name, picture in plots_from_result(result).items()}
    texts = {"bench.json": result.model_dump_json(indent=2) + "\n", "bench.csv": csv_from_result(result)}
    write_results(out, {**texts, **pictures})


def _show(result: BenchResult, out: Path) -> None:
    table = new_table("model", "", "load", "images/s", "lowest", "highest", "p50 ms", "p99 ms", left=3)
    for case in result.cases():
        rates = result.values(case, "images_per_s")
        figures = (result.median(case, "images_per_s"), min(rates), max(rates))
        latencies = (result.median(case, field) for field in ("p50_ms", "p99_ms"))
        cells = [*(f"{value:.1f}" for value in figures), *(f"{value:.2f}" for value in latencies)]
        table.add_row(case.target.model, case.target.protocol, str(case.load), *cells)
    show_table(table)
    if result.stages:
        show_table(_stages(result))
    for model, other in result.equal.items():
        typer.echo(f"{model} runs what {other} runs: its figures are the same")
    state, runs = result.machine, "measurement" if result.repeats == 1 else "measurements"
    typer.echo(f"medians of {result.repeats} {runs} of {result.seconds:g} s; sent: {result.images}")
    typer.echo(f"{state['processor']}, {state['cores']} cores; load average before: {state['load_1min']}")
    typer.echo(f"result: {out}")


def _stages(result: BenchResult) -> Table:
    table = new_table("model", "", "load", "stage", "settled", "ms per image", left=3)
    for one in result.stages:
        time_ms = "" if one.ms_per_image is None else f"{one.ms_per_image:.2f}"
        target = one.case.target
        table.add_row(target.model, target.protocol, str(one.case.load), str(one.stage), f"{one.settled:.1%}", time_ms)
    return table


def _compare(first: Path, second: Path, *, as_json: bool) -> None:
    from plurum.benchmarks.bench.comparison import compare_benches
    from plurum.benchmarks.bench.result import read_bench

    comparison = compare_benches(read_bench(first), read_bench(second))
    if as_json:
        write_json(comparison)
    else:
        show_table(_ratios(comparison))
        for one in comparison.differences:
            typer.echo(f"differs: {one}")
        for name, cases in ((first, comparison.only_first), (second, comparison.only_second)):
            if cases:
                typer.echo(f"only in {name}: {', '.join(cases)}")


def _ratios(comparison: BenchComparison) -> Table:
    table = new_table("", "", "A", "B", "B over A", "95% interval", "B is", left=2)
    table.columns[-1].justify = "left"
    for one in comparison.ratios:
        medians = ("" if value is None else f"{value:.2f}" for value in (one.first, one.second))
        interval = f"{one.low:.3f} to {one.high:.3f}"
        field = one.field.replace("images_per_s", "images/s").replace("_ms", " ms")
        table.add_row(one.case, field, *medians, f"{one.ratio:.3f}", interval, one.verdict)
    return table
