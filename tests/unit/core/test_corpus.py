from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from resrank.core.corpus import CorpusError, check_corpus, read_passages
from resrank.core.errors import InvalidInputError
from resrank.core.passage import content_sha256
from resrank.stack.cli.exit_codes import ExitCode, exit_code

GOOD = {"_id": "1", "title": "Lava", "text": "is hot"}


def write(path: Path, *lines: object) -> Path:
    content = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_reads_beir_lines(tmp_path: Path, name: str) -> None:
    corpus = write(
        tmp_path / name,
        GOOD,
        b"",
        {"_id": "2", "text": "no title", "metadata": {"url": "x", "year": 1998}, "extra": 1},
    )
    first, second = read_passages(corpus)
    assert (first.line, first.id, first.title, first.text, first.encoder_text) == (
        1,
        "1",
        "Lava",
        "is hot",
        "Lava is hot",
    )
    assert (second.line, second.title, second.metadata) == (3, "", {"url": "x", "year": 1998.0})
    assert first.content_sha256 == content_sha256("Lava", "is hot", {})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "is not valid JSON"),
        (b'{"_id": "\xff"}', "is not valid UTF-8 (byte 10 of the line)"),
        (b'{"_id": ' + b"7" * 5000 + b"}", "is not valid JSON (Exceeds the limit"),
        (b"[1]", "must be a JSON object, not list"),
        (b"[" * 100_000, "nested too deeply"),
        ({"text": "x"}, "lacks the field _id"),
        ({"_id": 7, "text": "x"}, "_id must be a string, not int"),
        ({"_id": "7", "text": None}, "text must be a string, not NoneType"),
        ({"_id": "7", "text": "x", "metadata": []}, "metadata must be an object, not list"),
        ({"_id": "", "text": "x"}, "_id is empty or holds a NUL character"),
        ({"_id": "a\0", "text": "x"}, "_id is empty or holds a NUL character"),
        ({"_id": "7", "title": " ", "text": "\n"}, "_id '7' has neither title nor text"),
        (b'{"_id": "7", "text": "ab\\ud800"}', "title and text is not valid Unicode: a lone surrogate at character 3"),
        (b'{"_id": "\\udfff", "text": "x"}', "_id is not valid Unicode"),
        (b'{"_id": "7", "text": "x", "metadata": {"k": "\\ud83e"}}', "metadata of id '7' is not valid Unicode"),
        ({"_id": "i" * 513, "text": "x"}, "too long, in bytes (limit 512, got 513)"),
        ({"_id": "7", "text": "é" * 32768}, "too long, in bytes (limit 65535, got 65536)"),
        ({"_id": "7", "text": "x", "metadata": {"k": "v" * 16384}}, "too long, in bytes (limit 16384, got 16385)"),
        ({"_id": "7", "text": "x", "metadata": {"k": 2**53 + 1}}, "metadata 'k' is a whole number beyond 2^53"),
        (b'{"_id": "7", "text": "x", "metadata": {"k": NaN}}', "metadata 'k' is not finite"),
        ({"_id": "7", "text": "x", "metadata": {"": 1}}, "a name in the metadata of id '7' empty or too long"),
        ({"_id": "1", "title": "Lava", "text": "is cold"}, "_id '1' stands in line 1 already, with other content"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, problem: str) -> None:
    corpus = write(tmp_path / "corpus.jsonl", GOOD, line)
    with pytest.raises(CorpusError) as caught:
        check_corpus(corpus)
    assert str(caught.value).startswith(f"{corpus}:2: ")
    assert problem in str(caught.value)
    assert exit_code(caught.value) is ExitCode.BAD_INPUT


def test_metadata_keeps_its_types(tmp_path: Path) -> None:
    given = {"s": "1", "n": 1, "f": 0.5, "t": True, "l": ["a", "b"], "e": [], "o": {"a": 1}, "m": ["a", 1], "z": None}
    (passage,) = read_passages(write(tmp_path / "corpus.jsonl", {**GOOD, "metadata": given}))
    assert passage.metadata == {
        "s": "1",
        "n": 1.0,
        "f": 0.5,
        "t": True,
        "l": ("a", "b"),
        "e": (),
        "o": '{"a": 1}',
        "m": '["a", 1]',
    }


def test_a_field_of_two_types_is_named_before_anything_is_encoded(tmp_path: Path) -> None:
    lines = [
        {"_id": str(number), "text": "x", "metadata": {"year": year}} for number, year in enumerate([1, None, "2"])
    ]
    corpus = write(tmp_path / "corpus.jsonl", *lines)
    with pytest.raises(CorpusError) as caught:
        check_corpus(corpus)
    assert str(caught.value) == (
        f"{corpus}:3: metadata 'year' is of type string, in line 1 of type number: a field has one type"
    )


def test_repeated_passages_are_told_and_counted_once(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", GOOD, {**GOOD, "_id": "2"}, GOOD)
    assert check_corpus(corpus) == ({"1", "2"}, {3})


def test_empty_passages_are_left_out_and_told_where_the_caller_wants_to_know(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", GOOD, {"_id": "2", "title": " ", "text": ""}, {**GOOD, "_id": "3"})
    empty: list[str] = []
    assert check_corpus(corpus, on_empty=empty.append) == ({"1", "3"}, set())
    assert empty == ["2"]
    assert [passage.id for passage in read_passages(corpus, on_empty=empty.append)] == ["1", "3"]
    with pytest.raises(CorpusError, match=r":2: _id '2' has neither title nor text"):
        list(read_passages(corpus))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="No such file"):
        check_corpus(tmp_path / "absent.jsonl")
    with pytest.raises(CorpusError, match="holds no passages"):
        check_corpus(write(tmp_path / "empty.jsonl", b""))
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"_id": "1"}\n')
    with pytest.raises(CorpusError, match="gzip"):
        check_corpus(tmp_path / "plain.jsonl.gz")
    whole = write(tmp_path / "cut.jsonl.gz", *[{**GOOD, "_id": str(number)} for number in range(5000)]).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=r"cut\.jsonl\.gz:\d+: cannot be read"):
        check_corpus(tmp_path / "cut.jsonl.gz")


@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_skipped_at_the_start_and_named_elsewhere(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("c.jsonl.gz" if packed else "c.jsonl")
    pack = gzip.compress if packed else bytes
    path.write_bytes(pack('\ufeff{"_id": "1", "text": "x"}\n{"_id": "2", "text": "y"}\n'.encode()))
    assert [passage.id for passage in read_passages(path)] == ["1", "2"]
    path.write_bytes(pack('{"_id": "1", "text": "x"}\n\ufeff{"_id": "2", "text": "y"}\n'.encode()))
    with pytest.raises(CorpusError, match=r":2: begins with a byte order mark"):
        check_corpus(path)
