"""The cost and completeness of an image are known before decoding."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from plurum.images import UnreadableImageError, open_image, structure_of
from tests.pixel_matrix.cell import samples
from tests.pixel_matrix.jpeg_cells import saved
from tests.pixel_matrix.png_cells import chunk, png
from tests.pixel_matrix.tiff_cells import by_hand, smooth

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
# Fill-in within the last unit of 16 × 16 pixels can't be detected.
LARGER = {
    mode: np.random.default_rng(1).integers(0, 256, (96, 96, bands), dtype=np.uint8).squeeze()
    for mode, bands in (("L", 1), ("RGB", 3), ("CMYK", 4))
}


def scans_of(data: bytes) -> list[bytes]:
    """Return the last segments of a JPEG, each with its entropy-coded data."""
    places = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    return [data[start:end] for start, end in zip(places, [*places[1:], len(data) - 2], strict=True)]


def refused_quickly(data: bytes, match: str) -> None:
    """Check that an image is refused within 0.3 s and with little memory, whatever size it claims."""
    with pytest.raises(UnreadableImageError):
        structure_of(data)
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(UnreadableImageError, match=match):
        open_image(data)
    taken_s, peak_bytes = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Tracing makes allocations several times slower.
    assert taken_s < 1
    assert peak_bytes < 20_000_000 + 3 * len(data)


def flat_jpeg(side: int, **options: object) -> bytes:
    return saved(Image.new("L", (side, side), 90), **options)


def test_the_last_scan_again_and_again_is_refused() -> None:
    data = saved(Image.fromarray(smooth()), progressive=True)
    last = scans_of(data)[-1]
    refused_quickly(data[:-2] + last * 20_000 + data[-2:], "scans repeat")


def test_a_first_scan_again_is_refused() -> None:
    data = saved(Image.fromarray(smooth()))
    refused_quickly(data[:-2] + scans_of(data)[0] + data[-2:], "scans repeat")


def test_more_scans_than_encoders_write_are_refused() -> None:
    data = saved(Image.fromarray(smooth()[..., 0]), progressive=True)
    head, first = data[: data.index(b"\xff\xda")], scans_of(data)[0]
    # One coefficient and bit per scan, from bit 13 down: legal, with 14 times 63 scans.
    body = b"".join(
        b"\xff\xda\0\x08\1\1\0" + bytes([k, k, (0 if bit == 13 else (bit + 1) << 4) | bit]) + b"\x00" * 4
        for k in range(1, 64)
        for bit in range(13, -1, -1)
    )
    refused_quickly(head + first.replace(b"\0\0\1", b"\0\0\0") + body + b"\xff\xd9", "scans|codes|Huffman|repeat")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000 + flat_jpeg(64)[2:], "more than 1000 JPEG segments"),
        (b"\xff\xd8" + b"\xff" * 2_000_000 + flat_jpeg(64)[2:], "padding without end"),
        (png(samples(8, 3), 8, 2, *[chunk(b"tIME", b"")] * 100_000), "more than 2,"),
        (png(samples(8, 3), 8, 2, *[chunk(b"IDAT", b"")] * 100_000), "more than 2,"),
    ],
    ids=["jpeg segments", "jpeg padding", "png chunks", "png empty pixels"],
)
def test_too_many_pieces_are_refused(data: bytes, match: str) -> None:
    refused_quickly(data, match)


def tiled(image: tuple[int, int], tile: tuple[int, int]) -> bytes:
    """Return a TIFF with one tile that is much larger than the image: a Deflate stream of zeros."""
    values = samples(8, 1, image[1], image[0])
    body = zlib.compress(bytes(1000))
    data = by_hand(values, 8, body, t259=8, t322=tile[0], t323=tile[1], t324=0, t325=len(body))
    # `by_hand` writes a strip; the tile takes its place.
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages.first.tags[273].value[0]
    data = by_hand(values, 8, body, t259=8, t322=tile[0], t323=tile[1], t324=offset, t325=len(body))
    for tag in (273, 279):
        at = data.index(struct.pack("<HH", tag, 4))
        data = data[:at] + struct.pack("<H", 60000 + tag) + data[at + 2 :]
    return data


def test_a_tile_much_larger_than_its_image_is_refused() -> None:
    refused_quickly(tiled((100, 100), (26_000, 26_000)), "tiles of 26000 x 26000")


def test_many_tiles_that_are_nearly_all_beyond_the_image_are_refused() -> None:
    refused_quickly(tiled((60_000, 9), (16, 8_000)), "tiles of 16 x 8000")


def test_a_jpeg_in_a_tiff_that_is_larger_than_its_strip_is_refused() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, smooth(), photometric="rgb", compression="jpeg", metadata=None)
    data = file.getvalue()
    frame = data.index(b"\xff\xc0") + 5
    refused_quickly(data[:frame] + struct.pack(">HH", 8000, 8000) + data[frame + 4 :], "8000|truncated")


def test_tiff_directories_in_a_circle_are_refused() -> None:
    data = bytearray(by_hand(samples(8, 1), 8, samples(8, 1).astype(np.uint8).tobytes()))
    (count,) = struct.unpack_from("<H", data, 8)
    struct.pack_into("<I", data, 10 + 12 * count, 8)
    refused_quickly(bytes(data), "circle")


def test_tiff_directories_without_number_are_refused() -> None:
    data = by_hand(samples(8, 1), 8, samples(8, 1).astype(np.uint8).tobytes())
    start = len(data) + len(data) % 2
    pages = b"".join(struct.pack("<HI", 0, start + 6 * (number + 1)) for number in range(100_000))
    (count,) = struct.unpack_from("<H", data, 8)
    at = 10 + 12 * count
    data = data[:at] + struct.pack("<I", start) + data[at + 4 :]
    refused_quickly(data.ljust(start, b"\0") + pages, "more than 1,000")


def test_tiff_tags_that_share_one_large_value_are_refused() -> None:
    values = samples(8, 1)
    plain = by_hand(values, 8, values.astype(np.uint8).tobytes())
    tags: dict[str, Any] = {f"t{tag}": 1 for tag in range(40_000, 40_300)}
    data = bytearray(by_hand(values, 8, values.astype(np.uint8).tobytes() + bytes(3_000_000), **tags))
    for number in range(struct.unpack_from("<H", data, 8)[0]):
        at = 10 + 12 * number
        if struct.unpack_from("<H", data, at)[0] >= 40_000:
            struct.pack_into("<HII", data, at + 2, 1, 2_900_000, len(plain))
    refused_quickly(bytes(data), "share their values")


def test_380_bytes_that_claim_64_megapixels_are_refused() -> None:
    data = bytearray(flat_jpeg(16))
    frame = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, frame, 8000, 8000)
    assert len(data) < 400
    refused_quickly(bytes(data), r"truncated: a JPEG scan of \d+ bytes, but 8000 x 8000 pixels take at least")


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    data = saved(Image.fromarray(smooth()), progressive=True)
    scans = scans_of(data)
    for left in range(len(scans)):
        head = data[: data.index(b"\xff\xda")]
        with pytest.raises(UnreadableImageError, match="truncated"):
            open_image(head + b"".join(scans[:left]) + b"\xff\xd9")


def without_end(data: bytes, share: float) -> bytes:
    """Remove the end of the last scan's entropy-coded data, but not the marker after it."""
    scan = scans_of(data)[-1]
    cut = data[: len(data) - 2 - int(len(scan) * share)]
    return cut.rstrip(b"\xff") + b"\xff\xd9"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 2},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"restart_marker_rows": 1},
        {"optimize": True, "quality": 30},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_whose_pixels_end_early_is_refused(mode: str, options: dict[str, int], share: float) -> None:
    data = saved(Image.fromarray(LARGER[mode], mode), **options)
    assert open_image(data).size == (96, 96)
    with pytest.raises(UnreadableImageError, match="truncated"):
        open_image(without_end(data, share))


