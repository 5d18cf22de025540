"""Cells of TIFFs, written and read by tifffile and imagecodecs, or written by hand where those don't."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any, Literal

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from tests.pixel_matrix.cell import Cell, Pixels, eight, samples, three, turned

LAYOUTS: dict[str, dict[str, Any]] = {"strip": {}, "strips": {"rowsperstrip": 8}, "tiles": {"tile": (16, 32)}}
ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float16", "float32", "float64")
COMPRESSIONS = (
    None,
    "lzw",
    "adobe_deflate",
    "deflate",
    "packbits",
    "zstd",
    "lzma",
    "lerc",
    "jpeg2000",
    "png",
    "jpegxl",
)


def tiff_cells() -> Iterator[Cell]:
    """Yield all."""
    yield from number_cells()
    yield from colour_cells()
    yield from packed_cells()
    yield from jpeg_cells()
    yield from fax_cells()
    yield from opacity_cells()
    yield from turned_cells()
    yield from page_cells()
    yield from stated_cells()


def written(pixels: npt.NDArray[Any], **options: Any) -> bytes | None:
    """Return a TIFF; None where tifffile can't write such."""
    file = io.BytesIO()
    try:
        tifffile.imwrite(file, pixels, **{"metadata": None, **options})
    except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError, tifffile.TiffFileError):
        return None
    return file.getvalue()


