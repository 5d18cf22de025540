"""`plurum bench`: how fast a server answers, by Triton's own load generator."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from plurum.benchmarks.bench.comparison import Comparison
    from plurum.benchmarks.bench.perf_analyzer import PerfAnalyzer
    from plurum.benchmarks.bench.result import BenchResult, Load
    from plurum.benchmarks.bench.sweep import Sweep

__all__ = ["bench"]

_FILES = {"bench.json", "bench.csv", "latency_throughput.png", "breakdown.png"}
Protocol = Literal["grpc", "http"]


def bench(  # noqa: PLR0913, PLR0917 - one parameter per option
    repository: Annotated[
        Path | None, typer.Argument(help="A model repository; it is served while it is measured.", metavar="REPO")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask a running server instead: HOST:PORT is gRPC, http://HOST:PORT is HTTP; repeat for both."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Repeat for more.", show_default="ensemble, ensemble_pixels, ensemble_fused: those served"),
    ] = None,
    protocol: Annotated[Literal["grpc", "http", "both"], typer.Option(help="With REPO: how it is asked.")] = "grpc",
    concurrency: Annotated[str, typer.Option(help="Requests in flight, one after the other.")] = "1,2,4,8",
    rate: Annotated[str, typer.Option(help="Also: requests per second at random moments, as in `10,20`.")] = "",
    images: Annotated[
        Path | None, typer.Option(help="A folder with images to send.", show_default="synthetic JPEGs")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.3, help="Length of a turn.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of every model, protocol and load.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for results and pictures, written whole or not at all.")] = Path(
        "runs/bench"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Measure nothing: is the result B better than A?")
    ] = None,
    setup: Annotated[bool, typer.Option("--setup", help="Only set perf_analyzer up in your cache folder.")] = False,
) -> None:
    """Measure throughput and latency of a server with perf_analyzer, and where the time of a request goes.

    perf_analyzer comes from PATH; where there is none it is downloaded once into your cache folder. The result is
    bench.json, bench.csv, latency_throughput.png and breakdown.png.

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
    from plurum.benchmarks.bench.sweep import Sweep

    _check_out(out)
    wanted = Sweep(tuple(model or ()), _loads(concurrency, rate), images, seconds, repeats)
    # As Ctrl-C: what was started is ended, what was begun is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    protocols: tuple[Protocol, ...] = ("grpc", "http") if protocol == "both" else (protocol,)
    result = _measured(repository, url or [], protocols, wanted)
    _write(result, out)
    if as_json:
        sys.stdout.write(result.model_dump_json() + "\n")
    else:
        _show(result, out)


def _measured(repository: Path | None, urls: list[str], protocols: tuple[Protocol, ...], wanted: Sweep) -> BenchResult:
    from rich.console import Console

    from plurum import __version__
    from plurum.benchmarks.bench.sweep import sweep
    from plurum.benchmarks.tools.machine import versions
    from plurum.errors import SettingsError
    from plurum.serving import Server, ServerSettings

    if (repository is None) == (not urls):
        raise SettingsError("name either a model repository or, with --url, a running server")
    with ExitStack() as stack:
        status = stack.enter_context(Console(stderr=True).status("perf_analyzer"))
        analyzer = _analyzer(status.update)
        if repository is None:
            return sweep(analyzer, _addresses(urls), wanted, ", ".join(urls), {"plurum": __version__}, status.update)
        status.update("starting the server")
        settings = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)
        server = stack.enter_context(Server(repository, settings))
        known: dict[Protocol, str] = {"grpc": server.urls.grpc, "http": server.urls.http.removeprefix("http://")}
        places = {protocol: known[protocol] for protocol in protocols}
        return sweep(analyzer, places, wanted, str(repository), versions(), status.update)


def _analyzer(progress: Callable[[str], None]) -> PerfAnalyzer:
    from plurum.benchmarks.bench.perf_analyzer import find_perf_analyzer, set_up_perf_analyzer

    if found := find_perf_analyzer():
        return found
    progress("setting up perf_analyzer in your cache folder, once")
    return set_up_perf_analyzer()


