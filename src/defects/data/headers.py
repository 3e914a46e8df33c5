"""What the header of an image file says: format, bits, channels, number of pictures, why it cannot be used.

Read by hand: Pillow decodes a WebP to count its frames, opens none of many TIFFs that OpenCV reads, writes
warnings of broken tags to the console, and does not tell the coding tables of a JPEG.
"""

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from defects.data.jpeg_frame import read_jpeg_frame

EIGHT_BITS = 255  # the largest value
CONVERT = "convert to 8 or 16 bits"
ORIENTATION_TAG = 0x112  # of EXIF data

# Starts of files that people have and OpenCV cannot read, or only as floating-point values.
FOREIGN = {
    b"\x76\x2f\x31\x01": f"OpenEXR, a floating-point format: {CONVERT}",
    b"#?RADIANCE": f"32-bit float: {CONVERT}",
    b"#?RGBE": f"32-bit float: {CONVERT}",
    b"PF": f"32-bit float: {CONVERT}",
    b"Pf": f"32-bit float: {CONVERT}",
    b"\xff\x0a": "JPEG XL: convert to PNG",
    b"\0\0\0\x0cJXL ": "JPEG XL: convert to PNG",
    b"8BPS": "a Photoshop document: convert to PNG",
    b"%PDF": "a PDF: convert to PNG",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"version https://git-lfs": "a pointer of Git LFS, not the picture: run git lfs pull",
    b"<!DOCTYPE": "an HTML page: download the file again",
    b"<html": "an HTML page: download the file again",
}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}


@dataclass(frozen=True)
class Header:
    """`bits`, `white` and `channels` are of the values as they are stored."""

    format: str = ""  # "" of formats about which only the decoder knows something
    height: int = 0  # pixels before EXIF rotation; 0: not known
    width: int = 0
    bits: int = 8  # of each channel
    white: int = EIGHT_BITS  # largest value that the format allows
    channels: str = ""  # "grey", "RGB", "palette", ...; "": as the decoder says
    pictures: int = 1
    is_spread: bool = True  # the decoder makes 0 to 255 of fewer than 8 bits
    pages: str = "frames"  # what the format calls several pictures
    is_inverted: bool = False  # TIFF: 0 is white, which the decoder leaves to others
    straight_alpha: int = 0  # TIFF: position of the value that makes the decoder multiply colours by alpha
    is_compressed: bool = False  # TIFF
    is_tiled: bool = False  # TIFF
    fault: str = ""  # why the file cannot be used, and what to do

    @property
    def refusal(self) -> str:
        """Why the file cannot be used, or ""."""
        if self.fault:
            return self.fault
        if self.pictures > 1:
            return f"{self.pictures} {self.pages}: one picture per file"
        return ""


