# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Looking at feature sets
#
# Before you train on vectors, look at them: who has one, how long they are, whether near items are
# alike. This notebook opens a feature set with `mmstore`, which needs numpy and h5py alone.

# %%
import numpy as np
import pandas as pd

import mmx
from mmstore import FeatureSet

mmx.write_demo("shop", items=200, users=300)
made = mmx.extract("shop", modality="textual", model="tfidf-lsa")
features = FeatureSet(made[0].path)
features.counts()

# %% [markdown]
# ## By id
#
# `matrix` takes ids in any order and returns the vectors in that order, and who has one. A row
# without a vector is NaN, so that it can't be taken for one.

# %%
ids = list(features.ids)
vectors, present = features.matrix(ids)
absent = [one for one, there in zip(ids, present) if not there]
print(vectors.shape, "absent:", ", ".join(absent))

# %% [markdown]
# ## Where it comes from
#
# The provenance travels with the file: encoder, weights, preprocessing, library versions, and the
# digest of what was read.

# %%
{key: features.provenance[key] for key in ("extractor", "dim", "layer", "libraries", "input")}

# %% [markdown]
# ## Are near items alike?
#
# The quickest test of alignment: take an item, and read the titles of its nearest neighbours. If
# they have nothing in common, look at how ids and rows were joined before anything else.

# %%
items = pd.read_csv("shop/items.tsv", sep="\t", dtype=str, encoding_errors="replace")
titles = items.set_index("item_id")["title"]
there = np.array(ids)[present]
unit = vectors[present] / np.linalg.norm(vectors[present], axis=1, keepdims=True)
nearest = np.argsort(-(unit @ unit[0]))[:5]
pd.DataFrame(
    {"title": titles[there[nearest]].tolist(), "cosine": (unit @ unit[0])[nearest].round(3)}
)

# %% [markdown]
# More: [The feature store](../store.md), and
# [the format](../../shared/mmstore/FORMAT.md) for other languages.
