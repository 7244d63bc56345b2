"""Ways to tokenize wrongly that look right."""

from __future__ import annotations

from mutant import Mutant

_TESTS = "tests/06-tokenization-embeddings"
_PRETOKENS = "06-tokenization-embeddings/pretokens.py"
_PRETOKENS_TESTS = (f"{_TESTS}/test_pretokens.py",)
_BPE = "06-tokenization-embeddings/bpe.py"
_BPE_TESTS = (f"{_TESTS}/test_bpe.py",)
_TOKENIZER = "06-tokenization-embeddings/tokenizer.py"
_TOKENIZER_TESTS = (f"{_TESTS}/test_tokenizer.py",)
_FILES = "06-tokenization-embeddings/tokenizer_files.py"
_FILES_TESTS = (f"{_TESTS}/test_tokenizer_files.py",)

MUTANTS = [
    Mutant(
        name="gpt2-white-space-without-lookahead",
        module=_PRETOKENS,
        old=r"""'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# How GPT-3.5""",
        new=r"""'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
# How GPT-3.5""",
        tests=_PRETOKENS_TESTS,
        symptom="Indented code costs more tokens: the first word of a line loses its space.",
        finder="the pattern by hand, and the split beside tokenizers",
    ),
    Mutant(
        name="cut-before-any-white-space",
        module=_PRETOKENS,
        old=r"[^\s\p{L}\p{N}](?=[^\S\r\n])",
        new=r"[^\s\p{L}\p{N}](?=\s)",
        tests=_PRETOKENS_TESTS,
        symptom="A streamed file has a few more tokens than the same text encoded at once.",
        finder="any chunking gives the tokens of the whole, for cl100k's pattern",
    ),
    Mutant(
        name="cut-after-any-letter",
        module=_PRETOKENS,
        old=r"\p{L}(?=\P{L})",
        new=r"\p{L}(?=.)",
        tests=_PRETOKENS_TESTS,
        symptom="Now and then a word in the middle of a streamed file is cut in two.",
        finder="any chunking gives the tokens of the whole",
    ),
    Mutant(
        name="pairs-of-a-run-overlap",
        module=_BPE,
        old="            starts = _every_other(starts, width[a])\n",
        new="            starts = np.sort(starts)\n",
        tests=_BPE_TESTS,
        symptom="Merges go astray after the first run of equal letters; indentation above all.",
        finder="runs of one letter beside tokenizers",
    ),
    Mutant(
        name="stale-counts-are-trusted",
        module=_BPE,
        old="        if count != -negative_count:\n",
        new="        if count == 0:\n",
        tests=_BPE_TESTS,
        symptom="Merges in a slightly wrong order: pairs whose parts were merged away come early.",
        finder="merges beside tokenizers and beside recounting",
    ),
    Mutant(
        name="neighbours-counted-from-both-sides",
        module=_BPE,
        old="        whole = (right >= 0) & (right != new)",
        new="        whole = right >= 0",
        tests=_BPE_TESTS,
        symptom="Doubled words and runs are merged too early.",
        finder="merges beside tokenizers where all is ties",
    ),
    Mutant(
        name="ties-by-the-second-part",
        module=_BPE,
        old="key=lambda pair: (-counts[pair], pair)",
        new="key=lambda pair: (-counts[pair], pair[::-1])",
        tests=_BPE_TESTS,
        symptom="Vocabularies trained here and elsewhere differ after some hundred ids.",
        finder="fast training, recounting and tokenizers where all is ties",
    ),
    Mutant(
        name="longest-piece-instead-of-lowest-rank",
        module=_BPE,
        old="            best = min(ranks)\n",
        new="            best = max(rank for rank in [-1, *ranks] if rank < _UNMERGED)\n",
        tests=_BPE_TESTS,
        symptom="Text decodes well, but costs more tokens, and not those the model was trained on.",
        finder="ids beside tokenizers",
    ),
    Mutant(
        name="heap-forgets-the-pair-before",
        module=_BPE,
        old="            if before >= 0 and (rank := rank_of",
        new="            if before > 0 and (rank := rank_of",
        tests=_BPE_TESTS,
        symptom="Long words without a space begin with a stray byte.",
        finder="scan and heap merge alike",
    ),
    Mutant(
        name="offsets-end-at-the-last-character",
        module=_BPE,
        old="starts, ends = character[starts], character[ends - 1] + 1",
        new="starts, ends = character[starts], character[ends - 1]",
        tests=_BPE_TESTS,
        symptom="Highlighted answers lose their last letter in every text that is not English.",
        finder="offsets by hand, and beside tokenizers",
    ),
    Mutant(
        name="special-tokens-always-allowed",
        module=_TOKENIZER,
        old="names = sorted(allowed | self.parts.plain_tokens.keys(), key=len, reverse=True)",
        new="names = sorted(self._added, key=len, reverse=True)",
        tests=_TOKENIZER_TESTS,
        symptom="A user who types <|endoftext|> ends the document.",
        finder="special tokens are text unless allowed",
    ),
    Mutant(
        name="shortest-special-token-first",
        module=_TOKENIZER,
        old="names = sorted(allowed | self.parts.plain_tokens.keys(), key=len, reverse=True)",
        new="names = sorted(allowed | self.parts.plain_tokens.keys(), key=len)",
        tests=_TOKENIZER_TESTS,
        symptom="Of two special tokens that begin alike the longer one is never found.",
        finder="ids beside tokenizers, special tokens too",
    ),
    Mutant(
        name="stream-cuts-special-tokens",
        module=_TOKENIZER,
        old="part_chars=part_chars, uncut=finder, reach=reach",
        new="part_chars=part_chars, uncut=None, reach=reach",
        tests=_TOKENIZER_TESTS,
        symptom="About one document in a thousand is not ended: its <|endoftext|> became text.",
        finder="any chunking gives the ids of the whole, special tokens too",
    ),
    Mutant(
        name="special-tokens-on-top-of-the-bytes",
        module=_TOKENIZER,
        old="            bpe = bpe.shifted(len(names))\n",
        new="            bpe = bpe.shifted(len(names) - 1)\n",
        tests=_TOKENIZER_TESTS,
        symptom="The last special token and the exclamation mark have one id.",
        finder="special tokens come first, as in tokenizers",
    ),
    Mutant(
        name="saved-with-a-space-in-front",
        module=_FILES,
        old='unset = {"add_prefix_space": False,',
        new='unset = {"add_prefix_space": True,',
        tests=(f"{_TESTS}/test_tokenizer.py",),
        symptom="Elsewhere the saved tokenizer gives another first token to every text.",
        finder="the saved file in tokenizers and in transformers",
    ),
    Mutant(
        name="normalizer-ignored",
        module=_FILES,
        old='    if _steps(content.get("normalizer"), "normalizers", "normalizer"):\n',
        new='    if not isinstance(content.get("normalizer", {}), dict | None):\n',
        tests=_FILES_TESTS,
        symptom="A tokenizer that lower-cases or composes gives other ids here than elsewhere.",
        finder="other tokenizers are refused",
    ),
]