def read_header(content: bytes) -> Header:
    """Of a file's content. Of a broken header the format at most is known: the decoder will fail on it."""
    for start, fault in FOREIGN.items():
        if content.startswith(start):
            return Header(fault=fault)
    try:
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content.startswith(b"\x89PNG"):
            return _png(content)
        if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(content)
        if content.startswith(b"BM"):
            return _bmp(content)
        if re.match(rb"P[1-7]\s", content):
            return _pnm(content)
        if content[4:8] == b"ftyp":
            return _heif(content)
        if content[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or content[:4] == b"\xff\x4f\xff\x51":
            return _jpeg2000(content)
        if content.startswith(b"GIF8"):
            width, height = struct.unpack_from("<HH", content, 6)
            frames = _count_frames_with_pillow(content)
            return Header("GIF", height, width, channels="palette", pictures=frames)
        if content.startswith(b"RIFF"):
            return Header("WebP", pictures=_count_webp_frames(content))
    except (struct.error, ValueError, IndexError, KeyError):
        pass
    return Header()


def channel_name(count: int) -> str:
    """Of an array of `count` channels."""
    return {1: "grey", 2: "grey+alpha", 3: "RGB", 4: "RGBA"}.get(count, f"{count} channels")


def _count_webp_frames(content: bytes) -> int:
    return max(1, sum(name == b"ANMF" for name, _ in _webp_chunks(content)))


def is_rotated_webp(content: bytes) -> bool:
    """Whether EXIF data say that the picture is to be turned or mirrored."""
    exif = Image.Exif()
    try:
        for name, data in _webp_chunks(content):
            if name == b"EXIF":
                exif.load(data)
        return exif.get(ORIENTATION_TAG, 1) != 1
    except Exception:  # of several kinds, for EXIF data that nobody can read
        return False


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and data."""
    position = 12
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        yield content[position : position + 4], content[position + 8 : position + 8 + size]
        position += 8 + size + size % 2


def _count_frames_with_pillow(content: bytes) -> int:
    """Of GIF and AVIF; 1 where Pillow cannot open it."""
    try:
        with Image.open(io.BytesIO(content), formats=["GIF", "AVIF"]) as picture:
            return picture.n_frames
    except Exception:  # of a dozen kinds, for broken files
        return 1


def _jpeg(content: bytes) -> Header:
    try:
        frame = read_jpeg_frame(content)
    except ValueError:
        return Header("JPEG")
    fault = ""
    if frame.marker in (0xC3, 0xC7, 0xCB, 0xCF):
        fault = "a lossless JPEG: convert to PNG"
    elif frame.precision != 8:
        fault = f"a {frame.precision}-bit JPEG: convert to PNG"
    channels = {1: "grey", 3: "RGB", 4: "CMYK"}.get(frame.components, f"{frame.components} channels")
    return Header("JPEG", frame.height, frame.width, channels=channels, fault=fault)


def _png(content: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", content, 16)
    channels = {0: "grey", 2: "RGB", 3: "palette", 4: "grey+alpha", 6: "RGBA"}[colour]
    # The chunk that makes an animation stands before the pixels.
    animation = content.find(b"acTL", 0, content.find(b"IDAT"))
    frames = 1
    if animation >= 0 and int.from_bytes(content[animation - 4 : animation]) == 8:
        frames = max(1, int.from_bytes(content[animation + 4 : animation + 8]))
    return Header("PNG", height, width, bits, 2**bits - 1, channels, frames)


def _bmp(content: bytes) -> Header:
    size, width, height, _, depth = struct.unpack_from("<IiiHH", content, 14)
    if size == 12:  # the oldest kind of header
        return Header("BMP")
    bits = min(depth, 8)
    if depth > 8:
        channels = "RGB" if depth < 32 else "RGBA"
    else:
        entries = content[14 + size : struct.unpack_from("<I", content, 10)[0]]
        is_grey = entries[0::4] == entries[1::4] == entries[2::4]
        channels = "grey" if is_grey else "palette"
    return Header("BMP", abs(height), abs(width), bits, 2**bits - 1, channels)


def _pnm(content: bytes) -> Header:
    kind = content[1] - ord("0")
    if kind == 7:
        return _pam(content)
    separator = rb"(?:\s|#[^\n]*\n)+"
    is_bitmap = kind in (1, 4)  # whose header gives no white level
    number_count = 2 if is_bitmap else 3
    head = re.match(rb"P\d" + (separator + rb"(\d+)") * number_count, content[:4096])
    if not head:
        return Header("PNM")
    numbers = [int(number) for number in head.groups()]
    width = numbers[0]
    height = numbers[1]
    white = 1 if is_bitmap else numbers[2]
    channels = "RGB" if kind in (3, 6) else "grey"
    pictures = 1
    if kind in (5, 6):
        size = height * width * (3 if kind == 6 else 1) * (2 if white > EIGHT_BITS else 1)
        is_followed = content[head.end() + 1 + size :].lstrip().startswith(content[:2])
        pictures = 2 if is_followed else 1  # at least
    bits = white.bit_length()
    return Header("PNM", height, width, bits, white, channels, pictures, is_spread=is_bitmap)


def _pam(content: bytes) -> Header:
    head = content[: content.index(b"ENDHDR")]
    values = dict(line.split(None, 1) for line in head.splitlines()[1:] if line and not line.startswith(b"#"))
    width, height, depth, white = (int(values[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    bits = white.bit_length()
    # OpenCV 5.0 takes blue for red where there is alpha, and reads one bit wrongly.
    fault = "a PAM with alpha or of one bit: convert to PNG" if depth in (2, 4) or bits == 1 else ""
    return Header("PAM", height, width, bits, white, channel_name(depth), is_spread=False, fault=fault)


def _heif(content: bytes) -> Header:
    brand = content[8:12]
    end = int.from_bytes(content[:4])
    brands = {brand} | {content[start : start + 4] for start in range(16, min(end, 512), 4)}
    if brands & HEIC_BRANDS:
        return Header(fault="HEIC: convert to JPEG or PNG")
    if not brands & {b"avif", b"avis"}:
        return Header()
    # A rotation (irot, of quarter turns) or mirroring (imir), which OpenCV ignores.
    head = content[: content.find(b"mdat")]
    rotation = head.find(b"irot")
    if b"imir" in head or (rotation >= 0 and head[rotation + 4] & 3):
        return Header(fault="an AVIF with a mark to turn or mirror it: convert to PNG")
    start = content.find(b"pixi")  # version and flags, number of channels, bits of each
    bits = content[start + 9] if start >= 0 else 8
    frames = _count_frames_with_pillow(content) if brand == b"avis" else 1
    return Header("AVIF", bits=bits, white=2**bits - 1, pictures=frames)


def _jpeg2000(content: bytes) -> Header:
    start = content.index(b"\xff\x4f\xff\x51")
    x_end, y_end, x_start, y_start = struct.unpack_from(">4I", content, start + 8)
    height = y_end - y_start
    width = x_end - x_start
    box = content.find(b"ihdr", 0, start)
    if box >= 0:  # Pillow allocates what this box says
        box_height, box_width = struct.unpack_from(">II", content, box + 4)
        height = max(height, box_height)
        width = max(width, box_width)
    components, depth = struct.unpack_from(">HB", content, start + 40)
    bits = (depth & 0x7F) + 1
    fault = "signed JPEG 2000: convert to unsigned values" if depth & 0x80 else ""
    if bits > 16:
        fault = f"{bits}-bit JPEG 2000: {CONVERT}"
    channels = channel_name(components)
    return Header("JPEG 2000", height, width, bits, 2**bits - 1, channels, fault=fault)


# --- TIFF ------------------------------------------------------------------------------------------------

TAGS = {  # number -> name, and the value where it is missing
    254: ("subfile", 0),
    255: ("old_subfile", 1),
    256: ("width", None),
    257: ("height", None),
    258: ("bits", 1),
    259: ("compression", 1),
    262: ("photometric", 1),
    277: ("samples", 1),
    284: ("planar", 1),
    322: ("tile_width", None),
    338: ("extra", 0),
    339: ("sample_format", 1),
}
TAG_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the values of these tags
MAX_PAGES = 1000  # that are read
MAX_PAGE_TAGS = 4096
REDUCED_COPY = 1  # a bit of `subfile`
TRANSPARENCY = 4
COLOUR_MODELS = {  # photometric interpretation -> name, channels of colour
    0: ("grey", 1),
    1: ("grey", 1),
    2: ("RGB", 3),
    3: ("palette", 1),
    5: ("CMYK", 4),
    6: ("RGB", 3),
}
# None, CCITT, LZW, JPEG, Deflate (old number), PackBits: with others OpenCV gives nothing, or black.
COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32946, 32773}


def _tiff(content: bytes) -> Header:
    pages = _tiff_pages(content)
    if not pages:
        return Header("TIFF")
    pictures = [page for page in pages if not _is_auxiliary(page)]
    first = pages[0]
    count = max(1, len(pictures))
    fault = _tiff_fault(first)
    if count == 1 and _is_auxiliary(first) and pictures:
        fault = "a thumbnail before the picture: save the picture alone"
    bits = first["bits"][0]
    photometric = first["photometric"][0]
    samples = first["samples"][0]
    channels, colours = COLOUR_MODELS.get(photometric, (f"{samples} bands", 1))
    extra = samples - colours
    if extra == 1:
        channels = {"grey": "grey+alpha", "RGB": "RGBA"}.get(channels, channels)
    return Header(
        "TIFF",
        first["height"][0],
        first["width"][0],
        bits,
        2**bits - 1 if bits <= 16 else 0,
        channels,
        count,
        pages="pages",
        # The decoder inverts 8 bits by itself.
        is_inverted=photometric == 0 and bits > 8,
        straight_alpha=first["extra_position"][0] if extra == 1 and first["extra"][0] == 2 else 0,
        is_compressed=first["compression"][0] != 1,
        is_tiled="tile_width" in first,
        fault=fault,
    )


def _is_auxiliary(page: dict[str, tuple]) -> bool:
    """A smaller copy or the transparency of another page."""
    return bool(page["subfile"][0] & (REDUCED_COPY | TRANSPARENCY)) or page["old_subfile"][0] == 2


def _tiff_fault(page: dict[str, tuple]) -> str:
    """Why a page cannot be used, and what to do; "" if OpenCV reads it rightly (tried for all of these)."""
    bits = page["bits"][0]
    kind = page["sample_format"][0]
    photometric = page["photometric"][0]
    samples = page["samples"][0]
    _, colours = COLOUR_MODELS.get(photometric, ("", samples))
    extra = samples - colours
    if kind == 3:
        return f"{bits}-bit float: {CONVERT}"
    if kind == 2:
        return f"{bits}-bit signed integers: convert to unsigned ones of 8 or 16 bits"
    if kind in (5, 6):
        return f"complex numbers: {CONVERT}"
    if bits > 16 or len(set(page["bits"])) > 1:
        return f"{'+'.join(map(str, dict.fromkeys(page['bits'])))}-bit integers: {CONVERT}"
    if photometric == 8:
        return "Lab colours: convert to RGB"
    if photometric not in COLOUR_MODELS:
        return f"a TIFF of colour model {photometric}: convert to grey or RGB"
    if extra > 1 or extra < 0 or (extra == 1 and colours == 1 and page["extra"][0] == 0):
        return f"{samples} bands: convert to grey or RGB"
    if page["compression"][0] not in COMPRESSIONS:
        return f"a TIFF of compression {page['compression'][0]}: save it with LZW, Deflate or none"
    if bits not in (1, 8, 10, 12, 14, 16) or (bits == 1 and samples > 1):
        return f"{bits}-bit values: {CONVERT}"
    if bits > 8 and photometric == 5:
        return f"CMYK with {bits} bits: convert to RGB"
    if bits > 8 and extra and colours == 1:
        return f"{bits}-bit grey with alpha: remove the alpha channel"
    if bits > 8 and samples > 1 and page["planar"][0] == 2:
        return f"{bits}-bit planes stored one by one: save the channels of a pixel together"
    return ""


def _tiff_pages(content: bytes) -> list[dict[str, tuple]]:
    """The tags of every page, with TIFF's defaults for those that are missing."""
    order = "<" if content.startswith(b"II") else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    position = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)[0]
    pages = []
    positions = set()
    while position and position not in positions and len(pages) < MAX_PAGES:
        positions.add(position)
        try:
            page, position = _tiff_page(content, position, order, is_big)
        except (struct.error, KeyError):
            break  # a broken list of pages: the decoder fails if it is the first
        pages.append(page)
    return pages


