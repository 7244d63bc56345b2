"""The coder: lossless for everything, as short as promised, and not fooled by damage."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arithmetic_coding import (
    FREQUENCY_TOTAL,
    AdaptiveBytes,
    ArithmeticDecoder,
    ArithmeticEncoder,
    DamagedCodeError,
    SteppingModel,
    code_length_bits,
    compress_bytes,
    cumulative_frequencies,
    decompress_bytes,
)
from ngram import NgramModel


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_round_trip_and_length(data):
    size = data.draw(st.integers(0, 60))
    shares = []
    for _ in range(size):
        total = data.draw(st.sampled_from([1, 2, 3, 256, 2**24, 2**45]))
        start = data.draw(st.integers(0, total - 1))
        end = data.draw(st.integers(start + 1, total))
        shares.append((start, end, total))
    encoder = ArithmeticEncoder()
    for share in shares:
        encoder.encode(*share)
    code = encoder.finish()
    decoder = ArithmeticDecoder(code)
    for start, end, total in shares:
        assert start <= decoder.target(total) < end
        decoder.consume(start, end, total)
    assert 8 * len(code) < code_length_bits(shares) + 10.01 + 0.3 * size


def test_half_and_quarter_by_hand():
    """The README's example: p(a) = 1/2, p(b) = 1/4, p(c) = 1/4, the message bac."""
    shares = {"a": (0, 2, 4), "b": (2, 3, 4), "c": (3, 4, 4)}
    encoder = ArithmeticEncoder()
    for letter in "bac":
        encoder.encode(*shares[letter])
    # b: [1/2, 3/4), ba: [1/2, 5/8), bac: [19/32, 20/32): 10011 in binary, and two bits to close.
    assert f"{encoder.finish()[0]:08b}".startswith("10011")
    assert code_length_bits([shares[letter] for letter in "bac"]) == 5.0


@given(st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_bytes_come_back(data):
    assert decompress_bytes(compress_bytes(data, AdaptiveBytes()), AdaptiveBytes()) == data


def test_a_trained_model_compresses_to_its_cross_entropy():
    random = Random(0)
    text = bytes(random.choice(b"abcde fgh") for _ in range(200)) * 60
    model = NgramModel(text[:6000], order=4, vocab_size=256)
    held_out = text[6000:10000]
    coder = SteppingModel(model.coding_step)
    code = compress_bytes(held_out, coder)
    ideal = model.nats(held_out) / math.log(2)
    assert 8 * (len(code) - 16) <= 1.01 * ideal + 16
    assert len(code) < len(held_out)
    assert decompress_bytes(code, coder) == held_out


def test_unlikely_bytes_can_be_coded():
    class Sure:
        def start(self):
            return np.eye(256)[65]

        def after(self, byte):
            return np.eye(256)[65]

    data = b"AAAA\x00AAA"
    assert decompress_bytes(compress_bytes(data, Sure()), Sure()) == data


def test_every_kind_of_damage_is_noticed():
    data = b"a text of some length, a text of some length" * 5
    code = compress_bytes(data, AdaptiveBytes())
    damaged = [b"", code[:10], b"XXXX" + code[4:], code[: len(code) // 2]]
    for place in (5, 13, 20, len(code) - 6):
        changed = bytearray(code)
        changed[place] ^= 0x40
        damaged.append(bytes(changed))
    for one in damaged:
        with pytest.raises(DamagedCodeError):
            decompress_bytes(one, AdaptiveBytes())


def test_a_promise_of_endless_output_is_refused():
    code = bytearray(compress_bytes(b"abc", AdaptiveBytes()))
    code[4:12] = (1 << 60).to_bytes(8, "little")
    with pytest.raises(DamagedCodeError, match="cannot hold"):
        decompress_bytes(bytes(code), AdaptiveBytes())


def test_another_model_is_noticed():
    code = compress_bytes(b"hello hello hello", AdaptiveBytes())
    model = NgramModel(b"something else", order=2, vocab_size=256)
    with pytest.raises(DamagedCodeError):
        decompress_bytes(code, SteppingModel(model.coding_step))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=300).filter(lambda p: sum(p) > 0.1))
@settings(max_examples=60, deadline=None)
def test_every_symbol_has_a_share(p):
    borders = cumulative_frequencies(np.array(p) / sum(p))
    assert borders[0] == 0
    assert borders[-1] == FREQUENCY_TOTAL
    assert min(np.diff(borders)) >= 1


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="start < end"):
        ArithmeticEncoder().encode(3, 3, 4)
    with pytest.raises(ValueError, match="distribution"):
        cumulative_frequencies([0.5, 0.6])
    with pytest.raises(ValueError, match="distribution"):
        cumulative_frequencies([math.nan, 1.0])