def test_a_jpeg_whose_interval_ends_early_is_refused() -> None:
    data = saved(Image.fromarray(NOISE), restart_marker_blocks=8, subsampling=0)
    second, third = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    short = data[: second + 2 + (third - second) // 3].rstrip(b"\xff") + data[third:]
    with pytest.raises(UnreadableImageError, match="truncated"):
        open_image(short)


def test_a_jpeg_without_some_of_its_restart_markers_is_refused() -> None:
    data = saved(Image.fromarray(NOISE), restart_marker_blocks=8)
    with pytest.raises(UnreadableImageError, match="restart markers"):
        open_image(data[: data.index(b"\xff\xd0")] + b"\xff\xd9")


@pytest.mark.parametrize("kind", [{}, {"restart_marker_blocks": 2}, {"progressive": True}], ids=str)
def test_a_grey_jpeg_is_read(kind: dict[str, int]) -> None:
    """The image is complete, and its pixels equal the decoder's fill-in."""
    for mode, colour in (("L", 128), ("RGB", (128, 128, 128))):
        assert open_image(saved(Image.new(mode, (64, 64), colour), **kind)).getpixel((60, 60)) == colour


@pytest.mark.parametrize("colours", ["rgb", "minisblack"])
def test_a_jpeg_in_a_tiff_whose_pixels_end_early_is_refused(colours: str) -> None:
    file = io.BytesIO()
    values = NOISE if colours == "rgb" else NOISE[..., 0]
    tifffile.imwrite(file, values, photometric=colours, compression="jpeg", tile=(32, 32), metadata=None)
    data = file.getvalue()
    assert open_image(data).size == (64, 64)
    with tifffile.TiffFile(io.BytesIO(data)) as one:
        page = one.pages.first
        offset, count = page.dataoffsets[1], page.databytecounts[1]
    tile = data[offset : offset + count]
    short = without_end(tile, 0.4)
    data = data[:offset] + short + bytes(count - len(short)) + data[offset + count :]
    file = io.BytesIO(data)
    with tifffile.TiffFile(file, mode="r+") as one:
        tag = one.pages.first.tags["TileByteCounts"]
        tag.overwrite([len(short) if number == 1 else size for number, size in enumerate(tag.value)])
        data = file.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as one:
        assert one.pages.first.databytecounts[1] == len(short)
    with pytest.raises(UnreadableImageError, match="truncated"):
        open_image(data)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_without_its_last_rows_is_refused(interlaced: bool) -> None:
    values = samples(8, 3)
    whole = png(values, 8, 2, interlaced=interlaced)
    assert open_image(whole).size == (45, 37)
    start, end = whole.index(b"IDAT"), whole.index(b"IEND") - 4
    body = zlib.decompress(b"".join(_idat(whole)))
    for share in (0.99, 0.5, 0.0):
        short = whole[: start - 4] + chunk(b"IDAT", zlib.compress(body[: int(len(body) * share)])) + whole[end:]
        with pytest.raises(UnreadableImageError, match="truncated"):
            open_image(short)


def _idat(data: bytes) -> list[bytes]:
    place, found = 8, []
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            found.append(data[place + 8 : place + 8 + length])
        place += 12 + length
    return found


def test_a_png_whose_last_row_is_black_is_read() -> None:
    values = samples(8, 3)
    values[-1] = 0
    for interlaced in (False, True):
        assert np.asarray(open_image(png(values, 8, 2, interlaced=interlaced)))[-1].max() == 0


def test_a_png_that_can_not_unfold_to_its_size_is_refused() -> None:
    data = bytearray(png(samples(8, 3), 8, 2))
    struct.pack_into(">II", data, 16, 8000, 8000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    refused_quickly(bytes(data), "truncated: .* compressed bytes can't hold")


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_profiles_and_texts_are_not_expanded(kind: bytes) -> None:
    """A profile or text of 60 MB is not decompressed, and the image is read."""
    bomb = zlib.compress(bytes(60_000_000), 1)
    body = {b"iCCP": b"p\0\0" + bomb, b"zTXt": b"note\0\0" + bomb, b"iTXt": b"note\0\1\0\0\0" + bomb}[kind]
    data = png(samples(8, 3), 8, 2, *[chunk(kind, body)] * 3)
    tracemalloc.start()
    np.testing.assert_array_equal(np.asarray(open_image(data)), samples(8, 3))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


@pytest.mark.parametrize(
    "change", ["no strip", "empty strip", "strip beyond the end", "one strip too few", "short strip"]
)
def test_a_tiff_without_some_of_its_strips_is_refused(change: str) -> None:
    values = samples(8, 1)
    body = values.astype(np.uint8).tobytes()
    good = by_hand(values, 8, body)
    assert open_image(good).size == (45, 37)
    changed: Callable[[], bytes] = {
        "no strip": lambda: good.replace(struct.pack("<HHI", 273, 4, 1), struct.pack("<HHI", 60273, 4, 1)),
        "empty strip": lambda: by_hand(values, 8, body, t279=0),
        "strip beyond the end": lambda: good[:-1],
        "one strip too few": lambda: by_hand(values, 8, body, t278=20),
        "short strip": lambda: by_hand(values, 8, body, t279=len(body) - 1),
    }[change]
    with pytest.raises(UnreadableImageError, match=r"truncated|neither strips nor tiles"):
        open_image(changed())


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits"])
def test_a_tiff_whose_strip_unfolds_to_too_little_is_refused(compression: str) -> None:
    values = samples(8, 3)
    encode: tuple[int, Any] = {
        "lzw": (5, imagecodecs.lzw_encode),
        "zlib": (8, zlib.compress),
        "zstd": (50000, imagecodecs.zstd_encode),
        "packbits": (32773, imagecodecs.packbits_encode),
    }[compression]
    body = values.astype(np.uint8).tobytes()
    for share in (0.99, 0.5):
        data = by_hand(values, 8, bytes(encode[1](body[: int(len(body) * share)])), t259=encode[0])
        with pytest.raises(
            UnreadableImageError, match=f"corrupt or truncated .*{'Deflate' if compression == 'zlib' else ''}"
        ):
            open_image(data)


def test_an_unsupported_tiff_compression_is_named() -> None:
    values = samples(8, 1)
    for number, name in ((34887, "LERC"), (34925, "LZMA"), (33003, "JPEG 2000"), (6, "old JPEG"), (777, "777")):
        with pytest.raises(UnreadableImageError, match=f"a TIFF that can't be decoded here.*compression {name}"):
            open_image(by_hand(values, 8, b"x" * 100, t259=number))


def test_a_palette_of_more_than_16_bits_is_refused() -> None:
    """Found by the fuzz test: Pillow raises an OverflowError."""
    values = samples(8, 1)
    data = bytearray(by_hand(values, 8, values.astype(np.uint8).tobytes(), t262=3, t320=(40_000,) * 768))
    data += b"\xff" * (4 * 768)
    at = data.index(struct.pack("<HHI", 320, 3, 768))
    struct.pack_into("<HHII", data, at, 320, 4, 768, len(data) - 4 * 768)
    with pytest.raises(UnreadableImageError, match="palette"):
        open_image(bytes(data))


def test_images_of_16_bits_that_use_only_the_low_byte_are_refused() -> None:
    for count in (1, 3):
        values = samples(8, count)
        for data in (png(values, 16, 2 if count == 3 else 0), by_hand(values, 16, values.astype("<u2").tobytes())):
            with pytest.raises(UnreadableImageError, match="16 bits whose values are all below 256"):
                open_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_truncated_file_never_gives_other_pixels(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(NOISE[:24, :24]).save(file, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    data = file.getvalue()
    whole = open_image(data).tobytes()
    for end in range(len(data)):
        try:
            pixels = open_image(data[:end]).tobytes()
        except UnreadableImageError:
            continue
        assert pixels == whole, f"cut at {end} of {len(data)}"