def reference(data: bytes, page: int = 0) -> Pixels | None:
    """Return what tifffile reads, understood by TIFF 6.0's text; None for values without a known range."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        one = file.pages[page]
        assert isinstance(one, tifffile.TiffPage)
        values, colours = one.asarray(), tifffile.PHOTOMETRIC(one.photometric).name
        if values.dtype.kind not in "ub" or values.dtype.itemsize > 2 or colours in {"CIELAB", "CFA", "LINEAR_RAW"}:
            return None
        values = values.reshape(one.imagelength, one.imagewidth, -1) if one.planarconfig == 1 else values
        values = np.moveaxis(values, 0, -1) if one.planarconfig == 2 and values.ndim == 3 else values
        values = values.astype(np.int64).reshape(one.imagelength, one.imagewidth, -1)
        bits = one.bitspersample
        extra = [int(kind) for kind in one.extrasamples]
        if colours == "PALETTE":
            assert one.colormap is not None
            return three(one.colormap.T[values[..., 0]] >> 8)
        if colours == "MINISWHITE":
            values = (1 << bits) - 1 - values
        if colours == "YCBCR" and one.compression != 7:
            return None
        base = {"MINISBLACK": 1, "MINISWHITE": 1, "SEPARATED": 4}.get(colours, 3)
        plain: npt.NDArray[Any] = eight(values[..., :base], bits)
        if colours == "SEPARATED":
            plain = np.round((255 - plain[..., :3]) * (255 - plain[..., 3:]) / 255).astype(np.int64)
        if not extra or extra[0] == 0:
            return three(plain)
        opacity = values[..., base : base + 1] / ((1 << bits) - 1)
        over = plain + np.round(255 * (1 - opacity)) if extra[0] == 1 else plain * opacity + 255 * (1 - opacity)
        return three(np.clip(np.round(over), 0, 255))


def number_cells() -> Iterator[Cell]:
    """Grey and RGB of all types of numbers, by compression, layout, byte order, predictor and planes."""
    for dtype, compression, order, layout in product(DTYPES, COMPRESSIONS, ORDERS, LAYOUTS):
        kind = np.dtype(dtype)
        bits = 10 if kind.kind == "f" else min(kind.itemsize * 8, 32) - (kind.kind == "i")
        for count, planes, predictor in ((1, 1, 1), (1, 1, 2), (3, 1, 1), (3, 1, 2), (3, 2, 1), (3, 2, 2), (1, 1, 3)):
            if (predictor == 3) != (kind.kind == "f" and predictor != 1) or (predictor > 1 and compression is None):
                continue
            values = samples(bits, count)[..., : max(1, count)].astype(dtype)
            shaped = values[..., 0] if count == 1 else np.moveaxis(values, -1, 0) if planes == 2 else values
            data = written(
                shaped,
                photometric="rgb" if count == 3 else "minisblack",
                planarconfig=("contig", "separate")[planes - 1] if count == 3 else None,
                compression=compression,
                predictor=predictor if predictor > 1 else None,
                byteorder=order,
                **LAYOUTS[layout],
            )
            if data is not None:
                name = f"TIFF {dtype} x{count} {compression} {order} {layout} planes {planes} predictor {predictor}"
                yield Cell(name, data, reference(data))


def colour_cells() -> Iterator[Cell]:
    """Other colours, BigTIFF, and numbers of samples."""
    for colours, count, bits in product(
        ("miniswhite", "minisblack", "rgb", "palette", "separated", "cielab", "icclab", "ycbcr", "cfa", "linear_raw"),
        (1, 2, 3, 4, 5, 6),
        (8, 16),
    ):
        values = samples(bits, count).astype(f"uint{bits}")
        for order, big, compression in product(ORDERS, (False, True), (None, "lzw")):
            options: dict[str, Any] = {"photometric": colours, "byteorder": order, "compression": compression}
            if colours == "palette":
                options["colormap"] = np.random.default_rng(1).integers(0, 65536, (3, 1 << bits), dtype=np.uint16)
            shaped = values[..., 0] if count == 1 else values
            file = io.BytesIO()
            try:
                with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
                    options.pop("byteorder")
                    writer.write(shaped, metadata=None, planarconfig="contig" if count > 1 else None, **options)
            except (ValueError, KeyError):
                continue
            data = file.getvalue()
            tolerance = 1 if colours == "separated" or count in {2, 4} else 0
            name = f"TIFF {colours} {bits} x{count} {order} {'big' if big else 'classic'} {compression}"
            yield Cell(name, data, reference(data), tolerance)


def packed(values: npt.NDArray[np.uint64], bits: int) -> bytes:
    """Return values `[height, width, count]` of any number of bits, each row filled up to a byte."""
    height = values.shape[0]
    flat = values.reshape(height, -1)
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    ones = ((flat[..., None] >> shifts) & np.uint64(1)).astype(np.uint8).reshape(height, -1)
    return np.packbits(ones, axis=1).tobytes()


def by_hand(
    values: npt.NDArray[np.uint64], bits: int, body: bytes, order: str = "<", **tags: int | tuple[int, ...]
) -> bytes:
    """Return a TIFF of one strip; `tags` are `t259=5` and so on."""
    height, width, count = values.shape
    entries: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * count,
        259: (1,),
        262: (2 if count == 3 else 1,),
        273: (0,),
        277: (count,),
        278: (height,),
        279: (len(body),),
    }
    entries |= {int(tag[1:]): one if isinstance(one, tuple) else (one,) for tag, one in tags.items()}
    outside = 8 + 2 + 12 * len(entries) + 4
    entries[273] = (outside + sum(2 * len(one) for one in entries.values() if len(one) > 2),)
    directory, more = struct.pack(order + "H", len(entries)), b""
    for tag, one in sorted(entries.items()):
        kind = 4 if tag in {256, 257, 273, 278, 279} else 3
        inline = struct.pack(order + f"{len(one)}{'I' if kind == 4 else 'H'}", *one) if len(one) <= 2 else b""
        if not inline:
            inline = struct.pack(order + "I", outside + len(more))
            more += struct.pack(order + f"{len(one)}H", *one)
        directory += struct.pack(order + "HHI", tag, kind, len(one)) + inline.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory + b"\0" * 4 + more + body


def packed_cells() -> Iterator[Cell]:
    """All numbers of bits from 1 to 32 whose values lie side by side without regard to bytes."""
    squeezed = {1: lambda body: body, 8: zlib.compress, 5: imagecodecs.lzw_encode, 32773: imagecodecs.packbits_encode}
    for bits, colours, order, (compression, squeeze) in product(range(1, 33), (0, 1, 2, 3), "<>", squeezed.items()):
        if (colours == 3 and bits > 8) or (compression == 32773 and bits > 16):
            continue
        values = samples(bits, 3 if colours == 2 else 1)
        body = packed(values, bits)
        if bits in {16, 32}:
            body = values.astype(f"{order}u{bits // 8}").tobytes()
        extra: dict[str, Any] = {"t262": colours, "t259": compression}
        if colours == 3:
            table = np.random.default_rng(2).integers(0, 65536, (3, 1 << bits))
            extra["t320"] = tuple(map(int, table.ravel()))
            expected = three(table.T[values[..., 0].astype(int)] >> 8)
        else:
            inverted = (np.uint64((1 << bits) - 1) - values) if colours == 0 else values
            expected = three(eight(inverted, bits))
        strip = squeeze(body)
        assert isinstance(strip, bytes)
        for fill in (1, 2) if bits in {1, 8} else (1,):
            data = by_hand(values, bits, _reversed(strip) if fill == 2 else strip, order, **extra, t266=fill)
            name = f"TIFF packed {bits} bits photometric {colours} {order} compression {compression} fill order {fill}"
            yield Cell(name, data, expected)


def _reversed(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")).tobytes()


def jpeg_cells() -> Iterator[Cell]:
    """JPEG and WebP inside."""
    for colours, sampling, layout, order in product(
        ("minisblack", "rgb", "ycbcr"), ((1, 1), (2, 1), (2, 2)), LAYOUTS, "<>"
    ):
        if colours != "ycbcr" and sampling != (1, 1):
            continue
        values = smooth() if colours != "minisblack" else smooth()[..., 0]
        data = written(
            values, photometric=colours if colours != "ycbcr" else "rgb", compression="jpeg", byteorder=order,
            subsampling=sampling, **LAYOUTS[layout],
            compressionargs={"level": 92, "outcolorspace": {"rgb": "rgb", "ycbcr": "ycbcr"}.get(colours)},
        )  # fmt: skip
        if data is not None:
            yield Cell(f"TIFF jpeg {colours} {sampling} {layout} {order}", data, reference(data), 3)
    for quality in (80, 95):
        for layout, options in LAYOUTS.items():
            data = written(
                smooth(), photometric="rgb", compression="webp", compressionargs={"level": quality}, **options
            )
            if data is not None:
                yield Cell(f"TIFF webp {quality} {layout}", data, reference(data), 3)
    for compression in ("jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "webp", None):
        for mode in ("L", "RGB", "CMYK", "YCbCr", "LAB", "RGBA", "LA", "P", "1", "I;16", "I", "F"):
            cell = _by_pillow(mode, compression)
            if cell is not None:
                yield cell


def smooth() -> npt.NDArray[np.uint8]:
    """Return a picture that JPEG keeps well."""
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack(
        [rows * 4 + 20, columns * 3 + 30, 220 - rows * 2 - columns], axis=-1, dtype=np.uint8, casting="unsafe"
    )


def _by_pillow(mode: str, compression: str | None) -> Cell | None:
    """What Pillow writes of its own modes, read by tifffile."""
    file = io.BytesIO()
    try:
        image = Image.fromarray(smooth()).convert("L" if mode in {"I;16", "I", "F"} else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        elif mode in {"I", "F"}:
            image = image.convert(mode)
        image.save(file, "TIFF", **({"compression": compression} if compression else {}))
        data = file.getvalue()
        expected = reference(data)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError):
        return None
    tolerance = 3 if compression in {"jpeg", "webp"} else 1 if mode in {"CMYK", "RGBA", "LA"} else 0
    return Cell(f"TIFF Pillow {mode} {compression}", data, expected, tolerance)


def by_opencv(data: bytes) -> Pixels:
    """Return what OpenCV reads; tifffile doesn't read all that fax machines send."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def fax_cells() -> Iterator[Cell]:
    """One bit, as fax machines compress it."""
    half = np.asarray(Image.fromarray(samples(8, 1)[..., 0].astype(np.uint8)).convert("1"))
    for compression, inverted in product(("tiff_ccitt", "group3", "group4"), (False, True)):
        file = io.BytesIO()
        Image.fromarray(half).save(file, "TIFF", compression=compression, tiffinfo={262: 0 if inverted else 1})
        data = file.getvalue()
        yield Cell(f"TIFF {compression} {'white is zero' if inverted else 'black is zero'}", data, by_opencv(data))


