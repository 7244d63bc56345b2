"""A file of any length is tokenised in constant memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bpe import train_bpe
from tokenizer import Tokenizer
from tokenizer_parity import library_texts

STREAM = """
import sys
from pathlib import Path
from tokenizer import Tokenizer

tokenizer = Tokenizer.load(sys.argv[1])
with open(sys.argv[2], encoding="utf-8", newline="") as file:
    tokens = sum(map(len, tokenizer.encode_iter(file)))
found = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(tokens, int(found[0].split()[1]) // 1024)
"""


def stream_file(directory: Path, megabytes: int) -> tuple[int, int, int]:
    """Tokens of a file, the tokens that it must have, and the peak memory of reading it in MiB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    tokenizer = Tokenizer.from_bpe(train_bpe(library_texts(), 3000))
    tokenizer.save(directory / "tokenizer.json")
    text = "".join(library_texts()) + "end"
    repeats = megabytes * 10**6 // len(text.encode()) + 1
    path = directory / "text.txt"
    with path.open("w", encoding="utf-8", newline="") as file:
        for number in range(repeats):
            # No two alike, so that the cache meets something new to the end of the file.
            file.write(
                text + "".join(f" {n:x}" for n in range(number * 3000, number * 3000 + 3000))
            )
    command = [sys.executable, "-c", STREAM, str(directory / "tokenizer.json"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tokens, peak = map(int, done.stdout.split())
    with path.open(encoding="utf-8", newline="") as file:
        want = sum(len(tokenizer.encode(part)) for part in iter(lambda: file.read(1 << 24), ""))
    path.unlink()
    return tokens, want, peak


def test_a_file_is_streamed_in_little_memory(tmp_path: Path) -> None:
    tokens, want, peak = stream_file(tmp_path, 12)
    assert abs(tokens - want) <= 2  # the reference cuts the file where it likes
    assert peak < 160


@pytest.mark.slow
def test_a_gigabyte_is_streamed_in_under_500_mb(tmp_path: Path) -> None:
    tokens, want, peak = stream_file(tmp_path, 1000)
    assert abs(tokens - want) <= 120
    assert peak < 300