def _tiff_page(content: bytes, position: int, order: str, is_big: bool) -> tuple[dict[str, tuple], int]:
    """The tags of the page at `position`, and the position of the next one."""
    count_format = order + ("Q" if is_big else "H")
    entry_format = order + ("HHQ" if is_big else "HHI")
    offset_format = order + ("Q" if is_big else "I")
    entry_size = 20 if is_big else 12  # bytes
    inline_size = 8 if is_big else 4
    count = struct.unpack_from(count_format, content, position)[0]
    if count > MAX_PAGE_TAGS:
        raise KeyError("no directory of tags")
    page: dict[str, tuple] = {name: (value,) for name, value in TAGS.values() if value is not None}
    page["extra_position"] = (0,)  # in the file
    start = position + struct.calcsize(count_format)
    end = start + count * entry_size
    for entry in range(start, end, entry_size):
        tag, kind, length = struct.unpack_from(entry_format, content, entry)
        if tag not in TAGS or kind not in TAG_TYPES or not 0 < length < 1000:
            continue
        name, _ = TAGS[tag]
        values_format = f"{order}{length}{TAG_TYPES[kind]}"
        values_position = entry + entry_size - inline_size
        if struct.calcsize(values_format) > inline_size:
            values_position = struct.unpack_from(offset_format, content, values_position)[0]
        page[name] = struct.unpack_from(values_format, content, values_position)
        if name == "extra":
            page["extra_position"] = (values_position if order == "<" else values_position + 1,)
    following = struct.unpack_from(offset_format, content, end)[0]
    if "width" not in page or "height" not in page:
        raise KeyError("a page without a size")
    return page, following