def opacity_cells() -> Iterator[Cell]:
    """Samples beyond the colours: none of them, opacity as such, opacity already multiplied, several."""
    for bits, count, kinds, order, planes in product(
        (8, 16), (1, 3), ((0,), (1,), (2,), (0, 0), (2, 0), (1, 0)), "<>", (1, 2)
    ):
        values = samples(bits, count + len(kinds)).astype(f"uint{bits}")
        if kinds[0] == 1:
            values[..., :count] = (values[..., :count] * (values[..., count : count + 1] / ((1 << bits) - 1))).astype(
                values.dtype
            )
        shaped = np.moveaxis(values, -1, 0) if planes == 2 else values
        data = written(
            shaped, photometric="rgb" if count == 3 else "minisblack", extrasamples=kinds, byteorder=order,
            planarconfig=("contig", "separate")[planes - 1],
        )  # fmt: skip
        if data is not None:
            name = f"TIFF {bits} bits x{count} extra {kinds} {order} planes {planes}"
            yield Cell(name, data, reference(data), 2)


def turned_cells() -> Iterator[Cell]:
    """Orientations."""
    for orientation, layout, compression in product(range(1, 9), LAYOUTS, (None, "lzw", "jpeg")):
        values = smooth()
        tags = [(274, 3, 1, orientation, True)]
        data = written(values, photometric="rgb", extratags=tags, compression=compression, **LAYOUTS[layout])
        if data is not None:
            seen = reference(data)
            assert seen is not None
            name = f"TIFF orientation {orientation} {layout} {compression}"
            yield Cell(name, data, turned(seen, orientation), 3 if compression == "jpeg" else 0)


