"""Files as documents: what is kept, what is counted, and that memory stays constant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import CorpusError, Document, load_corpus
from text_files import PIECE_BYTES, file_documents

REPOSITORY = Path(__file__).resolve().parents[2]


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# --- files and folders ----------------------------------------------------------------------------


def test_a_folder_is_read_in_order_and_what_is_no_text_is_counted(tmp_path: Path) -> None:
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / "z.md").write_text("second", encoding="utf-8")
    (tmp_path / "b.txt").write_text("third", encoding="utf-8")
    (tmp_path / "a.PY").write_text("first", encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("never", encoding="utf-8")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("never", encoding="utf-8")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\0\0\0")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16"))
    (tmp_path / "nothing.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \n\t\n")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF")
    corpus = load_corpus(str(tmp_path))
    assert corpus.name == tmp_path.name
    for _ in range(2):  # counted anew each time
        names = [(document.name, document.text) for document in corpus]
        assert names == [("a.PY", "first"), ("aa/z.md", "second"), ("b.txt", "third")]
        assert corpus.skipped == {
            "binary": 2,
            "undecodable": 1,
            "empty": 2,
            "unknown type": 1,
        }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX links and pipes")
def test_links_that_loop_and_pipes_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "real" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "zlink").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "round.txt").symlink_to(tmp_path / "round.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "file.txt").symlink_to(tmp_path / "real" / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    corpus = load_corpus(str(tmp_path))
    assert [document.name for document in corpus] == ["file.txt", "real/a.txt"]
    assert corpus.skipped == {"unreadable": 3}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_what_may_not_be_read_is_counted() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        Path(folder, "a.txt").write_text("text", encoding="utf-8")
        Path(folder, "b.txt").write_text("secret", encoding="utf-8")
        Path(folder, "b.txt").chmod(0)
        Path(folder, "c").mkdir(mode=0)
        corpus = load_corpus(folder)
        me = os.geteuid()
        if me == 0:  # root may read everything: be nobody for a moment
            os.seteuid(65534)
        try:
            names = [document.name for document in corpus]
        finally:
            os.seteuid(me)
    assert names == ["a.txt"]
    assert corpus.skipped == {"unreadable": 2}


def test_a_byte_order_mark_goes_and_carriage_returns_stay(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\xef\xbb\xbf")
    (document,) = load_corpus(str(path))
    assert document == Document("windows.txt", "one\r\ntwo\rthree\n\ufeff")
    path.write_text("\ufeffseven!\n\ufeffeight", encoding="utf-8", newline="")
    pieces = [d.text for d in file_documents(path, "text", "text", 16, Counter())]
    assert pieces == ["seven!\n", "\ufeffeight"]  # only the file's own mark goes


def test_a_long_text_is_cut_at_line_ends_into_a_mebibyte_each(tmp_path: Path) -> None:
    line = "zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich\n"
    text = line * (2 * PIECE_BYTES // len(line.encode()))
    (tmp_path / "book.txt").write_text(text + "end", encoding="utf-8", newline="")
    (tmp_path / "note.txt").write_text("short", encoding="utf-8")
    documents = list(load_corpus(str(tmp_path)))
    assert [document.name for document in documents] == ["book.txt:0", "book.txt:1", "note.txt"]
    assert documents[0].text + documents[1].text == text + "end"
    assert documents[0].text.endswith("Deich\n")
    assert PIECE_BYTES - 100 < len(documents[0].text.encode()) <= PIECE_BYTES


def test_a_text_that_is_the_whole_corpus_is_cut_finely_enough_to_split(tmp_path: Path) -> None:
    path = tmp_path / "shakespeare.txt"
    lines = [f"{i} " + "word " * 12 + "\n" for i in range(3000)]
    path.write_text("".join(lines), encoding="utf-8")
    documents = list(load_corpus(str(path)))
    assert 32 <= len(documents) <= 100
    assert "".join(document.text for document in documents) == "".join(lines)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="aé€𝄞\n\r ", max_size=300),
    piece_bytes=st.integers(8, 64),
    mark=st.booleans(),
)
def test_pieces_put_together_are_the_file(text: str, piece_bytes: int, mark: bool) -> None:
    """Whatever the characters' widths and the lines' lengths; blank pieces alone go missing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
        skipped: Counter[str] = Counter()
        pieces = [d.text for d in file_documents(path, "text", "text", piece_bytes, skipped)]
    assert set(skipped) <= {"empty"}
    assert all(len(piece.encode()) <= piece_bytes for piece in pieces)
    position = 0  # in order, with nothing but white space between them
    for piece in pieces:
        found = text.index(piece, position)
        assert not text[position:found].strip()
        position = found + len(piece)
    assert not text[position:].strip()
    if not skipped:
        assert "".join(pieces) == text


