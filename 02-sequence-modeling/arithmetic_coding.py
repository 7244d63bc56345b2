"""Arithmetic coding: any model that predicts the next symbol is a lossless compressor.

A message is a number in [0, 1). Each symbol narrows the interval in proportion to its
probability, so a message of probability p ends in an interval of length p, and about -log2 p bits
name a number in it. The coder keeps only the interval's leading bits (Witten, Neal and Cleary,
"Arithmetic coding for data compression", CACM 1987): bits on which both ends agree are written
at once, and an interval that shrinks around the middle is counted in `_pending` until it decides.

The README section "Compression is prediction" derives the cost: at most 2 bits above -log2 p for
exact probabilities, and `FREQUENCY_TOTAL`'s rounding for a model's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

_BITS = 48
_TOP = (1 << _BITS) - 1
_HALF, _QUARTER = 1 << (_BITS - 1), 1 << (_BITS - 2)
_MAGIC = b"TFC1"
_HEADER = struct.Struct("<4sQI")  # magic, number of bytes, CRC-32 of the bytes
FREQUENCY_TOTAL = 1 << 24


class ArithmeticEncoder:
    """Writes symbols as bits. `encode` each symbol, then `finish` once."""

    def __init__(self) -> None:
        self._low, self._high = 0, _TOP
        self._pending = 0
        self._bits = bytearray()  # one byte a bit until `finish` packs them

    def encode(self, start: int, end: int, total: int) -> None:
        """Narrow to [start / total, end / total): the symbol's share of the whole numbers below
        total. Raises ValueError unless 0 <= start < end <= total < 2**46.
        """
        _check_share(start, end, total)
        width = self._high - self._low + 1
        self._high = self._low + width * end // total - 1
        self._low += width * start // total
        while True:
            if self._high < _HALF:
                self._write(0)
            elif self._low >= _HALF:
                self._write(1)
                self._low -= _HALF
                self._high -= _HALF
            elif self._low >= _QUARTER and self._high < _HALF + _QUARTER:
                self._pending += 1
                self._low -= _QUARTER
                self._high -= _QUARTER
            else:
                return
            self._low *= 2
            self._high = 2 * self._high + 1

    def finish(self) -> bytes:
        """The code. Two more bits choose a quarter that lies inside the last interval."""
        self._pending += 1
        self._write(0 if self._low < _QUARTER else 1)
        return np.packbits(np.frombuffer(bytes(self._bits), dtype=np.uint8)).tobytes()

    def _write(self, bit: int) -> None:
        self._bits.append(bit)
        if self._pending:
            self._bits.extend(bytes([1 - bit]) * self._pending)
            self._pending = 0


class ArithmeticDecoder:
    """Reads what `ArithmeticEncoder` wrote, given the same shares in the same order.

    Beyond the code's end it reads zeros, so a code that was cut off decodes to something wrong,
    never to an error: whoever stores codes stores a checksum too, as `compress_bytes` does.
    """

    def __init__(self, code: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(code, dtype=np.uint8)).tolist()
        self._next = 0
        self._low, self._high, self._value = 0, _TOP, 0
        for _ in range(_BITS):
            self._value = 2 * self._value + self._bit()

    def target(self, total: int) -> int:
        """The whole number below total in whose share the code lies."""
        width = self._high - self._low + 1
        return ((self._value - self._low + 1) * total - 1) // width

    def consume(self, start: int, end: int, total: int) -> None:
        """Narrow as the encoder did, once it is known whose share `target` was. Raises ValueError
        as `ArithmeticEncoder.encode` does: an empty share would be narrowed for ever.
        """
        _check_share(start, end, total)
        width = self._high - self._low + 1
        self._high = self._low + width * end // total - 1
        self._low += width * start // total
        while True:
            if self._high < _HALF:
                shift = 0
            elif self._low >= _HALF:
                shift = _HALF
            elif self._low >= _QUARTER and self._high < _HALF + _QUARTER:
                shift = _QUARTER
            else:
                return
            self._low = 2 * (self._low - shift)
            self._high = 2 * (self._high - shift) + 1
            self._value = 2 * (self._value - shift) + self._bit()

    @property
    def code_bytes(self) -> int:
        """How long the encoder's code is, if the message ends here: a bit for each that was read
        after the first 48, and the two of `finish`, in whole bytes.
        """
        return (self._next - _BITS + 2 + 7) // 8

    def _bit(self) -> int:
        self._next += 1
        return self._bits[self._next - 1] if self._next <= len(self._bits) else 0


def _check_share(start: int, end: int, total: int) -> None:
    if not 0 <= start < end <= total < _QUARTER:
        raise ValueError(f"0 <= start < end <= total < 2**46 must hold: {start}, {end}, {total}")


def cumulative_frequencies(probabilities: np.ndarray | Sequence[float]) -> list[int]:
    """Probabilities (V,) as whole-number borders (V + 1,) from 0 to `FREQUENCY_TOTAL`.

    Each symbol gets at least 1, whatever its probability, so every symbol can be coded. Raises
    ValueError for anything that is no distribution.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 1 or not np.isfinite(p).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-3:
        raise ValueError(f"probabilities must be one distribution, got sum {p.sum()}")
    if len(p) > FREQUENCY_TOTAL // 2:
        raise ValueError(f"at most {FREQUENCY_TOTAL // 2} symbols can be coded, got {len(p)}")
    borders = np.floor(np.cumsum(p / p.sum()) * (FREQUENCY_TOTAL - len(p))).astype(np.int64)
    borders += np.arange(1, len(p) + 1)
    borders[-1] = FREQUENCY_TOTAL
    return [0, *borders.tolist()]


