"""What a caller may get wrong in topic 02's modules: each mistake is named, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arithmetic_coding import (
    FREQUENCY_TOTAL,
    AdaptiveBytes,
    ArithmeticDecoder,
    ArithmeticEncoder,
    DamagedCodeError,
    compress_bytes,
    cumulative_frequencies,
    decompress_bytes,
)
from corpora import load_corpus
from ngram import NgramModel
from recurrent import (
    RecurrentConfig,
    RecurrentLayer,
    RecurrentLM,
    continuous_windows,
    jacobian_norms,
    matched_width,
    stream_nats,
)
from seq2seq import EncoderDecoder
from sequence_data import Vocabulary, as_language_model, pad_sequences
from text_files import CorpusError
from tiny_world import TinyWorld

IDS = torch.arange(8)
ZEROS = torch.zeros(2, 3, dtype=torch.int64)


class _Narrow(AdaptiveBytes):
    def start(self):
        return np.full(255, 1 / 255)


def _model(**settings):
    return RecurrentLM(RecurrentConfig(vocab_size=8, d_model=4, **settings))


def _pair(**settings):
    return EncoderDecoder(5, 5, 4, **settings)


BAD = {
    "ids of floats": (lambda: NgramModel([0, 1.5], order=2, vocab_size=3), TypeError, "integers"),  # type: ignore
    "ids of letters": (lambda: NgramModel("ab", order=2, vocab_size=3), TypeError, "integers"),  # type: ignore[arg-type]
    "text to compress": (lambda: compress_bytes("abc", AdaptiveBytes()), TypeError, "be bytes"),  # type: ignore[arg-type]
    "text to unpack": (lambda: decompress_bytes("abc", AdaptiveBytes()), TypeError, "is bytes"),  # type: ignore[arg-type]
    "255 bytes": (lambda: compress_bytes(b"a", _Narrow()), ValueError, "256 probabilities"),
    "a million symbols": (
        lambda: cumulative_frequencies(np.full(FREQUENCY_TOTAL, 1 / FREQUENCY_TOTAL)),
        ValueError, "at most",
    ),
    "an empty share": (lambda: ArithmeticDecoder(b"ab").consume(5, 5, 10), ValueError, "must hold"),
    "story -1": (lambda: TinyWorld().story(-1), ValueError, "0 or more"),
    "story None": (lambda: TinyWorld().story(None), TypeError, "an integer"),  # type: ignore[arg-type]
    "one string": (lambda: TinyWorld().compress("He danced."), TypeError, "several strings"),
    "-1 stories": (lambda: TinyWorld().decompress(b"", -1), ValueError, "0 or more"),
    "half an id": (lambda: Vocabulary("ab").decode([1.5]), TypeError, "float"),  # type: ignore[list-item]
    "half ids": (lambda: pad_sequences([[1], [0.5]], pad_id=0), TypeError, "sequence 1"),  # type: ignore[list-item]
    "pairs that do not pair": (
        lambda: as_language_model(ZEROS, ZEROS[:1], separator_id=9), ValueError, "same N|needed",
    ),
    "nothing to say": (
        lambda: as_language_model(ZEROS, ZEROS[:, :0], separator_id=9), ValueError, "T >= 1",
    ),
    "embedding of width 0": (lambda: _model(embed_dim=0), ValueError, "embed_dim must be"),
    "one row of ids": (lambda: _model()(IDS), ValueError, r"must be \(B, T\)"),
    "too many layers": (
        lambda: _model()(IDS[None], torch.zeros(2, 2, 1, 4)), ValueError, "hold 1 layers, got 2",
    ),
    "windows of a batch": (
        lambda: next(continuous_windows(ZEROS, batch_size=1, seq_len=1)), ValueError, "one text",
    ),
    "windows of nothing": (
        lambda: next(continuous_windows(IDS, batch_size=2, seq_len=0)), ValueError, "1 or more",
    ),
    "no batch": (
        lambda: next(continuous_windows(IDS, batch_size=0, seq_len=2)), ValueError, "1 or more",
    ),
    "pieces of -1": (lambda: stream_nats(_model(), IDS, chunk=-1), ValueError, "1 or more"),
    "a flat input": (
        lambda: jacobian_norms(RecurrentLayer("rnn", 3, 4), torch.zeros(3)), ValueError, "T, 3",
    ),
    "too few parameters": (
        lambda: matched_width("gru", vocab_size=9, embed_dim=9, parameters=9), ValueError, "no gru",
    ),
    "no end of parameters": (
        lambda: matched_width("gru", vocab_size=9, embed_dim=9, parameters=float("inf")),  # type: ignore[arg-type]
        ValueError, "no gru",
    ),
    "writer of width 0": (lambda: EncoderDecoder(5, 5, 0), ValueError, "widths must be"),
    "embeddings of width 0": (lambda: _pair(embed_dim=0), ValueError, "widths must be"),
    "half a length": (
        lambda: _pair().encode(ZEROS, torch.tensor([1.5, 2.0])), TypeError, "be integers",
    ),
    "nobody to read": (
        lambda: _pair().encode(ZEROS[:0], torch.zeros(0, dtype=torch.int64)), ValueError, "lengths",
    ),
    "a corpus without a name": (lambda: load_corpus(""), CorpusError, "is empty"),
    "no corpus": (lambda: load_corpus(None), TypeError, "string or a path"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_named(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()


def test_a_corpus_may_be_named_by_a_path(tmp_path):
    (tmp_path / "a.txt").write_text("Some text.\n")
    assert [d.text for d in load_corpus(tmp_path / "a.txt")] == ["Some text.\n"]


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=3))
def test_a_file_with_something_appended_is_damaged(data, junk):
    """The checksum is of the message, so it cannot tell: the length of the code does."""
    code = compress_bytes(data, AdaptiveBytes())
    assert decompress_bytes(code, AdaptiveBytes()) == data
    with pytest.raises(DamagedCodeError):
        decompress_bytes(code + junk, AdaptiveBytes())


@given(st.binary(min_size=1, max_size=60), st.integers(1, 8))
def test_a_file_that_was_cut_off_is_damaged(data, lost):
    """Also where the lost end was zeros, which the decoder would read anyway."""
    code = compress_bytes(data, AdaptiveBytes())
    with pytest.raises(DamagedCodeError):
        decompress_bytes(code[:-lost], AdaptiveBytes())


class _Even(AdaptiveBytes):
    def start(self):
        return np.full(256, 1 / 256)

    def after(self, byte):
        return self.start()


@given(st.binary(min_size=1, max_size=20), st.integers(0, 7))
def test_where_all_messages_are_equally_long_the_checksum_tells(data, bit):
    code = bytearray(compress_bytes(data, _Even()))
    code[16] ^= 1 << bit
    with pytest.raises(DamagedCodeError, match="checksum"):
        decompress_bytes(bytes(code), _Even())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30), st.integers(0, 30)), max_size=50))
def test_the_decoder_knows_how_long_the_code_is(sizes):
    shares = [(before, before + own, before + own + after) for before, own, after in sizes]
    encoder = ArithmeticEncoder()
    for share in shares:
        encoder.encode(*share)
    code = encoder.finish()
    decoder = ArithmeticDecoder(code)
    for start, end, total in shares:
        assert start <= decoder.target(total) < end
        decoder.consume(start, end, total)
    assert decoder.code_bytes == len(code)
