"""Triton's load generator: find it, set it up if there is none, and measure one case with it.

A `perf_analyzer` on PATH (NVIDIA's SDK container has one) is used as it is. Otherwise one is unpacked into a folder of
the user's cache; nothing is installed. Where glibc is 2.38 or newer, it is that of the `perf-analyzer` wheel; elsewhere
that of the `tritonclient` 2.51.0 wheel, with the two libraries that it needs.
"""

from __future__ import annotations

import contextlib
import csv
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from plurum.benchmarks.bench.result import BenchLoad, Target
from plurum.errors import ServerError
from plurum.files import atomic_folder, cache_folder

__all__ = ["PerfAnalyzer", "find_perf_analyzer", "set_up_perf_analyzer"]

_HAS_NEW_GLIBC = tuple(map(int, (platform.libc_ver()[1] or "0").split(".")[:2])) >= (2, 38)
# For older glibc, the last `tritonclient` wheel with the binary inside, which runs with 2.35 and newer.
_VERSION = "2.59.0" if _HAS_NEW_GLIBC else "2.51.0"
# A file of each wheel, and its name in the cache.
_WHEELS = (
    {f"perf-analyzer=={_VERSION}": ("bin/perf_analyzer", "perf_analyzer")}
    if _HAS_NEW_GLIBC
    else {
        f"tritonclient=={_VERSION}": ("data/bin/perf_analyzer", "perf_analyzer"),
        "nvidia-cuda-runtime-cu12": ("lib/libcudart.so.12", "libcudart.so.12"),
    }
)
_LIBB64 = "libb64.so.0d"
_OTHERWISE = "or put a perf_analyzer on PATH (NVIDIA's SDK container has one; pip install perf-analyzer, glibc >= 2.38)"
_DOWNLOAD_S, _RUN_S, _LAST_ANSWERS_S = 300, 60, 5
# perf_analyzer measures three windows and reports their mean. Its own test of stability is off: it would extend noisy
# measurements, and repeats would not be comparable.
_WINDOWS, _ANY_DEVIATION = 3, 999
# Asynchronous: otherwise at most four requests are in flight, and waiting does not count as latency.
_RATE = ("--request-distribution", "poisson", "--async", "--request-rate-range")
_LOADS = {"concurrency": ("--concurrency-range",), "rate": _RATE}
_COLUMNS = {
    "images_per_s": "Inferences/Second",
    "latency_ms": "Avg latency",
    "p50_ms": "p50 latency",
    "p90_ms": "p90 latency",
    "p95_ms": "p95 latency",
    "p99_ms": "p99 latency",
}


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that runs here.

    Attributes:
        binary: Path of the program.
        libraries: Folder with the libraries that it needs; None if the system has them.
        version: Version that it prints.
    """

    binary: Path
    libraries: Path | None
    version: str

    def measure(
        self, target: Target, url: str, load: BenchLoad, data: Path, seconds: float, batch_size: int = 1
    ) -> dict[str, float]:
        """Return images per second and latencies in ms of one case, under the names of `Measurement`'s fields.

        Args:
            target: Model and protocol.
            url: HOST:PORT of that protocol.
            load: Load to apply.
            data: Input data file of perf_analyzer; its requests are sent in turn.
            seconds: Length of the measurement; in total it takes a little longer.
            batch_size: Images per request.

        Raises:
            ServerError: perf_analyzer ended with an error, or without a result.
        """
        with tempfile.TemporaryDirectory(prefix="plurum_bench_") as folder:
            table = Path(folder) / "result.csv"
            window_ms = max(1, round(1000 * seconds / _WINDOWS))
            text = self._run(
                *("-m", target.model, "-u", url, "-i", target.protocol, "--input-data", str(data)),
                *("-p", str(window_ms), "-r", str(_WINDOWS), "-s", str(_ANY_DEVIATION)),
                *("-b", str(batch_size), *_LOADS[load.kind], f"{load.value:g}"),
                *("--verbose-csv", "-f", str(table)),
                timeout_s=_RUN_S + 10 * seconds,
            )
            rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines())) if table.is_file() else []
        if not rows:
            raise ServerError(
                f"perf_analyzer measured nothing of {target.model} at {load} in windows of {window_ms} ms "
                f"(a third of --seconds): {_reason(text)}"
            )
        # Its latencies are in microseconds.
        units = {field: 1e-3 if field.endswith("_ms") else 1.0 for field in _COLUMNS}
        return {field: float(rows[0][column]) * units[field] for field, column in _COLUMNS.items()}

    def _run(self, *arguments: str, timeout_s: float) -> str:
        """Return the text of both outputs; the process never outlives this call."""
        with subprocess.Popen(
            [self.binary, *arguments],
            env=_environment(self.libraries),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C reaches this process only, which passes it on and limits the wait.
            start_new_session=True,
        ) as process:
            try:
                return process.communicate(timeout=timeout_s)[0]
            except subprocess.TimeoutExpired as error:
                raise ServerError(f"perf_analyzer did not end within {timeout_s:g} s and was stopped") from error
            finally:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process once its requests have responses: a gRPC request cancelled in flight can crash Triton 2.51."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_LAST_ANSWERS_S)
    finally:
        process.kill()


def find_perf_analyzer() -> PerfAnalyzer | None:
    """Return the `perf_analyzer` on PATH, else the one that was set up before, else None.

    Raises:
        ServerError: It does not run.
    """
    if found := shutil.which("perf_analyzer"):
        return _checked(Path(found), None)
    folder = _cache()
    return _checked(folder / "perf_analyzer", folder) if (folder / "perf_analyzer").is_file() else None


def set_up_perf_analyzer() -> PerfAnalyzer:
    """Unpack perf_analyzer and its libraries atomically into the user's cache, and return it.

    Raises:
        OutputError: The cache is not writable.
        ServerError: This is not x86-64 Linux, a wheel cannot be downloaded, or a library is missing.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ServerError(f"perf_analyzer is set up on x86-64 Linux only, this is {platform.platform()}; {_OTHERWISE}")
    with atomic_folder(_cache()) as folder:
        for requirement, (member, name) in _WHEELS.items():
            _unpack(requirement, member, folder / name)
        (folder / "perf_analyzer").chmod(0o755)
        try:
            _checked(folder / "perf_analyzer", folder)
        except ServerError:
            _fetch_libb64(folder)
            _checked(folder / "perf_analyzer", folder)
    return _checked(_cache() / "perf_analyzer", _cache())


