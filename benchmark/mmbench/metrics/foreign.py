"""Metrics of other frameworks whose names are known here and whose numbers would be others.

A name that means the same is an alias of the metric itself. These are refused with the difference:
a number under the wrong definition, or in the wrong direction, looks like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

_ERRORS = "an error of predicted ratings; what is scored here are ranked lists"
_AREA = "the area under the whole curve; LAUC is the one limited to the list"
_CUT = "divides by min(k, |Rel|); Recall divides by |Rel|"
_EXTENDED = "not computed here"

DIFFERENCES: Mapping[str, str] = {
    "GiniIndex": "RecBole's is 0 where all items are listed equally often, and less is better; "
    "Gini is 1 minus such an index, and more is better",
    "Gini-coefficient": "0 where all items are listed equally often, and less is better; Gini is 1 "
    "minus it, and more is better",
    "ShannonEntropy": "RecBole's is in nats and divided by the number of listed items; SEntropy is "
    "in bits per listed item",
    "TailPercentage": "RecBole's tail is the rarest tenth of the items (tail_ratio); that of APLT "
    "is what lies beyond 80 % of the training interactions",
    "AUC": _AREA,
    "GAUC": _AREA,
    "ROC-AUC": _AREA,
    "MAE": _ERRORS,
    "MSE": _ERRORS,
    "RMSE": _ERRORS,
    "LogLoss": _ERRORS,
    "NCRR": "Cornac's normalised sum of 1 / rank over all hits; MRR takes the first hit alone",
    "DCG": "not normalised; nDCG (graded) and nDCGRendle2020 (binary) are",
    "RBP": "rank-biased precision; nDCGRendle2020 is the closest here",
    "CalibratedRecall": f"RecPack's {_CUT}",
    "CalibratedRecallK": f"RecPack's {_CUT}",
    "NormalizedRecall": _CUT,
    "R-Precision": "is cut at |Rel|, not at k; see Precision and Recall",
    "HitK": "RecPack's is a hit per item; HitRate is one per user",
    "Arhr": "sums 1 / rank over all hits; MRR takes the first hit alone",
    "CoverageK": "RecPack's counts items, as ItemCoverage does; iCov is a percentage",
    "Distributional-coverage": "Microsoft Recommenders' is an entropy over all items; SEntropy is "
    "the closest here",
    "Catalog-coverage-ratio": "a share from 0 to 1; iCov is a percentage",
    "Novelty": "has several definitions; EFD and EPC are those of the hits, ARP that of the list",
    "Surprisal": "RePlay's is self-information by users; EFD is that of the hits",
    "Serendipity": "has several definitions, none of them here; see Unexpectedness",
    "Diversity": "has several definitions; ILD is that of vectors, SRecall that of categories",
    "FallOut": "the share of irrelevant items that are listed, less is better; see Precision",
    "DSC": _EXTENDED,
    "ExtendedF1": _EXTENDED,
    "ExtendedEFD": _EXTENDED,
    "ExtendedEPC": _EXTENDED,
    "ExtendedPopREO": _EXTENDED,
    "ExtendedPopRSP": _EXTENDED,
}
"""Name of a metric elsewhere: how it differs from what is here."""