def _set_up() -> None:
    from rich.console import Console

    from plurum.benchmarks.bench.perf_analyzer import set_up_perf_analyzer

    with Console(stderr=True).status("setting up perf_analyzer"):
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
            raise SettingsError(f"--url {url}: HOST:PORT for gRPC, or http://HOST:PORT, is expected")
        if protocol in found:
            raise SettingsError(f"--url names two servers for {protocol}; one bench asks one server")
        found[protocol] = address
    return found


def _loads(concurrency: str, rate: str) -> tuple[Load, ...]:
    from plurum.benchmarks.bench.result import Load
    from plurum.errors import SettingsError

    loads = []
    kinds: dict[Literal["concurrency", "rate"], str] = {"concurrency": concurrency, "rate": rate}
    for kind, text in kinds.items():
        for part in filter(None, (part.strip() for part in text.split(","))):
            whole = part.isdecimal() if kind == "concurrency" else part.replace(".", "", 1).isdecimal()
            if not whole or float(part) <= 0:
                raise SettingsError(f"--{kind} {text}: numbers above 0 with commas between them are expected")
            loads.append(Load(kind=kind, value=float(part)))
    if not loads:
        raise SettingsError("neither --concurrency nor --rate says how much to ask")
    return tuple(dict.fromkeys(loads))


def _check_out(out: Path) -> None:
    """Refuse what the result would take the place of, before anything is measured."""
    from plurum.errors import OutputError

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a folder with --out")
    if out.is_dir() and {path.name for path in out.iterdir()} - _FILES:
        raise OutputError(f"{out} holds something else than the result of a bench; name another folder with --out")


def _write(result: BenchResult, out: Path) -> None:
    from plurum.benchmarks.bench.plots import plots_from_result
    from plurum.benchmarks.bench.result import csv_from_result
    from plurum.files import whole_folder

    pictures = plots_from_result(result)
    with whole_folder(out) as folder:
        (folder / "bench.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / "bench.csv").write_text(csv_from_result(result), encoding="utf-8")
        for name, picture in pictures.items():
            (folder / f"{name}.png").write_bytes(picture)


def _show(result: BenchResult, out: Path) -> None:
    from rich.table import Table

    table = Table("model", "", "load", "images/s", "lowest", "highest", "p50 ms", "p99 ms", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    for case in result.cases():
        rates = result.values(case, "images_per_s")
        figures = (result.median(case, "images_per_s"), min(rates), max(rates))
        latencies = (result.median(case, field) for field in ("p50_ms", "p99_ms"))
        cells = [*(f"{value:.1f}" for value in figures), *(f"{value:.2f}" for value in latencies)]
        table.add_row(case.target.model, case.target.protocol, str(case.load), *cells)
    _print(table)
    state, turns = result.machine, "turn" if result.repeats == 1 else "turns"
    typer.echo(f"medians of {result.repeats} {turns} of {result.seconds:g} s; sent: {result.images}")
    typer.echo(f"{state['processor']}, {state['cores']} cores; load average before: {state['load_1min']}")
    typer.echo(f"result: {out}")


def _compare(first: Path, second: Path, *, as_json: bool) -> None:
    from plurum.benchmarks.bench.comparison import compare_benches
    from plurum.benchmarks.bench.result import read_bench

    comparison = compare_benches(read_bench(first), read_bench(second))
    if as_json:
        sys.stdout.write(comparison.model_dump_json() + "\n")
    else:
        _print(_ratios(comparison))
        for one in comparison.differences:
            typer.echo(f"not alike: {one}")
        for name, cases in ((first, comparison.only_first), (second, comparison.only_second)):
            if cases:
                typer.echo(f"only in {name}: {', '.join(cases)}")


def _ratios(comparison: Comparison) -> Table:
    from rich.table import Table

    table = Table("", "", "A", "B", "B over A", "95% interval", "B is", box=None)
    for column in table.columns[2:6]:
        column.justify = "right"
    for one in comparison.ratios:
        medians = ("" if value is None else f"{value:.2f}" for value in (one.first, one.second))
        interval = f"{one.low:.3f} to {one.high:.3f}"
        field = one.field.replace("images_per_s", "images/s").replace("_ms", " ms")
        table.add_row(one.case, field, *medians, f"{one.ratio:.3f}", interval, one.verdict)
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    # A pipe has no width: there a row is a line, however long.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table, soft_wrap=True)
