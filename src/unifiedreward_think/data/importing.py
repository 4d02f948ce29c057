r"""Import a source: its rows become records in parquet parts, in constant memory, resumable, always the same bytes.

    python -m unifiedreward_think.data import --source hpdv2_train --input HPD/train.json --media-root HPD \
        --output data/hpdv2
    python -m unifiedreward_think.data import --source released --input configs/grpo.yaml --output data/released

Which candidate stands first is drawn from a digest of seed and record id, and the label follows: in many sources the
preferred one always comes first. Nothing is decoded; `check` opens the media.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from unifiedreward_think.checksums import file_sha256
from unifiedreward_think.data.arguments import command
from unifiedreward_think.data.formats.files import REASON_LIMIT, BadRow, DataError, LeftOut
from unifiedreward_think.data.shards import PART_ROWS, Part, Removal, ShardFolder, as_json, parts_kept
from unifiedreward_think.data.sources.convert import Converter
from unifiedreward_think.data.sources.declaration import Source, load_source
from unifiedreward_think.data.sources.media_store import MediaStore, sweep
from unifiedreward_think.data.sources.mixture import read_entries, select
from unifiedreward_think.data.sources.pairing import PAIRINGS, PairRow
from unifiedreward_think.data.sources.readers import (
    column_names,
    hub_commit,
    hub_rows,
    is_hub_name,
    read_rows,
    visible_files,
)
from unifiedreward_think.errors import RecordError
from unifiedreward_think.flags import Count, Parser, Seed, option, read
from unifiedreward_think.progress import progress

HEAD = 20  # rows that tell the columns


@dataclass(frozen=True, slots=True)
class Input:
    """One file, saved data set or Hub name; where its media paths start from; which of its rows are used."""

    name: str
    root: Path
    strategy: str = "all"
    revision: str = ""  # the commit of a data set on the Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides an import besides source and inputs."""

    renamed: Mapping[str, str]
    archives: tuple[Path, ...] = ()
    url_folder: Path | None = option(
        "folder of files fetched from URLs; without it rows with URLs are left out", default=None
    )
    limit: Count | None = option("pairs to read", default=None)
    seed: Seed = option("decides which candidate stands first", default=0)
    part_rows: Count = option("pairs in a part, which is what memory holds", default=PART_ROWS)


def import_source(source: Source, inputs: Sequence[Input], output: Path, settings: Settings) -> dict[str, Any]:
    """Import `inputs` into the folder `output` and return its manifest.

    Raises:
        DataError: an input cannot be read at all, its columns do not fit the declaration, or `output` holds an import
            with other settings.
    """
    inputs = [_pinned(source, entry) for entry in inputs]
    files = [_describe(entry) for entry in inputs]
    chosen = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    chosen["archives"] = [str(path) for path in settings.archives]
    about = {"command": "import", "source": asdict(source), "inputs": files, "settings": chosen}
    folder = ShardFolder(output, about)
    sweep(output)
    if not folder.finished:
        size = sum(entry["bytes"] for entry in files)
        with progress(max(1, size >> 20), f"importing {source.name}", unit="MB") as advance:
            rows = _pair_rows(source, inputs, output, settings, _megabytes(advance))
            rows = islice(rows, folder.done * settings.part_rows, settings.limit)
            while first := next(rows, None):
                part, used = _convert(chain([first], islice(rows, settings.part_rows - 1)))
                folder.write(part, used)
    manifest = folder.finish(about)
    if not manifest["counts"].get("inputs"):
        raise DataError(f"{', '.join(entry.name for entry in inputs)}: no row to import")
    return manifest


Work = tuple[Converter, str, PairRow]


def _convert(rows: Iterable[Work]) -> tuple[Part, int]:
    part, used = Part(), 0
    for converter, file, row in rows:
        used += 1
        name = converter.name(row)
        try:
            if isinstance(row.values, RecordError):
                raise row.values
            stored, first = converter.convert(row.values, name)
        except RecordError as error:
            reason = str(error).removeprefix(f"record {name!r}: ")[:REASON_LIMIT]
            reason = reason.encode(errors="backslashreplace").decode()
            bad = BadRow(file, row.number, name, reason)
            part.removals.append(Removal(bad, broken=not isinstance(error, LeftOut)))
            continue
        part.first_as_found[stored.record.source] += first is True
        part.rows.append(stored)
    return part, used


