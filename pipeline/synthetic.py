"""The embedded default: a crawl of invented people, with planted noise and the table that says what was planted.

What stands under an identity is a function of (settings, number of the identity) alone, so any worker can write any identity, and the same
seed gives the same bytes. No stage of the pipeline reads the truth table.
"""

import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadConfig
from pipeline.fanout import fan_out
from pipeline.receipts import Progress, atomic
from pipeline.render import Person, Pixels, encode, person, render, render_no_face
from pipeline.shards import ShardWriter, json_bytes, sample_id
from pipeline.verification_bin import write_bin

VERSION = 1
TRUTH = pa.schema(
    [
        pa.field("item", pa.string(), False, {"about": "as `source_uri` in the manifest"}),
        pa.field("identity", pa.string(), False, {"about": "the name it stands under"}),
        pa.field("true_identity", pa.string(), True, {"about": "who is drawn; null when nobody is"}),
        pa.field("is_noise", pa.bool_(), False, {"about": "true when somebody else, or nobody, is drawn"}),
        pa.field("kind", pa.string(), False, {"about": "clean, flip, stranger, or what else was planted"}),
    ]
)
_STRANGERS, _UNSEEN = 10**9, 2 * 10**9
_PER_PART = 8
_SPECIAL_EVERY = 25
_FIRST = (
    "Ada Aino Bela Bruno Carla Cem Dara Dilan Edda Emre Femi Freya Gita Goran Hana Hugo Ida Imre Jana Joon Kaia Kofi Lale Lior Mara Milo Nadia Noor "
    "Ola Otis Pia Priya Quinn Rafa Runa Sami Sanna Tariq Tove Uma Umut Vera Vito Wanda Wei Xenia Yara Yusuf Zoë Zuri D'Arcy J. Åsa José Ngozi Siân "
    "Chloé Łucja Bogdan Ines Kenji Thandi Matej Noa"
).split()
_LAST = "Al Bar Cor Dem El Far Gor Hol Ing Jor Kal Lin Mor Nor Or Pel Quin Ros Sol Tam Ul Var Wes Yal Zan Brac Cas Dun O'Kar Mc-Bel Trev Fen".split()
_ENDS = (
    "ano berg chuk dal enko ford gren holm ides jan kow lund mann nick oglu poulos quist rath sen tov umi vic wald yan zadeh ley ton ski "
    "eira ette oux iri"
).split()


@dataclass(frozen=True, kw_only=True)
class SyntheticCrawl:
    """A crawl: `identities` people with `images` pictures each, of which the share `noise` is wrong (60 % flips, 40 % strangers).

    From ten identities on, a few hostile and double items are added to some of them, and one identity of two pictures to the end.
    """

    identities: int = 150
    images: int = 40
    noise: float = 0.5
    seed: int = 0
    size_px: int = 112

    def __post_init__(self) -> None:
        if self.identities < 3 or self.images < 4 or not 0 <= self.noise <= 0.9 or self.seed < 0 or not 32 <= self.size_px <= 512:
            raise BadConfig(
                "A synthetic crawl has 3 identities or more, 4 images or more, noise from 0 to 0.9, a seed from 0, pictures of 32 to 512 px; "
                f"got {self.identities}, {self.images}, {self.noise}, {self.seed}, {self.size_px}."
            )

    @property
    def folders(self) -> int:
        """Identities, the tiny one included."""
        return self.identities + (1 if self.identities >= 10 else 0)


@dataclass(frozen=True)
class Planted:
    """One item: its bytes, and the truth about it."""

    file: str
    content: bytes
    true_identity: str | None
    is_noise: bool
    kind: str


