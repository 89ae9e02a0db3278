"""The table of faults: what can go wrong with a run, and what `dmp` promises then.

`@pytest.mark.fault(2, 5)` on a test says that it holds the promises of rows 2 and 5.
docs/generate.py writes docs/reliability.md from both.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault and a promise, each as text of a Markdown table."""

    number: int
    fault: str
    promise: str


ROWS = tuple(
    Row(number, fault, promise)
    for number, fault, promise in (
        (1, "An empty file, a text named `.png`, nothing but a header", "fails: no image"),
        (2, "A picture cut short: 1 % left, 50 %, all but 2 bytes", "fails: damaged"),
        (
            3,
            "Bytes changed at random in pictures of ten kinds",
            "no crash and no hang; what fails has no output",
        ),
        (4, "A JPEG named `.png`", "read by its content"),
        (
            5,
            "Formats that dmp does not read: EPS, PSD, FITS, PDF ...",
            "fails; no other program is started for it",
        ),
        (
            6,
            "Decompression bombs",
            "refused by the header, before pixels are unpacked: `--max-pixels`, 100 million "
            "without it; memory stays bounded",
        ),
        (
            7,
            "A bomb in a text chunk; damaged EXIF data or colour profiles",
            "the bomb fails; metadata that is damaged is a note and the picture is predicted",
        ),
        (8, "1x1, 7x7, 1x5000 pixels", "a map of that size"),
        (
            9,
            "20000x20000, 64x6400 pixels",
            "the network sees at most 4 times size x size pixels, whatever the aspect",
        ),
        (
            10,
            "16-bit grey and RGB, float TIFF",
            "scaled by the range of the type: a ramp keeps 256 levels",
        ),
        (
            11,
            "CMYK, palettes, 1 bit, grey with alpha, RGBA",
            "sRGB, alpha over `--background`, which is white without the flag",
        ),
        (
            12,
            "The eight EXIF orientations; Adobe RGB, Display P3",
            "upright, converted to sRGB",
        ),
        (13, "Animations, files of several pages", "the first frame, with a note"),
        (
            14,
            "A file that may not be read; a folder that may not be read",
            "the file fails; as an argument, the folder is exit 2",
        ),
        (
            15,
            "A FIFO, a socket, a device, a folder, each named `x.png`",
            "skipped with a line, never opened",
        ),
        (
            16,
            "Links in a circle, links out of the folder",
            "the search ends; links to folders are not followed",
        ),
        (
            17,
            "An input that vanishes or changes during the run",
            "fails, or the map is of what the manifest's hash is of",
        ),
        (
            18,
            "`a.png` beside `a.jpg`, `a.b.png` beside `a.c.png`, names equal but for case",
            "exit 2 before a model is loaded, or names that differ: no output replaces another",
        ),
        (
            19,
            "Names with a newline, a leading `-`, other scripts, bytes that are not UTF-8, "
            "251 bytes",
            "predicted, or fails with the name escaped",
        ),
        (
            20,
            "The output folder inside the input folder, or the same",
            "outputs of dmp are never inputs: a second run finds as many",
        ),
        (
            21,
            "`..` and absolute names in a list, in a weights file, in a repository",
            "inputs may lie anywhere; outputs stay in OUT, weights in the store and the cache",
        ),
        (
            22,
            "An output folder that may not be written, or that is a file",
            "exit 6 before a model is loaded",
        ),
        (
            23,
            "The disk is full in the middle; a file grows past the limit",
            "exit 6, no part of a file under its final name; running again completes",
        ),
        (
            24,
            "SIGKILL at any moment",
            "every file there is whole; running again completes, to the same bytes",
        ),
        (
            25,
            "SIGINT or SIGTERM while starting, fetching, loading, predicting; twice",
            "what is in flight is written within 10 s, exit 130 or 143; the second stops at once",
        ),
        (
            26,
            "Nobody reads standard output, standard error is closed, no terminal, `LC_ALL=C`, "
            "`NO_COLOR`",
            "the run goes on; no traceback, no escape codes",
        ),
        (
            27,
            "Two processes write to one output folder",
            "every file is whole, and so is every line of the manifest",
        ),
        (
            28,
            "A bug in the thread that reads, predicts or writes",
            "exit 1 with the traceback within 30 s; nothing hangs",
        ),
        (
            29,
            "Running again after other steps, other weights, a changed input, a damaged output",
            "that is done again; what is unchanged is not",
        ),
        (
            30,
            "A download that is cut, too short, too long, wrong, endless; 401, 403, 404, 429, "
            "500; a server that is slow or gone",
            "few retries, then exit 5 with repository, file, revision and the next command; "
            "nothing half installed",
        ),
        (
            31,
            "A file of the store or the cache that has not its sha256",
            "exit 5 with the hash that was expected and the one found",
        ),
        (32, "Hostile headers in a safetensors file", "exit 5 naming the file"),
        (
            33,
            "A pickle in place of weights",
            "refused but by `dmp weights import`, which reads numbers alone and runs nothing",
        ),
        (
            34,
            "A LoRA of another base, with a key missing, one too many, NaN in it; of another rank",
            "exit 5 with the first difference; another rank works",
        ),
        (
            35,
            "The network gives NaN or infinity for one image of a batch",
            "that image is predicted again in float32, and fails if that is no better; its "
            "neighbours are written",
        ),
        (36, "A map that is the same everywhere", "a picture, no NaN, a note"),
        (
            37,
            "The device is out of memory",
            "the batch is halved for good and its images are tried again; each is written once",
        ),
        (38, "The accelerator is lost", "exit 6 at once; what is written is whole"),
        (
            39,
            "No accelerator",
            "`--device cuda` is exit 6 and says so; `auto` takes the CPU and says so once",
        ),
        (
            40,
            "Many images of 12 million pixels, little memory",
            "memory is bounded by the pixels in flight, not by the number of images",
        ),
        (
            41,
            "The clock jumps, other time zones, files of the year 2099",
            "durations are of a steady clock, times are UTC, and nothing is decided by the clock",
        ),
        (
            42,
            "64 file descriptors; 100,000 inputs; an empty folder",
            "works; all are found and planned, in seconds and without torch; exit 4",
        ),
        (
            43,
            "A weights file that is broken, with an unknown key or model, with links in a circle",
            "exit 2 or 5 naming file, line and key",
        ),
    )
)