def _pair_rows(
    source: Source, inputs: Sequence[Input], output: Path, settings: Settings, advance: Callable[[int], object]
) -> Iterator[Work]:
    stems = [Path(entry.name).stem for entry in inputs]
    for entry, stem in zip(inputs, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{Path(entry.name).absolute().parent.name}/{stem}"
        rows = _rows(source, entry, settings, advance)
        if entry.strategy != "all":
            total = sum(1 for _ in _rows(source, entry, settings, lambda size: None))
            used = select(entry.strategy, total, seed=settings.seed, name=name)
            rows = (row for i, row in enumerate(rows) if i in used)
        head = list(islice(rows, HEAD))
        seen = (key for _, row in head if isinstance(row, Mapping) for key in row)
        columns = column_names(Path(entry.name)) or list(dict.fromkeys(seen))
        if not columns:
            raise DataError(f"{entry.name}: no object among its first {HEAD} rows; fetch it again or fix it")
        media = _store(source, entry, output, settings)
        converter = Converter(source, columns, settings.renamed, name, media, settings.seed)
        rows = chain(head, rows)
        declared = {**source.pairs, "folder": str(entry.root)}
        pairing = PAIRINGS[source.pairs["kind"]][0]
        for row in pairing(rows, source.finder(columns, settings.renamed), declared):
            yield converter, entry.name, row


def _rows(source: Source, entry: Input, settings: Settings, advance: Callable[[int], object]) -> Iterator[Any]:
    if is_hub_name(entry.name):
        hub = source.hub
        split = hub.get("split", "train")
        return hub_rows(entry.name, config=hub.get("config"), split=split, revision=entry.revision)
    known = source.shape == "known" or source.matches_columns
    columns = None if known else [*source.columns(), *settings.renamed.values()]
    return read_rows(Path(entry.name), columns=columns, advance=advance)


def _store(source: Source, entry: Input, output: Path, settings: Settings) -> MediaStore:
    archives = settings.archives
    beside = entry.root / source.media.get("archive", "")
    if not archives and beside.is_file():
        archives = (beside,)
    return MediaStore(
        output,
        entry.root,
        folder=source.media.get("folder", ""),
        location=source.media.get("location", "any"),
        archives=archives,
        url_folder=settings.url_folder,
    )


def _pinned(source: Source, entry: Input) -> Input:
    """Return an input of the Hub with the commit that is read; a rerun after the data changed is then refused."""
    if not is_hub_name(entry.name):
        return entry
    return replace(entry, revision=hub_commit(entry.name, source.hub.get("revision")))


def _describe(entry: Input) -> dict[str, Any]:
    """Return what identifies an input: of a file its size and hash, of a data set the sizes of its files."""
    path = Path(entry.name)
    about = {"name": entry.name, "root": str(entry.root.absolute()), "strategy": entry.strategy}
    if path.is_dir():
        sizes = {str(file.relative_to(path)): file.stat().st_size for file in visible_files(path, {".arrow"})}
        return {**about, "bytes": sum(sizes.values()), "files": sizes}
    if not path.is_file():
        return {**about, "bytes": 0, **({"revision": entry.revision} if entry.revision else {})}
    return {**about, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _megabytes(advance: Callable[[int], object]) -> Callable[[int], object]:
    waiting = 0

    def add(size: int) -> None:
        nonlocal waiting
        waiting += size
        if waiting >= 2**20:
            advance(waiting >> 20)
            waiting &= 2**20 - 1

    return add


def expand(names: Sequence[str], media_root: Path | None) -> list[Input]:
    """Return the inputs that names on the command line mean: files, data sets, or the entries of a released YAML.

    Raises:
        DataError: a YAML file lists no data sets.
    """
    inputs = []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            inputs += [Input(str(e.file), media_root or e.root, e.strategy) for e in read_entries(Path(name))]
        else:
            inputs.append(Input(name, media_root or (Path() if is_hub_name(name) else Path(name).absolute().parent)))
    return inputs


def _parser() -> Parser:
    parser = command("import", __doc__, output="folder for the records; a rerun goes on from it", inputs=False)
    add = parser.add_argument
    add("--source", required=True, help="a declaration: a name in configs/data, or a YAML file of your own")
    hint = "files, saved data sets, a released YAML (default: the source's Hub name)"
    add("--input", nargs="*", default=[], help=hint)
    add("--media-root", type=Path, help="folder that media paths start from (default: that of each input)")
    add("--archive", type=Path, nargs="*", default=[], help="zip files that hold the media")
    add("--map", nargs="*", default=[], metavar="EXPECTED=FOUND", help="columns with another name")
    parser.add(Settings, "url_folder", "limit", "seed", "part_rows")
    add("--skip-bad", action="store_true", help="broken rows are left out without making the command fail")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Import from the command line."""
    parser = _parser()
    args = parser.parse_args(arguments)
    source = load_source(args.source)
    names = args.input or ([source.hub["name"]] if source.hub else [])
    renamed = dict(pair.split("=", 1) for pair in args.map if "=" in pair)
    if not names or len(renamed) < len(args.map):
        parser.error("name an --input; --map takes EXPECTED=FOUND, once for each EXPECTED")
    settings = read(args, Settings, renamed=renamed, archives=tuple(args.archive))
    with parts_kept(args.output):
        manifest = import_source(source, expand(names, args.media_root), args.output, settings)
    counts = manifest["counts"]
    print(as_json(counts), end="")
    if counts["broken"] and not args.skip_bad:
        print(
            f"error: {sum(counts['broken'].values())} of {counts['inputs']} rows are broken; {args.output}/left_out"
            " lists them; fix them, or accept it with --skip-bad",
            file=sys.stderr,
        )
        raise SystemExit(1)
