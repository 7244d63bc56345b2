"""Shards on disk and the batches drawn from them: nothing lost, nothing seen twice, no state."""

from __future__ import annotations

import functools
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe import train_bpe
from corpora import Document
from kill_testing import killed_at_flush
from token_dataset import (
    PackedBatch,
    TokenBatches,
    TokenShards,
    document_ids,
    document_positions,
    write_shards,
)
from tokenizer import Tokenizer


class ByteTokenizer(Tokenizer):
    """A token a byte and one to end a text, in a vocabulary of any size."""

    def __init__(self, vocab_size=257, eos_id: int | None = 256):
        self.vocab_size, self._eos_id = vocab_size, eos_id
        self.special_tokens = {} if eos_id is None else {"<|endoftext|>": eos_id}

    @property
    def eos_id(self):
        return self._eos_id

    def encode_batch(self, texts, **options):
        return [list(text.encode()) for text in texts]

    def decode_bytes(self, ids):
        return bytes(i for i in ids if i < 256)  # the rest of a wider vocabulary is unused


TEXTS = ["The first.", "", "Ünïcode, 2 bytes a letter", "x", "the end\n" * 9]
STREAM = [token for text in TEXTS if text for token in [*text.encode(), 256]]


def documents(texts=TEXTS):
    return [Document(f"doc {number}", text) for number, text in enumerate(texts)]


def shards_of(folder, count, **options):
    """A folder whose stream is 0, 1, 2, … as one document: places can be read off tokens."""
    tokenizer = ByteTokenizer(vocab_size=count, eos_id=count - 1)
    tokenizer.encode_batch = lambda texts, **options: [list(range(count - 1)) for _ in texts]
    tokenizer.decode_bytes = lambda ids: b"-"
    write_shards([Document("numbers", "-" * (count - 1))], tokenizer, folder, **options)
    return TokenShards(folder)


@pytest.mark.parametrize("shard_tokens", [1, 7, 36, 10_000])
def test_the_stream_is_the_documents_whatever_the_cut_into_files(tmp_path, shard_tokens):
    info = write_shards(documents(), ByteTokenizer(), tmp_path, shard_tokens=shard_tokens)
    shards = TokenShards(tmp_path)
    assert shards.info == info
    assert len(info.shards) == -(-len(STREAM) // shard_tokens)
    assert len(shards) == info.num_tokens == len(STREAM)
    assert shards.num_documents == 4  # the empty one is no document
    assert shards.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert shards.bytes_per_token == shards.num_bytes / len(STREAM)
    assert shards.read(0, len(STREAM)).tolist() == STREAM
    for start, stop in ((0, 0), (3, 41), (35, 37), (len(STREAM) - 1, len(STREAM))):
        assert shards.read(start, stop).tolist() == STREAM[start:stop]
    assert shards.read(0, 5).dtype == np.int64
    with pytest.raises(ValueError, match=f"not within 0 to {len(STREAM)}"):
        shards.read(5, len(STREAM) + 1)


def test_bytes_of_a_stretch_add_up(tmp_path):
    write_shards(documents(), ByteTokenizer(), tmp_path)
    shards = TokenShards(tmp_path)
    assert shards.byte_count(shards.read(0, len(shards))) == shards.num_bytes
    assert shards.byte_count(shards.read(0, 11)) == 10  # the end of a text stands for no bytes


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32"), (200_000, "uint32")]
)
def test_two_bytes_a_token_where_they_suffice(tmp_path, vocab_size, dtype):
    tokenizer = ByteTokenizer(vocab_size, eos_id=vocab_size - 1)
    info = write_shards(documents(), tokenizer, tmp_path)
    assert info.dtype == dtype
    size = (tmp_path / info.shards[0].file).stat().st_size
    assert size == len(STREAM) * np.dtype(dtype).itemsize
    assert TokenShards(tmp_path).read(10, 11).tolist() == [vocab_size - 1]