class BytePredictor(Protocol):
    """A model as the coder sees it: `start` forgets everything and returns the probabilities
    (256,) of the first byte; `after(byte)` those of the byte that follows.
    """

    def start(self) -> np.ndarray: ...
    def after(self, byte: int) -> np.ndarray: ...


def _byte_borders(probabilities: np.ndarray) -> list[int]:
    borders = cumulative_frequencies(probabilities)
    if len(borders) != 257:
        raise ValueError(f"a byte predictor gives 256 probabilities, got {len(borders) - 1}")
    return borders


class DamagedCodeError(ValueError):
    """A compressed file that is no such file, is cut off, or does not match its checksum."""


def compress_bytes(data: bytes, model: BytePredictor) -> bytes:
    """`data` as a header (16 bytes: magic, length, checksum) and its arithmetic code.

    Raises TypeError for what is no bytes, ValueError for a model that gives no distribution (256,).
    """
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data must be bytes (encode a text first), got {type(data).__name__}")
    encoder = ArithmeticEncoder()
    probabilities = model.start()
    for byte in data:
        borders = _byte_borders(probabilities)
        encoder.encode(borders[byte], borders[byte + 1], FREQUENCY_TOTAL)
        probabilities = model.after(byte)
    code = encoder.finish() if data else b""
    return _HEADER.pack(_MAGIC, len(data), zlib.crc32(data)) + code


def decompress_bytes(compressed: bytes, model: BytePredictor) -> bytes:
    """What `compress_bytes` was given, bit for bit; the model must be the same.

    Raises DamagedCodeError for other bytes, cut off, changed or with something appended, and
    TypeError for what is no bytes. The model computes the same floating-point numbers
    twice, so the same machine and build must do both: a probability that differs in its last
    place can move a border, and everything behind it is lost (the checksum tells).
    """
    if not isinstance(compressed, (bytes, bytearray)):
        raise TypeError(f"a compressed file is bytes, got {type(compressed).__name__}")
    if len(compressed) < _HEADER.size:
        raise DamagedCodeError(f"{len(compressed)} bytes are fewer than the header's 16")
    magic, length, checksum = _HEADER.unpack_from(compressed)
    if magic != _MAGIC:
        raise DamagedCodeError(f"a compressed file begins with {_MAGIC!r}, not with {magic!r}")
    code = compressed[_HEADER.size :]
    # A byte costs at least log2(1 / (1 - 255 / 2**24)) bits: a longer promise is a lie that
    # would keep the decoder busy for years.
    if length > 8 * (len(code) + 8) * 70_000:
        raise DamagedCodeError(f"{len(code)} bytes of code cannot hold {length} bytes")
    decoder, data = ArithmeticDecoder(code), bytearray()
    probabilities = model.start() if length else None
    while len(data) < length:
        assert probabilities is not None
        borders = _byte_borders(probabilities)
        byte = int(np.searchsorted(borders, decoder.target(FREQUENCY_TOTAL), side="right")) - 1
        if not 0 <= byte < 256:
            raise DamagedCodeError(f"the code leaves its interval at byte {len(data)}")
        decoder.consume(borders[byte], borders[byte + 1], FREQUENCY_TOTAL)
        data.append(byte)
        probabilities = model.after(byte)
    if zlib.crc32(data) != checksum:
        raise DamagedCodeError("the checksum does not match: a damaged file, or another model")
    expected = decoder.code_bytes if length else 0
    if len(code) != expected:
        raise DamagedCodeError(f"the code must be {expected} bytes, got {len(code)}")
    return bytes(data)


class AdaptiveBytes:
    """The simplest predictor: counts of the bytes so far, each starting at one (Laplace)."""

    def start(self) -> np.ndarray:
        self._counts = np.ones(256)
        return self._counts / 256

    def after(self, byte: int) -> np.ndarray:
        self._counts[byte] += 1
        return self._counts / self._counts.sum()


class SteppingModel:
    """A recurrent or n-gram model as a BytePredictor: `step(state, byte) -> (probs, state)`.

    `byte` is None at the start; `probs` are the probabilities (256,) of what follows.
    """

    def __init__(self, step: Callable[[object, int | None], tuple[np.ndarray, object]]) -> None:
        self._step = step
        self._state: object = None

    def start(self) -> np.ndarray:
        probabilities, self._state = self._step(None, None)
        return probabilities

    def after(self, byte: int) -> np.ndarray:
        probabilities, self._state = self._step(self._state, byte)
        return probabilities


def code_length_bits(shares: Iterable[tuple[int, int, int]]) -> float:
    """-log2 of the product of (end - start) / total: what the ideal code would take, in bits."""
    return float(sum(np.log2(total) - np.log2(end - start) for start, end, total in shares))