def name_of(number: int) -> str:
    """The name of identity or stranger `number`, unique up to 65,536 and numbered beyond."""
    first = _FIRST[(number * 37) % len(_FIRST)]
    rest = number // len(_FIRST)
    last = _LAST[(rest * 11 + number) % len(_LAST)] + _ENDS[(rest // len(_LAST) * 5 + number * 3) % len(_ENDS)]
    again = rest // (len(_LAST) * len(_ENDS))
    return f"{first} {last}" + (f" {again + 1}" if again else "")


def identity_items(settings: SyntheticCrawl, number: int) -> Iterator[Planted]:
    """All that stands under identity `number`."""
    own = _who(settings, number)
    count = settings.images if number < settings.identities else 2
    rng = np.random.default_rng([settings.seed, 3, number])
    wrong = round(settings.noise * count + rng.uniform(-0.5, 0.5)) if settings.noise > 0 and count > 2 else 0
    is_wrong = rng.permutation(count) < min(wrong, count - 1)
    for place in range(count):
        file = f"{place:04d}.jpg"
        if not is_wrong[place]:
            yield Planted(file, _picture(settings, own, number, place), name_of(number), False, "clean")
        elif rng.random() < 0.6:
            other = (number + 1 + int(rng.integers(settings.identities - 1))) % settings.identities
            while _who(settings, other) == own:
                other = (other + 1) % settings.identities
            yield Planted(file, _picture(settings, _who(settings, other), number, place), name_of(other), True, "flip")
        else:
            stranger = _STRANGERS + number * 10_000 + place
            yield Planted(file, _picture(settings, stranger, number, place), f"stranger {stranger}", True, "stranger")
    if settings.identities >= 10 and number < settings.identities:
        yield from _special(settings, number, own, int(np.flatnonzero(~is_wrong)[0]))


def _special(settings: SyntheticCrawl, number: int, own: int, clean: int) -> Iterator[Planted]:
    name, which = name_of(number), number % _SPECIAL_EVERY
    rng = np.random.default_rng([settings.seed, 4, number])
    original = _picture(settings, own, number, clean)
    if which == 1:
        yield Planted("copy.jpg", original, name, False, "duplicate")
        again = np.roll(_pixels(settings, own, number, clean), 1, axis=1)
        yield Planted("near.copy.jpg", encode(again, 70), name, False, "near_duplicate")
    elif which == 3:
        yield Planted("half.jpg", original[: len(original) // 2], name, False, "truncated")
        yield Planted("page.jpg", b"<!doctype html><title>404 Not Found</title>", None, True, "mislabelled")
        yield Planted("thumbnail.jpg", encode(_small(_pixels(settings, own, number, clean)), 90), name, False, "too_small")
        yield Planted("empty.jpg", b"", None, True, "empty")
    elif which == 5:
        before = number - 1
        shared = next(item for item in identity_items(settings, before) if item.kind == "clean")
        yield Planted("shared.jpg", shared.content, shared.true_identity, True, "shared")
    elif which == 6:
        for place in range(2):
            yield Planted(f"scene{place}.jpg", encode(render_no_face(rng, settings.size_px), 90), None, True, "nonface")
    elif which == 9:
        yield Planted("huge.png", _bomb(), None, True, "bomb")


def _who(settings: SyntheticCrawl, number: int) -> int:
    """The person of an identity: number 8 of every 25 is the same person as number 7, under a second name."""
    return number - 1 if number % _SPECIAL_EVERY == 8 and number < settings.identities and settings.identities >= 10 else number


def _pixels(settings: SyntheticCrawl, who: int, number: int, place: int) -> Pixels:
    return render(_person(settings.seed, who), np.random.default_rng([settings.seed, 2, number, place]), settings.size_px)


def _picture(settings: SyntheticCrawl, who: int, number: int, place: int) -> bytes:
    quality = int(np.random.default_rng([settings.seed, 5, number, place]).integers(45, 96))
    return encode(_pixels(settings, who, number, place), quality)


def _person(seed: int, who: int) -> Person:
    return person(seed, who)


def _small(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[::7, ::7])


def _bomb() -> bytes:
    """A PNG of some 20 kB that unpacks to 144 million pixels."""
    side = 12_000
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(b"\0" * (1 + side // 8)) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    chunks = b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@dataclass(frozen=True)
class _Part:
    settings: SyntheticCrawl
    first: int
    crawl: Path
    rows: Path


def write_folder(settings: SyntheticCrawl, crawl: Path, truth: Path, *, workers: int = 1, on_progress: Progress | None = None) -> None:
    """Write a folder per identity into `crawl`, and `truth`. The bytes depend on the settings alone."""
    _write(folder_part, settings, crawl, truth, workers, on_progress)


def write_shards(settings: SyntheticCrawl, crawl: Path, truth: Path, *, workers: int = 1, on_progress: Progress | None = None) -> None:
    """Write WebDataset tars of eight identities each into `crawl`, names in `.json`, and `truth`."""
    _write(tar_part, settings, crawl, truth, workers, on_progress)


def _write(part: Any, settings: SyntheticCrawl, crawl: Path, truth: Path, workers: int, progress: Progress | None) -> None:
    crawl.mkdir(parents=True, exist_ok=True)
    truth.parent.mkdir(parents=True, exist_ok=True)
    rows = truth.with_name(f".{truth.name}.parts")
    rows.mkdir(exist_ok=True)
    parts = [_Part(settings, first, crawl, rows) for first in range(0, settings.folders, _PER_PART)]
    try:
        fan_out(part, parts, workers=workers, progress=progress)
        with atomic(truth) as temporary, pq.ParquetWriter(temporary, TRUTH) as writer:
            for one in parts:
                writer.write_table(pq.read_table(_rows_file(one)))
    finally:
        shutil.rmtree(rows)


def folder_part(part: _Part) -> None:
    """Write the identities of one part as folders."""
    found = []
    for number, name in _identities(part):
        folder = part.crawl / name
        folder.mkdir(exist_ok=True)
        for item in identity_items(part.settings, number):
            (folder / item.file).write_bytes(item.content)
            found.append(_row(f"{name}/{item.file}", name, item))
    pq.write_table(pa.Table.from_pylist(found, schema=TRUTH), _rows_file(part))


def tar_part(part: _Part) -> None:
    """Write the identities of one part as a tar."""
    found = []
    tar = part.crawl / f"crawl-{part.first // _PER_PART:06d}.tar"
    with atomic(tar) as temporary, ShardWriter(temporary) as shard:
        for number, name in _identities(part):
            for item in identity_items(part.settings, number):
                key = sample_id(f"{name}/{item.file}", sha256(item.content).hexdigest())
                extension = item.file.rpartition(".")[2]
                shard.add(key, {extension: item.content, "json": json_bytes({"identity": name, "file": item.file})})
                found.append(_row(f"{tar.name}/{key}.{extension}", name, item))
    pq.write_table(pa.Table.from_pylist(found, schema=TRUTH), _rows_file(part))


def _identities(part: _Part) -> Iterator[tuple[int, str]]:
    last = min(part.first + _PER_PART, part.settings.folders)
    return ((number, name_of(number)) for number in range(part.first, last))


def _rows_file(part: _Part) -> Path:
    return part.rows / f"{part.first:09d}.parquet"


def _row(uri: str, identity: str, item: Planted) -> dict[str, Any]:
    return {"item": uri, "identity": identity, "true_identity": item.true_identity, "is_noise": item.is_noise, "kind": item.kind}


def write_verification_pairs(settings: SyntheticCrawl, out: Path, *, pairs: int, workers: int = 0) -> None:
    """Write `pairs` genuine and impostor pairs, by turns, of people whom the crawl does not know, as an insightface `.bin` file."""
    people = max(10, pairs // 20)
    plan = [(settings, number, people) for number in range(pairs)]
    pictures = fan_out(pair_pictures, plan, workers=workers)
    write_bin(out, [content for pair in pictures for content in pair], [number % 2 == 0 for number in range(pairs)])


def pair_pictures(plan: tuple[SyntheticCrawl, int, int]) -> tuple[bytes, bytes]:
    """The two JPEGs of verification pair `number`: of one person when it is even, of two when it is odd."""
    settings, number, people = plan
    rng = np.random.default_rng([settings.seed, 6, number])
    left = int(rng.integers(people))
    right = left if number % 2 == 0 else (left + 1 + int(rng.integers(people - 1))) % people
    first, second = (
        encode(render(_person(settings.seed, _UNSEEN + who), rng, settings.size_px), int(rng.integers(45, 96))) for who in (left, right)
    )
    return first, second