def page_cells() -> Iterator[Cell]:
    """Pages: which is the image, if any one is."""
    whole, other, small = smooth(), smooth()[::-1], smooth()[::4, ::4]
    mask = (smooth()[..., 0] > 99).astype(np.bool_)
    cases: dict[str, tuple[list[tuple[npt.NDArray[Any], int]], int | None]] = {
        "thumbnail behind": ([(whole, 0), (small, 1)], 0),
        "thumbnail in front": ([(small, 1), (whole, 0)], 1),
        "mask behind": ([(whole, 0), (mask, 4)], 0),
        "mask in front": ([(mask, 4), (whole, 0)], 1),
        "pyramid": ([(whole, 0), (whole[::2, ::2], 1), (small, 1)], 0),
        "two pages": ([(whole, 0), (other, 0)], None),
        "two numbered pages": ([(whole, 2), (other, 2)], None),
        "two pages and a thumbnail": ([(small, 1), (whole, 0), (other, 0)], None),
        "thumbnail alone": ([(small, 1)], None),
        "mask alone": ([(mask, 4)], None),
    }
    for (name, (pages, which)), order, big in product(cases.items(), ORDERS, (False, True)):
        file = io.BytesIO()
        with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:
            for values, subfile in pages:
                colours = "minisblack" if values.ndim == 2 else "rgb"
                writer.write(values, photometric=colours, subfiletype=subfile, metadata=None)
        data = file.getvalue()
        expected = None if which is None else reference(data, which)
        yield Cell(f"TIFF {name} {order} {'big' if big else 'classic'}", data, expected)
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([whole[..., 0], other[..., 0]]), imagej=True)
    yield Cell("TIFF ImageJ stack", file.getvalue(), None)
    file = io.BytesIO()
    tifffile.imwrite(
        file, samples(8, 1, 40, 40)[..., 0].astype(np.uint8).reshape(1, 40, 40), volumetric=True, tile=(16, 16, 16)
    )
    yield Cell("TIFF volume", file.getvalue(), None)


def stated_cells() -> Iterator[Cell]:
    """16 bits that say how many of them count."""
    for bits, tag in product((9, 10, 12, 14, 15, 16), (281, 341)):
        values = samples(bits, 1)
        stated: dict[str, Any] = {f"t{tag}": (1 << bits) - 1}
        data = by_hand(values, 16, values.astype("<u2").tobytes(), **stated)
        yield Cell(f"TIFF {bits} of 16 bits by tag {tag}", data, three(eight(values, bits)))
    values = samples(8, 1)
    table = np.random.default_rng(3).integers(0, 256, 768)
    data = by_hand(values, 8, values.astype(np.uint8).tobytes(), t262=3, t320=tuple(map(int, table)))
    yield Cell("TIFF palette of 8 bits", data, three(table.reshape(3, 256).T[values[..., 0].astype(int)]))
