"""Mutants of topic 02: corpora, files as documents, sequence data."""

from __future__ import annotations

from mutant import Mutant

_CORPORA = "02-sequence-modeling/corpora.py"
_CORPORA_TESTS = ("tests/02-sequence-modeling/test_corpora.py",)
_FILES = "02-sequence-modeling/text_files.py"
_FILES_TESTS = ("tests/02-sequence-modeling/test_text_files.py",)
_DATA = "02-sequence-modeling/sequence_data.py"
_DATA_TESTS = ("tests/02-sequence-modeling/test_sequence_data.py",)

MUTANTS = [
    Mutant(
        name="split-by-name",
        module=_CORPORA,
        old="hashlib.blake2b(document.text.encode(),",
        new="hashlib.blake2b(document.name.encode(),",
        tests=_CORPORA_TESTS,
        symptom="copies of a training text stand in the validation text: the loss is too good",
        finder="equal texts under different names fall on one side",
    ),
    Mutant(
        name="split-ignores-the-seed",
        module=_CORPORA,
        old="key=str(seed).encode()",
        new='key=b"split"',
        tests=_CORPORA_TESTS,
        symptom="three seeds measure three times on the same held-out text",
        finder="two seeds hold out different documents",
    ),
    Mutant(
        name="split-leaves-a-side-empty",
        module=_CORPORA,
        old="border = math.nextafter(lowest, 2.0)",
        new="border = fraction",
        tests=_CORPORA_TESTS,
        symptom="a small corpus ends in an error after training, when validation has no text",
        finder="three documents, small fractions, several seeds",
    ),
    Mutant(
        name="max-bytes-counts-characters",
        module=_CORPORA,
        old="size = len(document.text.encode())",
        new="size = len(document.text)",
        tests=_CORPORA_TESTS,
        symptom="a limit of 1 GB lets 3 GB of Chinese through",
        finder="a limit met by text that is not ASCII",
    ),
    Mutant(
        name="skipped-adds-up-over-epochs",
        module=_CORPORA,
        old="        self.skipped = skipped\n",
        new="        self.skipped = skipped = Counter(self.skipped)\n",
        tests=_FILES_TESTS,
        symptom="the report says that twice as many files were skipped as there are",
        finder="the counts after a second iteration",
    ),
    Mutant(
        name="files-in-the-order-of-the-disk",
        module=_FILES,
        old="return sorted(found)",
        new="return found",
        tests=_FILES_TESTS,
        symptom="the same folder gives other shards on another machine",
        finder="files and a folder whose names interleave",
    ),
    Mutant(
        name="undecodable-bytes-replaced",
        module=_FILES,
        old='data.decode("utf-8")',
        new='data.decode("utf-8", errors="replace")',
        tests=_FILES_TESTS,
        symptom="the model learns to write U+FFFD",
        finder="a Latin-1 file among UTF-8 files is counted",
    ),
    Mutant(
        name="piece-cut-inside-a-character",
        module=_FILES,
        old="data[cut] & 0xC0 == 0x80",
        new="data[cut] & 0xC0 == 0xC0",
        tests=_FILES_TESTS,
        symptom="of a long file without line ends, many pieces are reported as undecodable",
        finder="pieces of random text put together are the file",
    ),
    Mutant(
        name="mark-dropped-from-every-piece",
        module=_FILES,
        old="            if number == 0:\n                piece =",
        new="            if number >= 0:\n                piece =",
        tests=_FILES_TESTS,
        symptom="a character is lost where two files with marks were joined",
        finder="pieces of a text that holds a mark in its middle",
    ),
    Mutant(
        name="whole-file-in-memory",
        module=_FILES,
        old="file.read(piece_bytes - len(carried))",
        new="file.read()",
        tests=_FILES_TESTS,
        symptom="a 40 GB text file ends the process",
        finder="the memory of a child that reads a large file",
    ),
    Mutant(
        name="induction-asks-for-the-key",
        module=_DATA,
        old="targets[:, 2 * num_pairs :: 2] = again[:, :, 1]",
        new="targets[:, 2 * num_pairs + 1 :: 2] = again[:, :, 1]",
        tests=_DATA_TESTS,
        symptom="the task is solved at once by copying the input: the value is asked at the value",
        finder="the target of each key, looked up in a plain dictionary",
    ),
    Mutant(
        name="addition-without-carry",
        module=_DATA,
        old="numbers[:, 0, place] + numbers[:, 1, place] + carry",
        new="numbers[:, 0, place] + numbers[:, 1, place]",
        tests=_DATA_TESTS,
        symptom="the model is perfect on the test set and wrong on paper",
        finder="the sum of the numbers as Python adds them",
    ),
    Mutant(
        name="bucket-over-budget",
        module=_DATA,
        old="(len(batches[-1]) + 1) * lengths[i]",
        new="len(batches[-1]) * lengths[i]",
        tests=_DATA_TESTS,
        symptom="out of memory on the one batch that is longer than planned",
        finder="every batch's rectangle against the budget",
    ),
    Mutant(
        name="pair-task-shows-the-answer",
        module=_DATA,
        old="inputs = torch.cat((source, separator, target[:, :-1]), dim=1)",
        new="inputs = torch.cat((source, target), dim=1)",
        tests=_DATA_TESTS,
        symptom="perfect accuracy after ten steps, and none when generating",
        finder="a pair task written out by hand",
    ),
]
