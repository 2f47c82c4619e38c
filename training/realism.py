"""Can our prompts be told from real traffic? `python -m training.realism data/ --traffic FILES`.

As many rows of each side, words and pairs of words (TF-IDF), logistic regression, folds by group: the AUROC of what it
says about rows that it has not seen (.5 is indistinguishable), by source, and the features that tell most.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from classifier import metrics
from training.corpus import Row, read_corpus

FEATURES = 30
MAX_CHARS = 20_000
FOLDS = 5


def realism(ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Any]:
    """AUROC overall and for each of our sources against their rows, and the most telling features of both sides."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline

    rng = np.random.default_rng(1)
    n = min(len(ours), len(theirs))
    rows = [side[i] for side in (ours, theirs) for i in rng.permutation(len(side))[:n]]
    texts = [" \n ".join(m.content for m in r.request.messages)[:MAX_CHARS] for r in rows]
    is_ours = np.arange(2 * n) < n
    groups = [f"{own} {r.group}" for own, r in zip(is_ours, rows, strict=True)]

    def fitted(index: Sequence[int]) -> Any:
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True), LogisticRegression(C=4.0, max_iter=300)
        )
        return model.fit([texts[i] for i in index], is_ours[index])

    scores = np.zeros(2 * n)
    for train, held_out in GroupKFold(FOLDS).split(texts, is_ours, groups):
        scores[held_out] = fitted(train).decision_function([texts[i] for i in held_out])
    sources = np.array([r.source for r in rows])
    model = fitted(range(2 * n))
    names, weights = model[0].get_feature_names_out(), model[1].coef_[0]
    order = np.argsort(weights)
    return {
        "rows_of_each": n,
        "auroc": metrics.auroc(scores, is_ours),
        "auroc_by_source": {
            source: metrics.auroc(scores[keep], is_ours[keep])
            for source in sorted(set(sources[:n]))
            for keep in [(sources == source) | ~is_ours]
        },
        "tells_ours": [str(names[i]) for i in order[::-1][:FEATURES]],
        "tells_theirs": [str(names[i]) for i in order[:FEATURES]],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", nargs="+", help="corpus files or folders of ours")
    parser.add_argument("--traffic", nargs="+", required=True, help="corpus files of real traffic")
    given = parser.parse_args()
    json.dump(realism(read_corpus(given.ours), read_corpus(given.traffic)), sys.stdout, ensure_ascii=False, indent=1)
    sys.stdout.write("\n")
