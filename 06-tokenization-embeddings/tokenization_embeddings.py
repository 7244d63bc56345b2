"""Topic 06 as a program: what vocabularies buy, beside `tokenizers`, and what word vectors know.

    python 06-tokenization-embeddings/tokenization_embeddings.py            minutes on a CPU
    python 06-tokenization-embeddings/tokenization_embeddings.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from experiment_log import ExperimentLog
from lab import script_parser, seed_everything
from tiny_lexicon import ADJECTIVES, MEN, PLACES, PLURAL_THINGS, SINGULAR_THINGS, WOMEN
from tokenization_experiments import (
    DEFAULT_SCALE_06,
    SMOKE_SCALE_06,
    compare_downstream,
    compare_likelihoods,
    compare_speed,
    compare_windows,
    four_corpora,
    measure_fertility,
    measure_parallel,
    measure_plain,
    measure_transfer,
)
from tokenization_figures import downstream_figure, fertility_figure, vectors_figure

_HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "What vocabularies buy, beside tokenizers, and what word vectors know.",
        default_out=_HERE,
        cpu_only=True,
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE_SCALE_06 if args.smoke else DEFAULT_SCALE_06
    log = ExperimentLog("tokenization_embeddings.py", args)
    corpora = four_corpora(scale)

    log.run("Characters or words?", lambda: measure_plain(corpora, scale))
    log.run("How many bytes does a token hold?", lambda: measure_fertility(corpora, scale))
    log.draw(fertility_figure(log.results["fertility_detail"]), "fertility")
    log.run(
        "What does a vocabulary cost on text it was not made for?",
        lambda: measure_transfer(corpora, scale),
    )
    log.run("Is our Unigram as likely as theirs?", lambda: compare_likelihoods(corpora, scale))
    log.run("How fast is it beside `tokenizers`?", lambda: compare_speed(corpora, scale))
    log.run("From what size on do two processes pay?", lambda: measure_parallel(scale))
    log.run(
        "Which tokens make the best model for the same FLOPs?",
        lambda: compare_downstream(corpora, scale),
    )
    log.draw(downstream_figure(log.results["downstream_detail"]), "downstream")
    kept: list[Any] = []

    def vectors() -> dict[str, Any]:
        found, english = compare_windows(scale)
        kept.append(english)
        return found

    log.run("What do word vectors know?", vectors)
    classes = {
        "men": MEN,
        "women": WOMEN,
        "places": [place for _, place in PLACES],
        "a thing": SINGULAR_THINGS,
        "things": PLURAL_THINGS,
        "properties": ADJECTIVES,
    }
    log.draw(vectors_figure(kept[0], classes), "vectors")
    log.finish(seeds=range(scale.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