def _cache() -> Path:
    return cache_folder() / f"perf_analyzer-{_VERSION}"


def _unpack(requirement: str, member: str, to: Path) -> None:
    """Download a wheel, without installing it, and take one file out of it."""
    with tempfile.TemporaryDirectory(prefix="plurum_bench_") as folder:
        arguments = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", folder)
        done = _output_of(sys.executable, "-m", "pip", "download", *arguments, requirement)
        wheels = list(Path(folder).glob("*.whl"))
        if done is None or not wheels:
            raise ServerError(f"perf_analyzer can't be set up: pip could not download {requirement}; {_OTHERWISE}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            name = next((name for name in wheel.namelist() if name.endswith(member)), None)
            if name is None:
                raise ServerError(f"perf_analyzer can't be set up: {wheels[0].name} holds no {member}; {_OTHERWISE}")
            to.write_bytes(wheel.read(name))


def _fetch_libb64(folder: Path) -> None:
    """Unpack Debian's and Ubuntu's package, which is on no Python index; nothing is installed, no root is needed."""
    with tempfile.TemporaryDirectory(prefix="plurum_bench_") as place:
        # apt hands the download to a user of its own, who must be able to reach the folder.
        Path(place).chmod(0o755)
        if _output_of("apt-get", "download", "libb64-0d", place=place) is not None:
            for package in Path(place).glob("libb64-0d*.deb"):
                _output_of("dpkg-deb", "-x", package.name, "unpacked", place=place)
        for library in Path(place).glob(f"unpacked/**/{_LIBB64}"):
            shutil.copyfile(library, folder / _LIBB64)
            return
    raise ServerError(
        f"perf_analyzer needs the library {_LIBB64}; install it (Debian, Ubuntu: apt-get install libb64-0d) and run "
        f"plurum bench --setup again, {_OTHERWISE}"
    )


def _output_of(*command: str, place: str | None = None) -> str | None:
    """Return the output of a command, or None if it fails or is not installed."""
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, timeout=_DOWNLOAD_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _checked(binary: Path, libraries: Path | None) -> PerfAnalyzer:
    try:
        done = subprocess.run(
            [binary, "--version"],
            env=_environment(libraries),
            capture_output=True,
            text=True,
            check=False,
            timeout=_RUN_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{binary} can't be run: {error}; plurum bench --setup sets up another") from error
    text = f"{done.stdout} {done.stderr}"
    if "Perf Analyzer" not in text and "Version" not in text:
        raise ServerError(f"{binary} can't be run: {_reason(text)}; plurum bench --setup sets up another")
    return PerfAnalyzer(binary, libraries, text.partition("Version")[2].split()[0])


def _environment(libraries: Path | None) -> dict[str, str]:
    environment = dict(os.environ)
    if libraries is not None:
        places = [str(libraries), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, places))
    return environment


def _reason(text: str) -> str:
    """Return the line with an error, or the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return (telling or lines or ["no message"])[0 if telling else -1]
