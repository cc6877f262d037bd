# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # A study in a notebook
#
# What the command lines do, Python does, too: the same defaults, the same run folders, the same
# errors. This notebook makes a catalogue, computes features, trains three models, and asks which
# differences are real. It takes half a minute and needs neither weights nor a GPU nor a connection.
# What it prints was computed when this page was built.

# %%
import mmbench
import mmx

mmx.write_demo("shop", items=200, users=300)

# %% [markdown]
# ## Features
#
# A feature set per call. The demo leaves out some contents and damages one file of each kind; those
# items get a status and no vector.

# %%
pictures = mmx.extract("shop", modality="visual", model="colour-hog")
texts = mmx.extract("shop", modality="textual", model="tfidf-lsa")
pictures[0].counts, texts[0].counts

# %% [markdown]
# ## Data
#
# `load_dataset` reads a split, here the default: a fifth of each user's rows for test, a fifth of
# the rest for validation.

# %%
dataset = mmbench.load_dataset("shop")
dataset.to_pandas().groupby("part").agg(
    rows=("user_id", "size"), users=("user_id", "nunique"), items=("item_id", "nunique")
)

# %% [markdown]
# ## Train
#
# One model that counts neighbours, one that learns from ids, one that learns from ids and content;
# the last two with three seeds, because one seed doesn't say how much training varies. Nothing is
# tuned here: `grid={"lr": [0.005, 0.02]}` would let the validation part choose.

# %%
runs = mmbench.train(
    "item-knn,bpr-mf,vbpr",
    dataset,
    seed=[1, 2, 3],
    scaling="l2",
    settings={"epochs": 60, "lr": 0.02, "reg_weight": 0.1},
)
table = runs.to_pandas().groupby("model")[["Recall@20", "nDCG@20", "APLT@20", "iCov@20"]]
table.agg(["mean", "std"]).round(4)

# %% [markdown]
# ## Which differences are real?
#
# A test over users, a test over seeds, and a correction for the number of comparisons. *Better*
# stands only where both tests agree.

# %%
outcome = mmbench.compare(runs, ["Recall@20"])
print(*outcome.to_pandas()["verdict"], sep="\n")

# %% [markdown]
# ## Does content do it?
#
# The same model with every vector given to another item. What it gains with these is not content.

# %%
shuffled = mmbench.train(
    "vbpr",
    dataset,
    seed=[1, 2, 3],
    scaling="l2",
    settings={"epochs": 60, "lr": 0.02, "reg_weight": 0.1},
    control={"visual": "shuffled", "textual": "shuffled"},
)
real = [run.test["Recall@20"] for run in runs if run.recipe.model == "vbpr"]
control = [run.test["Recall@20"] for run in shuffled]
print("real    ", [round(value, 4) for value in real])
print("shuffled", [round(value, 4) for value in control])

# %% [markdown]
# ## Lists

# %%
mmbench.recommend(runs[-1], k=3, users=["u0000", "u0001"]).to_pandas()

# %% [markdown]
# More: [From Python](../python.md) has every function, and
# [Comparing models](../comparing.md) what the tests mean.
