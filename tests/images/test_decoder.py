"""Image decoding in a separate process, which is killed if an image takes too much."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from plurum.images import UnreadableImageError, open_image, pixels_from_image
from plurum.images.decoder import Decoder, DecoderError
from tests.pixel_matrix.jpeg_cells import saved
from tests.pixel_matrix.tiff_cells import smooth

RULE = {"height": 24, "width": 32, "colour": "rgb", "resize": "stretch"}


def processes() -> list[psutil.Process]:
    """Return the decoder processes among the children of this one."""
    return [one for one in psutil.Process().children() if "images.decoder" in one.cmdline()]


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    one = Decoder(RULE)
    yield one
    one.close()
    assert not processes()


def large() -> bytes:
    """Return a progressive JPEG of 16 megapixels, which takes at least half a second to decode."""
    return saved(Image.new("RGB", (4000, 4000), "pink"), progressive=True, subsampling=0)


def test_the_decoder_returns_the_same_pixels(decoder: Decoder) -> None:
    for image in (smooth(), smooth()[:20, :30]):
        data = saved(Image.fromarray(image))
        expected = pixels_from_image(open_image(data), height=24, width=32)
        np.testing.assert_array_equal(decoder.pixels(data), expected)


def test_padding_has_its_colour_in_the_decoder_too() -> None:
    rule = {**RULE, "resize": "pad", "fill": (10, 20, 30)}
    decoder = Decoder(rule)
    data = saved(Image.fromarray(smooth()[:20, :30]))
    pixels = decoder.pixels(data)
    decoder.close()
    assert (pixels[0] == (10, 20, 30)).all()
    np.testing.assert_array_equal(pixels, pixels_from_image(open_image(data), **rule))


def test_invalid_images_are_reported_and_the_decoder_continues(decoder: Decoder) -> None:
    data = saved(Image.fromarray(smooth()))
    decoder.pixels(data)
    (process,) = processes()
    with pytest.raises(UnreadableImageError, match="not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image"):
        decoder.pixels(b"patient")
    decoder.pixels(data)
    assert processes() == [process]


def test_an_image_that_takes_too_long_ends_only_the_decoder() -> None:
    decoder = Decoder(RULE, cpu_s=0.1)
    try:
        data = saved(Image.fromarray(smooth()))
        decoder.pixels(data)
        begin = time.monotonic()
        with pytest.raises(UnreadableImageError, match=r"image takes more than 0\.1 s to decode"):
            decoder.pixels(large())
        assert time.monotonic() - begin < 10
        assert decoder.pixels(data).shape == (24, 32, 3)
    finally:
        decoder.close()


def test_an_image_that_is_not_decoded_in_time_ends_the_decoder(decoder: Decoder) -> None:
    decoder.pixels(saved(Image.fromarray(smooth())))
    (process,) = processes()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UnreadableImageError, match="image takes more than 1 s to decode on this busy machine"):
        decoder.pixels(saved(Image.fromarray(smooth())), within_s=1)
    assert decoder.pixels(saved(Image.fromarray(smooth()))).shape == (24, 32, 3)


def test_an_image_that_takes_too_much_memory_is_reported() -> None:
    decoder = Decoder(RULE, memory_bytes=200 << 20)
    try:
        with pytest.raises(UnreadableImageError):
            decoder.pixels(large())
        with pytest.raises(UnreadableImageError, match="MiB of memory"):
            decoder.pixels(bytes(400 << 20))
        assert decoder.pixels(saved(Image.fromarray(smooth()))).shape == (24, 32, 3)
    finally:
        decoder.close()


def test_a_process_that_crashes_is_replaced(decoder: Decoder) -> None:
    data = saved(Image.fromarray(smooth()))
    decoder.pixels(data)
    for number in (signal.SIGSEGV, signal.SIGKILL):
        (process,) = processes()
        process.send_signal(number)
        process.wait(10)
        assert decoder.pixels(data).shape == (24, 32, 3)


def test_a_crash_of_the_decoder_is_reported(decoder: Decoder) -> None:
    decoder.pixels(saved(Image.fromarray(smooth())))
    (process,) = processes()
    process.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, process.send_signal, (signal.SIGSEGV,)).start()
    threading.Timer(0.4, process.send_signal, (signal.SIGCONT,)).start()
    with pytest.raises(UnreadableImageError, match="image crashed its decoder"):
        decoder.pixels(saved(Image.fromarray(smooth())))


def test_a_missing_interpreter_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DecoderError, match="python3 is not on PATH"):
        Decoder(RULE).pixels(b"")


def test_a_decoder_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    decoder = Decoder({**RULE, "colour": "rgb"})
    monkeypatch.setattr("plurum.images.decoder._python", lambda: "/bin/false")
    try:
        with pytest.raises(DecoderError, match="exit code 1"):
            decoder.pixels(b"")
    finally:
        decoder.close()


def test_the_decoder_ends_with_its_parent(tmp_path: Path) -> None:
    script = """
import sys, time
from plurum.images.decoder import Decoder
decoder = Decoder({"height": 24, "width": 32, "colour": "rgb", "resize": "stretch"})
decoder.pixels(open(sys.argv[1], "rb").read())
print(decoder._process.pid, flush=True)
decoder.pixels(open(sys.argv[2], "rb").read())
time.sleep(60)
"""
    (tmp_path / "small.jpg").write_bytes(saved(Image.fromarray(smooth())))
    (tmp_path / "large.jpg").write_bytes(large())
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "small.jpg", tmp_path / "large.jpg"], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        # In the middle of decoding, when it checks nothing.
        time.sleep(0.15)
        parent.kill()
        child.wait(5)
        assert not child.is_running()


def test_the_decoder_is_private_to_its_user(decoder: Decoder) -> None:
    decoder.pixels(saved(Image.fromarray(smooth())))
    (process,) = processes()
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    assert "Umask:\t0077" in status
    assert Path(f"/proc/{process.pid}/cwd").readlink() == Path("/")
    assert all(len(word) < 300 for word in process.cmdline())