def test_a_tokenizer_that_loses_bytes_gives_the_total_only(tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.encode_batch = lambda texts, **options: [
        list(text.lower().encode()[1:]) for text in texts
    ]
    write_shards(documents(), tokenizer, tmp_path)
    shards = TokenShards(tmp_path)
    assert shards.num_bytes == sum(len(text.encode()) for text in TEXTS)
    with pytest.raises(ValueError, match="fixed numbers of bytes"):
        shards.byte_count(shards.read(0, 3))


def test_the_real_tokenizer_comes_back_as_text(tmp_path):
    texts = ["To be, or not to be: ", "that is the question.\n" * 20, "naïve 東京 <|endoftext|>"]
    bpe = train_bpe(texts, 300)
    tokenizer = Tokenizer.from_bpe(bpe, special_tokens=("<|endoftext|>",))
    info = write_shards(documents(texts), tokenizer, tmp_path, shard_tokens=50)
    shards = TokenShards(tmp_path)
    assert info.eos_id == tokenizer.special_tokens["<|endoftext|>"]
    assert info.num_tokens < info.num_bytes
    stream = shards.read(0, len(shards)).tolist()
    ends = [place for place, token in enumerate(stream) if token == info.eos_id]
    assert len(ends) == 3, "what is written like a special token in a text is none"
    starts = [0, *(end + 1 for end in ends)]
    for text, start, end in zip(texts, starts, ends, strict=False):
        assert tokenizer.decode(stream[start:end]) == text
        assert shards.byte_count(shards.read(start, end + 1)) == len(text.encode())


# --- whole or not there -----------------------------------------------------------------------


def test_an_interrupted_write_leaves_no_index_and_the_next_call_replaces_it(tmp_path):
    def torn():
        yield Document("one", "x" * 2_000_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(torn(), ByteTokenizer(), tmp_path, shard_tokens=1 << 20)
    assert list(tmp_path.iterdir()) == []

    # A kill cannot tidy up: what it leaves is no dataset, and does not stand in the way.
    (tmp_path / "shard-00000.bin").write_bytes(b"half")
    with pytest.raises(ValueError, match="unfinished"):
        TokenShards(tmp_path)
    write_shards(documents(), ByteTokenizer(), tmp_path)
    assert TokenShards(tmp_path).read(0, len(STREAM)).tolist() == STREAM


def test_killed_at_any_flush_the_folder_is_whole_or_has_no_index(tmp_path):
    whole = 0
    for flushes in itertools.count():
        folder = tmp_path / str(flushes)
        write = functools.partial(
            write_shards, documents(), ByteTokenizer(), folder, shard_tokens=40
        )
        if not killed_at_flush(write, flushes):
            break
        if (folder / "index.json").exists():
            whole += 1
        else:
            write()  # nothing that a kill left stands in the way
        assert TokenShards(folder).read(0, len(STREAM)).tolist() == STREAM
    # Flushes: three shards, the index aside, the folder once the index has its name.
    assert (flushes, whole) == (5, 1)


def test_nothing_is_overwritten(tmp_path):
    write_shards(documents(), ByteTokenizer(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="already holds token shards"):
        write_shards(documents(), ByteTokenizer(), tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = tmp_path / "notes"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(diary.txt\)"):
        write_shards(documents(), ByteTokenizer(), other)


@pytest.mark.parametrize("size", ["cut", "grown", "flipped", "missing"])
def test_a_damaged_shard_is_named(tmp_path, size):
    write_shards(documents(), ByteTokenizer(), tmp_path, shard_tokens=40)
    shard = tmp_path / "shard-00001.bin"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    changed = {"cut": bytes(data[:-2]), "grown": bytes(data) + b"ab", "flipped": bytes(data)}
    if size == "missing":
        shard.unlink()
    else:
        shard.write_bytes(changed[size])
    with pytest.raises(ValueError, match=r"shard-00001\.bin"):
        TokenShards(tmp_path)
    if size == "flipped":  # sizes alone cannot tell
        assert len(TokenShards(tmp_path, verify=False)) == len(STREAM)
    else:
        with pytest.raises(ValueError, match=r"shard-00001\.bin"):
            TokenShards(tmp_path, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("token-shards-1", "token-shards-9"),
        lambda text: text.replace("uint16", "float64"),
        lambda text: text.replace("shard-00000.bin", "../secret.bin"),
        lambda text: text.replace('"num_tokens"', '"num_took"'),
        lambda text: json.dumps({**json.loads(text), "num_tokens": 5}),
    ],
)
def test_a_damaged_index_is_named(tmp_path, change):
    write_shards(documents(), ByteTokenizer(), tmp_path)
    index = tmp_path / "index.json"
    index.write_text(change(index.read_text()))
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        TokenShards(tmp_path)


def test_wrong_input_is_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match="no text to write"):
        write_shards(documents(["", ""]), ByteTokenizer(), tmp_path / "a")
    with pytest.raises(ValueError, match="no end-of-text token"):
        write_shards(documents(), ByteTokenizer(eos_id=None), tmp_path / "b")
    with pytest.raises(ValueError, match="shard_tokens must be at least 1; got 0"):
        write_shards(documents(), ByteTokenizer(), tmp_path / "c", shard_tokens=0)
    with pytest.raises(ValueError, match="ids from 32 to 255"):
        write_shards(documents(["a ÿ"]), ByteTokenizer(vocab_size=200, eos_id=255), tmp_path / "d")
    with pytest.raises(ValueError, match="holds no token shards"):
        TokenShards(tmp_path / "nowhere")


# --- batches ----------------------------------------------------------------------------------


def test_targets_are_ids_one_token_later_in_the_ring(tmp_path):
    shards = shards_of(tmp_path, 103)
    batches = TokenBatches(shards, batch_size=3, seq_len=10, seed=5)
    for step in range(7):
        ids, targets = batches.batch(step)
        assert ids.shape == targets.shape == (3, 10)
        assert ids.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, (ids + 1) % 103)
        assert torch.equal(ids[:, 1:], targets[:, :-1])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(20, 120),
    seq_len=st.integers(1, 19),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_target_once_but_for_the_left_over(
    tmp_path_factory, count, seq_len, seed, epoch
):
    shards = shards_of(tmp_path_factory.mktemp("shards") / "s", count, shard_tokens=17)
    batches = TokenBatches(shards, batch_size=1, seq_len=seq_len, seed=seed)
    first = epoch * batches.num_windows
    targets = torch.cat([batches.batch(first + w)[1] for w in range(batches.num_windows)])
    seen = targets.flatten().tolist()
    assert len(seen) == len(set(seen))
    assert len(seen) == count // seq_len * seq_len > count - seq_len


def test_order_and_cut_are_new_in_each_epoch_and_for_each_seed(tmp_path):
    shards = shards_of(tmp_path, 2001)
    starts = {}
    for seed in (0, 1):
        batches = TokenBatches(shards, batch_size=1, seq_len=10, seed=seed)
        assert batches.num_windows == 200
        for epoch in (0, 1):
            windows = [int(batches.batch(epoch * 200 + w)[0][0, 0]) for w in range(200)]
            assert windows != sorted(windows)
            starts[seed, epoch] = windows
    cuts = [min(s % 10 for s in windows if s < 1990) for windows in starts.values()]
    assert len(set(cuts)) > 1, "the cut never moves"
    # In a random order a window is at its own place once on average: 12 times is 1 in 10^9.
    for a in starts:
        for b in starts:
            ranked_a, ranked_b = np.argsort(starts[a]), np.argsort(starts[b])
            assert a == b or (ranked_a == ranked_b).sum() < 12


def test_a_batch_depends_on_its_step_alone(tmp_path):
    shards = shards_of(tmp_path, 500)
    forwards = TokenBatches(shards, batch_size=7, seq_len=9, seed=3)
    backwards = TokenBatches(shards, batch_size=7, seq_len=9, seed=3)
    steps = range(40)  # five epochs, with batches across their ends
    wanted = [forwards.batch(step) for step in steps]
    for step in reversed(steps):
        assert torch.equal(backwards.batch(step)[0], wanted[step][0])
    resumed = TokenBatches(shards, batch_size=7, seq_len=9, seed=3).iterate(start_step=23)
    for step in range(23, 40):
        assert torch.equal(next(resumed)[1], wanted[step][1])
    assert forwards.epoch(8) == 56 / 55
    assert forwards.tokens_per_batch == 63
    torch_state = torch.get_rng_state()
    forwards.batch(99)
    assert torch.equal(torch_state, torch.get_rng_state())


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_ranks_together_have_the_batch_of_one_process(tmp_path, world_size):
    shards = shards_of(tmp_path, 300)
    single = TokenBatches(shards, batch_size=6, seq_len=11, seed=1)
    ranks = [
        TokenBatches(shards, batch_size=6, seq_len=11, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in (0, 3, 4, 5, 20):  # 27 windows: step 4 reaches into the second epoch
        ids, targets = single.batch(step)
        parts = [rank.batch(step) for rank in ranks]
        assert torch.equal(torch.cat([part[0] for part in parts]), ids)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seq_len": 100}, "100 tokens make 0 windows of 100"),
        ({"batch_size": 6, "seq_len": 19}, "5 windows of 19 .* a batch needs 6"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 5, "world_size": 2}, "2 ranks cannot share a batch of 5"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused(tmp_path, options, says):
    shards = shards_of(tmp_path, 100)
    with pytest.raises(ValueError, match=says):
        TokenBatches(shards, **{"batch_size": 2, "seq_len": 9, "seed": 0, **options})
    with pytest.raises(ValueError, match="step must be at least 0"):
        TokenBatches(shards, batch_size=2, seq_len=9, seed=0).batch(-1)


def test_the_smallest_corpus_that_makes_a_window(tmp_path):
    # One token more than the window: its targets are a turn of the ring.
    ids, targets = TokenBatches(shards_of(tmp_path, 20), batch_size=1, seq_len=19, seed=0).batch(4)
    assert torch.equal(targets, (ids + 1) % 20)


def test_documents_are_numbered_from_their_end_marks():
    ids = torch.tensor([[5, 6, 0, 7, 8, 0, 0, 9], [0, 1, 2, 3, 4, 5, 6, 7]])
    documents_found = document_ids(ids, eos_id=0)
    assert documents_found.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 1, 1]]
    assert document_positions(documents_found).tolist() == [
        [0, 1, 0, 1, 2, 0, 0, 1],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ]


def test_packed_batches_say_where_documents_begin(tmp_path):
    write_shards(documents(["abc", "de", "f", "ghij"] * 20), ByteTokenizer(), tmp_path)
    batches = TokenBatches(
        TokenShards(tmp_path), batch_size=4, seq_len=12, seed=2, document_masks=True
    )
    packed = next(batches.iterate(3))
    assert isinstance(packed, PackedBatch)
    ids, targets = batches.batch(3)
    assert torch.equal(packed.ids, ids)
    assert torch.equal(packed.targets, targets)
    assert (packed.document_ids[:, -1] > 1).all()
    begins = ids[:, 1:] == 256
    assert torch.equal(packed.positions[:, 1:] == 0, begins)
    assert torch.equal(packed.document_ids[:, 1:] - packed.document_ids[:, :-1], begins.long())
