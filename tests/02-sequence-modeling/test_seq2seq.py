"""The encoder-decoder: padding, teacher forcing, decoding, plug-in attention."""

from typing import Any

import pytest
import torch
from torch import nn

from seq2seq import EncoderDecoder, greedy_decode, source_mask
from sequence_data import reverse_task


class MeanAttention(nn.Module):
    """Equal weights over what is real: enough to test the plumbing."""

    def forward(self, query, memory, keep):
        weights = keep.to(memory.dtype) / keep.sum(dim=1, keepdim=True)
        return torch.einsum("bs,bsm->bm", weights, memory), weights


def new_model(cell: Any = "gru", *, seed: int = 0, **options: Any) -> EncoderDecoder:
    return EncoderDecoder(
        11, 13, 8, embed_dim=6, cell=cell, generator=torch.Generator().manual_seed(seed), **options
    )


CASES = [
    {},
    {"bidirectional": False},
    {"attention": MeanAttention()},
    {"attention": MeanAttention(), "attend_before": False, "bidirectional": False},
]
SRC = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 10]])
LENGTHS = torch.tensor([3, 5])
TGT = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7]])


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_padding_changes_nothing(cell, options):
    model = new_model(cell, **options)
    both = model(SRC, LENGTHS, TGT)
    alone = model(SRC[:1, :3], LENGTHS[:1], TGT[:1])
    torch.testing.assert_close(both[:1], alone)
    other = SRC.clone()
    other[0, 3:] = 9
    torch.testing.assert_close(model(other, LENGTHS, TGT), both)
    memory, state = model.encode(SRC, LENGTHS)
    assert memory.shape == (2, 5, model.memory_dim)
    assert state.shape == (2 if cell == "lstm" else 1, 2, 8)
    assert (memory[0, 3:] == 0).all()


@pytest.mark.parametrize("options", CASES)
def test_every_source_token_matters_and_no_later_target(options):
    model = new_model(**options)
    logits = model(SRC, LENGTHS, TGT)
    for s in range(5):
        other = SRC.clone()
        other[1, s] = 1
        assert not torch.allclose(model(other, LENGTHS, TGT)[1], logits[1], atol=1e-7)
    other = TGT.clone()
    other[:, 2:] = 12
    torch.testing.assert_close(model(SRC, LENGTHS, other)[:, :2], logits[:, :2])


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_the_teacher_forced_pass(options, fused):
    model = new_model("lstm", fused=fused, **options)
    memory, state = model.encode(SRC, LENGTHS)
    keep = source_mask(LENGTHS, 5)
    logits = []
    for t in range(TGT.shape[1]):
        step, state, _ = model.decode_step(TGT[:, t], state, memory, keep)
        logits.append(step)
    torch.testing.assert_close(torch.stack(logits, dim=1), model(SRC, LENGTHS, TGT))


def test_the_readers_are_torchs_bidirectional_layer():
    model = new_model("lstm")
    twin = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
    forward, backward = model.reader, model.backward_reader
    assert backward is not None
    state = {name: p for name, p in forward.state_dict().items()}
    state |= {f"{name}_reverse": p for name, p in backward.state_dict().items()}
    twin.load_state_dict(state)
    packed = nn.utils.rnn.pack_padded_sequence(
        model.src_embedding(SRC), LENGTHS, batch_first=True, enforce_sorted=False
    )
    theirs, _ = nn.utils.rnn.pad_packed_sequence(twin(packed)[0], batch_first=True)
    torch.testing.assert_close(model.encode(SRC, LENGTHS)[0], theirs)


def test_weights_are_returned_where_there_are_any():
    model = new_model(attention=MeanAttention())
    logits, weights = model(SRC, LENGTHS, TGT, return_weights=True)
    assert logits.shape == (2, 4, 13)
    assert weights.shape == (2, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    with pytest.raises(ValueError, match="without attention"):
        new_model()(SRC, LENGTHS, TGT, return_weights=True)


def test_it_learns_to_reverse_three_symbols():
    torch.manual_seed(0)
    begin, end = 6, 7
    source, target = reverse_task(256, 3, 6, generator=torch.Generator().manual_seed(1))
    lengths = torch.full((256,), 3)
    model = EncoderDecoder(6, 8, 32, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tgt_in = torch.cat((torch.full((256, 1), begin), target), dim=1)
    tgt_out = torch.cat((target, torch.full((256, 1), end)), dim=1)
    for _ in range(120):
        logits = model(source, lengths, tgt_in)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tgt_out.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    written = greedy_decode(model, source, lengths, begin_id=begin, end_id=end, max_new_tokens=6)
    right = sum(w == t for w, t in zip(written, target.tolist(), strict=True))
    assert right > 240


def test_decoding_stops_at_the_end_or_the_limit():
    model = new_model()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[4] = 1.0
    options = {"begin_id": 1, "max_new_tokens": 3}
    assert greedy_decode(model, SRC, LENGTHS, end_id=4, **options) == [[], []]
    assert greedy_decode(model, SRC, LENGTHS, end_id=5, **options) == [[4, 4, 4]] * 2
    with pytest.raises(ValueError, match="1 or more"):
        greedy_decode(model, SRC, LENGTHS, begin_id=1, end_id=4, max_new_tokens=0)


@pytest.mark.parametrize("lengths", [[0, 5], [3, 6], [3]])
def test_bad_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be"):
        new_model().encode(SRC, torch.tensor(lengths))
