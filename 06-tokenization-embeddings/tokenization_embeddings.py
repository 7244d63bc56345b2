"""Topic 06 as a program: what vocabularies buy, beside `tokenizers`, and what word vectors know.

    python 06-tokenization-embeddings/tokenization_embeddings.py            minutes on a CPU
    python 06-tokenization-embeddings/tokenization_embeddings.py --smoke    the same in miniature
    python 06-tokenization-embeddings/tokenization_embeddings.py --only seeds --only prepositions

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiment_log import ExperimentLog
from lab import script_parser, seed_everything
from lab_results import read_results, read_run
from library_comparison import (
    compare_likelihoods,
    compare_seeds,
    compare_speed,
    measure_parallel,
)
from tiny_lexicon import ADJECTIVES, MEN, PLACES, PLURAL_THINGS, SINGULAR_THINGS, WOMEN
from tokenization_experiments import (
    DEFAULT_SCALE_06,
    SMOKE_SCALE_06,
    compare_downstream,
    four_corpora,
    measure_fertility,
    measure_plain,
    measure_transfer,
)
from tokenization_figures import downstream_figure, fertility_figure, vectors_figure
from vector_experiments import ask_prepositions, compare_windows

_HERE = Path(__file__).resolve().parent
_CLASSES = {
    "men": MEN,
    "women": WOMEN,
    "places": [place for _, place in PLACES],
    "a thing": SINGULAR_THINGS,
    "things": PLURAL_THINGS,
    "properties": ADJECTIVES,
}


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "What vocabularies buy, beside tokenizers, and what word vectors know.",
        default_out=_HERE,
        cpu_only=True,
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="run one experiment anew and keep what results.json says of the others (repeatable)",
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE_SCALE_06 if args.smoke else DEFAULT_SCALE_06
    log = ExperimentLog("tokenization_embeddings.py", args)
    corpora = four_corpora(scale)
    kept: list[Any] = []

    def vectors() -> dict[str, Any]:
        found, english = compare_windows(scale)
        kept.append(english)
        return found

    experiments: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "plain": ("Characters or words?", lambda: measure_plain(corpora, scale)),
        "fertility": (
            "How many bytes does a token hold?",
            lambda: measure_fertility(corpora, scale),
        ),
        "transfer": (
            "What does a vocabulary cost on text it was not made for?",
            lambda: measure_transfer(corpora, scale),
        ),
        "likelihoods": (
            "Is our Unigram as likely as theirs?",
            lambda: compare_likelihoods(corpora, scale),
        ),
        "speed": (
            "How fast is it beside `tokenizers`?",
            lambda: compare_speed(corpora, scale),
        ),
        "parallel": ("From what size on do two processes pay?", lambda: measure_parallel(scale)),
        "downstream": (
            "Which tokens make the best model for the same FLOPs?",
            lambda: compare_downstream(corpora, scale),
        ),
        "vectors": ("What do word vectors know?", vectors),
        "seeds": ("Where are Unigram's seeds counted?", lambda: compare_seeds(corpora, scale)),
        "prepositions": ("And what do they not know?", lambda: ask_prepositions(scale)),
    }
    chosen = list(experiments)
    if args.only:
        if unknown := set(args.only) - experiments.keys():
            parser.error(f"no experiments: {sorted(unknown)}; there are {list(experiments)}")
        chosen = [name for name in experiments if name in args.only]
        earlier = Path(args.out) / "results.json"
        log.results.update(read_results(earlier))
        # Where the rest comes from; an earlier --only has said so already.
        log.results.setdefault("kept_from", read_run(earlier))
        log.results["run_anew"] = sorted({*log.results.get("run_anew", []), *chosen})
    for name in chosen:
        question, experiment = experiments[name]
        log.run(question, experiment)
    if "fertility" in chosen:
        log.draw(fertility_figure(log.results["fertility_detail"]), "fertility")
    if "downstream" in chosen:
        log.draw(downstream_figure(log.results["downstream_detail"]), "downstream")
    if kept:
        log.draw(vectors_figure(kept[0], _CLASSES), "vectors")
    log.finish(seeds=range(scale.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