def test_a_bad_piece_of_a_long_text_costs_that_piece_only(tmp_path: Path) -> None:
    good = b"a line of text\n" * 70_000  # just over one piece
    (tmp_path / "a.txt").write_bytes(good[:PIECE_BYTES] + b"\xff\n" + good)
    corpus = load_corpus(str(tmp_path))
    kept = [document.name for document in corpus]
    assert corpus.skipped == {"undecodable": 1}
    assert kept == ["a.txt:0", "a.txt:2"]


# --- .jsonl and .parquet --------------------------------------------------------------------------


def test_jsonl_lines_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "one", "id": 1}',
        b"",
        b'{"text": "two \\u00e9"}\r',
        b'{"text": "broken"',
        b'["no object"]',
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"text": null}',
        b'{"id": 3}',
        b'{"text": "  "}',
        b'{"text": "\\u0000"}',
        b'{"text": "half a pair \\ud83d"}',
        b'{"text": "last"}',
    ]
    path.write_bytes(b"\n".join(lines))
    corpus = load_corpus(str(path))
    assert [(document.name, document.text) for document in corpus] == [
        ("data.jsonl:1", "one"),
        ("data.jsonl:3", "two é"),
        ("data.jsonl:13", "last"),
    ]
    assert corpus.skipped == {
        "broken line": 4,
        "no text": 2,
        "empty": 1,
        "binary": 1,
        "undecodable": 1,
    }


def test_another_field_and_a_missing_one(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", {"content": "x", "id": 1})
    table = write_parquet(tmp_path / "b.parquet", content=["y"], id=[2])
    texts = [d.text for d in load_corpus(str(tmp_path), text_field="content")]
    assert texts == ["x", "y"]
    with pytest.raises(CorpusError, match=r"a\.jsonl: no field 'text'; line 1 has \['content', 'i"):
        list(load_corpus(str(lines)))
    with pytest.raises(CorpusError, match=r"b\.parquet: no field 'text'; it has \['content', 'id"):
        list(load_corpus(str(table)))


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    texts = [f"row {i} ä" for i in range(1000)]
    table = pa.table({"text": [*texts, None, "", "a\0b"], "n": list(range(1003))})
    pq.write_table(table, path, row_group_size=300)
    corpus = load_corpus(str(path))
    documents = list(corpus)
    assert [document.text for document in documents] == texts
    assert documents[999].name == "data.parquet:999"
    assert corpus.skipped == {"no text": 1, "empty": 1, "binary": 1}


def test_parquet_columns_of_other_kinds(tmp_path: Path) -> None:
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "d.parquet")
    assert [d.text for d in load_corpus(str(tmp_path / "d.parquet"))] == ["a", "b", "a"]
    write_parquet(tmp_path / "n.parquet", text=[1, 2])
    with pytest.raises(CorpusError, match=r"holds no text \(skipped: 2 no text\)"):
        list(load_corpus(str(tmp_path / "n.parquet")))
    invalid = pa.array([b"good", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"text": invalid}), tmp_path / "u.parquet")
    corpus = load_corpus(str(tmp_path / "u.parquet"))
    assert [d.text for d in corpus] == ["good"]
    assert corpus.skipped == {"undecodable": 1}


@pytest.mark.parametrize("damage", ["not parquet", "cut short", "overwritten"])
def test_damaged_parquet_is_counted(tmp_path: Path, damage: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[f"text {i}" * 9 for i in range(5000)])
    data = path.read_bytes()
    if damage == "not parquet":
        path.write_bytes(b"hello")
    elif damage == "cut short":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:1000] + b"\xff" * 3000 + data[4000:])
    (tmp_path / "b.txt").write_text("whole", encoding="utf-8")
    corpus = load_corpus(str(tmp_path))
    assert [document.name for document in corpus] == ["b.txt"]
    assert corpus.skipped == {"damaged file": 1}


# --- memory ---------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from corpora import load_corpus
corpus = load_corpus(sys.argv[1])
for document in corpus: break                       # imports and buffers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(len(document.text) for document in corpus)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(total, (after - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
@pytest.mark.parametrize(
    ("kind", "mebibytes"),
    [
        ("lines", 24),
        ("one line", 24),
        ("parquet", 24),
        pytest.param("lines", 200, marks=pytest.mark.slow),
        pytest.param("one line", 200, marks=pytest.mark.slow),
        pytest.param("parquet", 200, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str, mebibytes: int) -> None:
    path = tmp_path / ("big.parquet" if kind == "parquet" else "big.txt")
    block = ("sixteen letters \N{BULLET}" + (" " if kind == "one line" else "\n")) * 1024
    if kind == "parquet":
        schema = pa.schema({"text": pa.string()})
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for i in range(mebibytes):
                rows = [f"{i} {j} {block[:1000]}" for j in range(1000)]
                writer.write_table(pa.table({"text": rows}, schema=schema))
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            while file.tell() < mebibytes * 2**20:
                file.write(block * 16)
    assert path.stat().st_size > 0.9 * mebibytes * 2**20
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "02-sequence-modeling")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    characters, growth = (int(word) for word in done.stdout.split())
    assert characters > 0.8 * mebibytes * 2**20
    assert growth < 12 * 2**20
