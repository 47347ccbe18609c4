"""The Content-Type of an object by its name: one table, the same on every machine."""

from __future__ import annotations

import re

UNKNOWN = "application/octet-stream"
_UTF8 = "; charset=utf-8"

# Names that end in these: lower case, without the dot. A type that ends in "*" is text whose encoding the name does not
# tell; "text/vtt; charset=utf-8" and the like are UTF-8 by their specification.
_TABLE = """
text/html* html htm shtml
text/css* css
text/plain* txt text log conf cfg ini properties nfo srt diff patch
text/csv* csv
text/tab-separated-values* tsv tab
text/xml* xml xsd xsl xslt
text/javascript* js
text/javascript; charset=utf-8 mjs
text/markdown; charset=utf-8 md markdown
text/vtt; charset=utf-8 vtt
text/calendar; charset=utf-8 ics
text/vcard; charset=utf-8 vcf
text/rtf rtf
application/json json map
application/ld+json jsonld
application/geo+json geojson
application/x-ndjson ndjson jsonl
application/manifest+json webmanifest
application/yaml yaml yml
application/toml toml
application/sql* sql
application/x-sh* sh
application/atom+xml atom
application/rss+xml rss
application/gpx+xml gpx
application/vnd.google-earth.kml+xml kml
application/xhtml+xml xhtml
application/mbox mbox
message/rfc822 eml
application/pdf pdf
application/postscript ps eps ai
application/epub+zip epub
application/msword doc
application/vnd.ms-excel xls
application/vnd.ms-powerpoint ppt
application/vnd.openxmlformats-officedocument.wordprocessingml.document docx
application/vnd.openxmlformats-officedocument.spreadsheetml.sheet xlsx
application/vnd.openxmlformats-officedocument.presentationml.presentation pptx
application/vnd.oasis.opendocument.text odt
application/vnd.oasis.opendocument.spreadsheet ods
application/vnd.oasis.opendocument.presentation odp
application/vnd.apache.parquet parquet
application/vnd.apache.arrow.file arrow feather
application/avro avro
application/x-hdf5 h5 hdf5
application/x-netcdf nc cdf
application/vnd.sqlite3 sqlite sqlite3
application/zip zip
application/gzip gz tgz
application/x-bzip2 bz2 tbz2
application/x-xz xz txz
application/zstd zst
application/x-7z-compressed 7z
application/vnd.rar rar
application/x-tar tar
application/java-archive jar war
application/wasm wasm
application/vnd.android.package-archive apk
application/vnd.debian.binary-package deb
application/x-rpm rpm
application/x-iso9660-image iso
application/dicom dcm
image/jpeg jpg jpeg jpe jfif
image/png png
image/apng apng
image/gif gif
image/webp webp
image/avif avif
image/heic heic
image/heif heif
image/jxl jxl
image/svg+xml svg
image/svg+xml svgz
image/tiff tif tiff
image/bmp bmp
image/vnd.microsoft.icon ico
image/vnd.adobe.photoshop psd
image/x-canon-cr2 cr2
image/x-nikon-nef nef
image/x-sony-arw arw
image/x-adobe-dng dng
audio/mpeg mp3
audio/mp4 m4a
audio/aac aac
audio/ogg oga ogg
audio/opus opus
audio/flac flac
audio/wav wav
audio/aiff aif aiff
audio/midi mid midi
audio/amr amr
video/mp4 mp4 m4v
video/mpeg mpg mpeg
video/webm webm
video/ogg ogv
video/quicktime mov
video/x-matroska mkv
video/x-msvideo avi
video/x-ms-wmv wmv
video/mp2t ts mts m2ts
video/3gpp 3gp
application/vnd.apple.mpegurl m3u8
application/dash+xml mpd
application/mxf mxf
font/woff woff
font/woff2 woff2
font/ttf ttf
font/otf otf
font/collection ttc
model/gltf+json gltf
model/gltf-binary glb
model/stl stl
model/obj obj
"""


def _read(table: str) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for line in table.strip().splitlines():
        kind, *parameter, names = re.split(r"(; \S+)? ", line, maxsplit=1)
        plain = kind.removesuffix("*") + (parameter[0] or "")
        for name in names.split():
            found[name] = plain, plain + _UTF8 if kind.endswith("*") else ""
    return found


#: extension -> type, and the type of content that is UTF-8, where only the content tells
TYPES = _read(_TABLE)


def content_type_of(path: str, body: bytes | None) -> str:
    """The type by the name's last extension, in upper or lower case.

    Text says that it is UTF-8 where `body`, the whole content, shows it; None: the content is not in memory.
    """
    name, _, extension = path.rpartition(".")
    if not name or name[-1] == "/":  # "README", ".jpg", "logs/.txt"
        return UNKNOWN
    kind, utf8 = TYPES.get(extension) or TYPES.get(extension.lower(), (UNKNOWN, ""))
    return utf8 if utf8 and body and (body.isascii() or _is_utf8(body)) else kind


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
