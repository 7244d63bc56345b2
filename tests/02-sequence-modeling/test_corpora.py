"""The built-in corpora, the hub, the split between training and validation, and mistakes."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora import Corpus, CorpusError, Document, is_validation, load_corpus, split_corpus

REPOSITORY = Path(__file__).resolve().parents[2]


def digest(corpus: Corpus) -> str:
    state = hashlib.sha256()
    for document in corpus:
        state.update(f"{document.name}\0{document.text}\0".encode())
    return state.hexdigest()


def write_parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# --- the standard library and the course ----------------------------------------------------------


def test_stdlib_is_real_text_in_a_fixed_order() -> None:
    corpus = load_corpus("stdlib")
    documents = list(corpus)
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert sum(len(document.text.encode()) for document in documents) > 8_000_000
    assert {"argparse.py", "email/parser.py", "pydoc_data/topics/assert"} <= set(names)
    by_name = {document.name: document.text for document in documents}
    root = Path(sysconfig.get_path("stdlib"))
    source = (root / "argparse.py").read_bytes().replace(b"\r\n", b"\n")
    assert by_name["argparse.py"].encode() == source
    assert 'The "assert" statement' in by_name["pydoc_data/topics/assert"]
    assert list(corpus) == documents  # again, and the same


def test_stdlib_leaves_out_tables_tests_and_the_machine() -> None:
    documents = list(load_corpus("stdlib"))
    for document in documents:
        folders = document.name.split("/")[:-1]
        assert not {"test", "tests", "encodings", "site-packages", "__pycache__"} & set(folders)
        assert not document.name.startswith(("/", "_sysconfigdata", "config-", "sitecustomize"))
    everything = "\n".join(document.text for document in documents)
    assert "decoding_table" not in everything
    assert str(REPOSITORY) not in everything
    # No document is so large that one side of a split would consist of it.
    assert max(len(document.text) for document in documents) < 0.03 * len(everything)


def test_stdlib_is_the_same_outside_the_virtual_environment() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY / '02-sequence-modeling')!r})\n"
        "import hashlib; from corpora import load_corpus\n"
        "state = hashlib.sha256()\n"
        "for d in load_corpus('stdlib'): state.update(f'{d.name}\\0{d.text}\\0'.encode())\n"
        "print(state.hexdigest())"
    )
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run(
        [base, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == digest(load_corpus("stdlib"))


def test_a_python_without_sources_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(CorpusError, match=r"not as source files \(0 found\)"):
        list(load_corpus("stdlib"))


def test_windows_line_ends_are_unified_in_the_standard_library_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(100):
        (tmp_path / f"m{i:03}.py").write_bytes(b"x = 1\r\ny = 2\r\n")
    documents = list(load_corpus(str(tmp_path)))
    assert documents[0] == Document("m000.py", "x = 1\r\ny = 2\r\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert Document("m000.py", "x = 1\ny = 2\n") in list(load_corpus("stdlib"))


def test_course_is_this_repository() -> None:
    names = [document.name for document in load_corpus("course")]
    assert names == sorted(names)
    assert {"README.md", "02-sequence-modeling/corpora.py"} <= set(names)
    assert not any(name.startswith("tests/") or "exercises" in name for name in names)


# --- the hub --------------------------------------------------------------------------------------


def test_a_local_data_set_is_streamed_by_the_datasets_library(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_parquet(folder / "train.parquet", text=["one", None, "two"], label=[0, 1, 2])
    write_parquet(folder / "validation.parquet", text=["held out"], label=[3])
    corpus = load_corpus(f"hf:{folder}")
    for _ in range(2):
        documents = [(document.name, document.text) for document in corpus]
        assert documents == [("mine/train:0", "one"), ("mine/train:2", "two")]
        assert corpus.skipped == {"no text": 1}
    assert [d.text for d in load_corpus(f"hf:{folder}::validation")] == ["held out"]
    assert [d.text for d in load_corpus(f"hf:{folder}:default:validation")] == ["held out"]
    with pytest.raises(CorpusError, match=r"no field 'body'; row 0 has \['label', 'text'\]"):
        list(load_corpus(f"hf:{folder}", text_field="body"))
    with pytest.raises(CorpusError, match=r"cannot open the data set .*Bad split: nope"):
        list(load_corpus(f"hf:{folder}::nope"))
    with pytest.raises(CorpusError, match=r"cannot open the data set .*BuilderConfig 'nope'"):
        list(load_corpus(f"hf:{folder}:nope"))


def test_without_network_the_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "from corpora import load_corpus, CorpusError\n"
        "try:\n    list(load_corpus('hf:someone/some-data-set'))\n"
        "except CorpusError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(REPOSITORY / "02-sequence-modeling"),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "cannot reach the data set 'someone/some-data-set'" in done.stdout
    assert "need no network" in done.stdout


@pytest.mark.parametrize("spec", ["hf:", "hf::config", "hf:a:b:c:d"])
def test_a_misspelt_hub_name_is_refused(spec: str) -> None:
    with pytest.raises(CorpusError, match="write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"):
        load_corpus(spec)


# --- mistakes -------------------------------------------------------------------------------------


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file or folder 'nowhere/at/all' \(a corpus is "):
        load_corpus("nowhere/at/all")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF")
    with pytest.raises(
        CorpusError, match=r"must end in \.txt, \.md, \.py, \.jsonl, \.parquet, got"
    ):
        load_corpus(str(tmp_path / "paper.pdf"))
    with pytest.raises(CorpusError, match=r"holds no text \(skipped: 1 unknown type\)"):
        list(load_corpus(str(tmp_path)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"corpus empty holds no text \(skipped: nothing\)"):
        list(load_corpus(str(tmp_path / "empty")))
    with pytest.raises(CorpusError, match="max_bytes must be positive, got 0"):
        load_corpus("stdlib", max_bytes=0)


def test_max_bytes_ends_before_the_document_that_would_exceed_it(tmp_path: Path) -> None:
    for name, text in (("a", "äää"), ("b", "bb"), ("c", "ccc"), ("d", "d")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")

    def names(limit: int) -> list[str]:
        return [document.name[0] for document in load_corpus(str(tmp_path), max_bytes=limit)]

    assert names(7) == ["a"]
    assert names(8) == ["a", "b"]
    assert names(10) == ["a", "b"]
    assert names(1) == ["a"]
    assert names(100) == ["a", "b", "c", "d"]


# --- the split ------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, *texts: str) -> Corpus:
    for i, text in enumerate(texts):
        (tmp_path / f"{i:04}.txt").write_text(text, encoding="utf-8")
    return load_corpus(str(tmp_path))


def test_a_split_is_a_partition_that_keeps_copies_together(tmp_path: Path) -> None:
    corpus = folder_of(tmp_path, *(f"text {i % 150}" for i in range(300)), "")
    train, validation = split_corpus(corpus, fraction=0.2, seed=3)
    sides = [list(train), list(validation)]
    assert sorted(d.name for side in sides for d in side) == [f"{i:04}.txt" for i in range(300)]
    assert not {d.text for d in sides[0]} & {d.text for d in sides[1]}
    assert 30 < len(sides[1]) < 90  # 60 expected, in pairs: standard deviation 9.8
    assert [d for d in corpus if is_validation(d, fraction=0.2, seed=3)] == sides[1]
    assert list(train) == sides[0]
    assert train.skipped == {"empty": 1}
    assert (train.name, validation.name) == (
        f"{tmp_path.name} (train)",
        f"{tmp_path.name} (validation)",
    )


def test_a_split_depends_on_text_and_seed_alone() -> None:
    documents = [Document(f"n{i}", f"text {i}") for i in range(400)]

    def held_out(seed: int, fraction: float = 0.1) -> set[str]:
        return {d.text for d in documents if is_validation(d, fraction=fraction, seed=seed)}

    assert held_out(0) != held_out(1)
    assert held_out(0) <= held_out(0, 0.2)  # a larger share only adds
    renamed = Document("elsewhere", "text 7")
    for seed in range(20):
        assert is_validation(renamed, fraction=0.5, seed=seed) == is_validation(
            documents[7], fraction=0.5, seed=seed
        )
    # Fixed for ever, so that old checkpoints are evaluated on text that they never saw.
    assert sorted(int(text.split()[1]) for text in held_out(0))[:5] == [8, 27, 30, 33, 43]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_small_corpora_have_both_sides(tmp_path: Path, seed: int, fraction: float) -> None:
    corpus = folder_of(tmp_path, "one", "two", "one")
    train, validation = split_corpus(corpus, fraction=fraction, seed=seed)
    texts = [{d.text for d in train}, {d.text for d in validation}]
    assert texts in ([{"one"}, {"two"}], [{"two"}, {"one"}])


def test_one_text_cannot_be_both(tmp_path: Path) -> None:
    corpus = folder_of(tmp_path, "same", "same")
    with pytest.raises(CorpusError, match="is a single document: it cannot be split"):
        split_corpus(corpus, fraction=0.5, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds no text"):
        split_corpus(load_corpus(str(tmp_path / "empty")), fraction=0.5, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_bad_fractions_are_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(CorpusError, match="must lie between 0 and 1"):
        split_corpus(folder_of(tmp_path, "a", "b"), fraction=fraction, seed=0)
    with pytest.raises(CorpusError, match="must lie between 0 and 1"):
        is_validation(Document("a", "a"), fraction=fraction, seed=0)


def test_splitting_reads_no_further_than_it_must() -> None:
    read = 0

    def endless(skipped: Counter[str]):
        nonlocal read
        for read in itertools.count():
            yield Document(str(read), str(read))

    split_corpus(Corpus("endless", endless), fraction=0.1, seed=0)
    assert read < 500
