"""The formal schema of multimodal recommendation as one model: every choice in it is a setting.

Schema: Malitesta, Cornacchia, Pomo, Merra, Di Noia, Di Sciascio: Formalizing Multimedia
Recommendation through Multimodal Deep Learning, https://arxiv.org/abs/2309.05273. What follows is
our reading of it; x is a user u or an item i, m a modality, [a; b] one vector after the other.

Stored vectors (nothing is trained here; a user is the mean of the items of its training pairs):
    C_i^m = the feature set's vector                        C_u^m = mean over i in N(u) of C_i^m

Representation (`representation`), of width d = `embedding_dim`:
    joint        c_x   = mu([C_x^0; C_x^1; …])              one vector of all modalities
    coordinate   c_x^m = mu_m(C_x^m)                        one of each
    mu(y) = (W y + b) / max(|W y + b|, 1e-12) with `normalise`, else W y; the same for u and i

Parts, all of width d: who has content (`side`), and whose ids are trained (`ids`)
    P_x = [g_x if x has an id] + [c_x or c_x^0, c_x^1, … if x has content]         g_x is trained
    Where parts meet one by one (all but early fusion without concat), a side without content has a
    trained vector t_x^p in place of each content part p: VBPR's second user table, for example.

Backbone rho (`backbone`), vectors to vectors of width d for each part, K d for concat:
    dot          rho(y) = y
    mlp          rho(y) = A_L relu(… relu(A_1 y + a_1) …)   L = `n_layers`; users' and items' apart
    lightgcn     rho(y) = mean of y, S y, …, S^L y over users and items; S = D^-1/2 A D^-1/2 of the
                 training pairs. An item that training has not seen has no neighbours: y / (L + 1)

Fusion (`fusion`) by gamma, one of the operators (`operator`) of `mmbench.models.operators`:
    early        s(u, i) = <rho(gamma(P_u)), rho(gamma(P_i))>
    intermediate s(u, i) = <gamma(rho_0(P_u^0), …), gamma(rho_0(P_i^0), …)>
    late         s(u, i) = gamma_l over parts p of s_p = <rho_p(P_u^p), rho_p(P_i^p)>:
                 sum, mean, max of s_p; product: sum of log sigmoid(s_p); weighted, attention: the
                 sum of s_p with the shares that the item's parts get (`query=user`: the user's)
    `query=user`, early and intermediate: attention over the item's parts z^p asked by the user z_u,
                 s(u, i) = sum_p softmax_p(<Q z_u, z^p> / sqrt(d)) <z_u, z^p>

Loss:
    L = mean over the batch of -log sigmoid(s(u, i) - s(u, j))
        + reg_weight / (2 B) * sum over the batch of the squared parts of u, i and j
        + alignment_weight * mean over pairs of modalities (m, n), m != n, and over the batch, of
          -log (e(i, i) / sum over items k of the batch of e(i, k)),
          e(i, k) = exp(<c_i^m, c_k^n> / (|c_i^m| |c_k^n| temperature))             coordinate only
          the sum runs over i's own row and the rows of other items, at most 1,024 of them

Items unseen in training are scored where they have content; an id that they lack is zero (product
and max would be decided by it, so there they are never listed). With `ids=none` no parameter
belongs to a user or an item, and users are scored by the history that is known of them.

What makes no sense together is refused; `mmbench models schema` lists what does. VBPR (`corrected`)
is representation=joint with all else as it is; MF is the same with features that are zero.

Trainable: user_id (n_users, d), item_id (n_items, d), user_part.<p> and item_part.<p> in place of
absent content, projection.<p>.weight (d, k) and .bias (d,), fusion.<side>.*, tower.<side>.<p>.*,
question Q (d, d); each where the settings call for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init, Triples
from mmbench.errors import UsageError
from mmbench.models.base import Content, Known, ModelConfig, Recommender, Score, bpr_loss
from mmbench.models.cells import (
    FACTORS,
    Backbone,
    Choice,
    FusionStage,
    Ids,
    Query,
    Representation,
    Side,
)  # fmt: skip
from mmbench.models.operators import Fusion, Operator
from mmbench.ops.dense import linear, normalise_rows
from mmbench.ops.graph import bipartite, propagate, row_normalised, symmetric_normalised
from mmbench.ops.rows import Grouped, distinct, pair_scores, take
from mmbench.ops.sparse import SparseMatrix, SparsePattern

Who = Literal["user", "item"]
CONTRASTED = 1024  # rows of a batch that the alignment compares with each other


class SchemaConfig(ModelConfig):
    """Settings of the schema."""

    representation: Representation = Field("coordinate", description="joint or coordinate")
    fusion: FusionStage = Field("early", description="early, intermediate or late")
    operator: Operator = Field(
        "concat",
        description="concat, sum, mean, product, max, weighted, attention or gate",
    )
    query: Query = Field("shared", description="attention: shared, or asked by the user")
    side: Side = Field("item", description="who has content: item, user or both")
    ids: Ids = Field("both", description="whose ids are trained: both, users or none")
    backbone: Backbone = Field("dot", description="dot, mlp or lightgcn")
    n_layers: int = Field(2, ge=1, description="L of mlp and lightgcn")
    normalise: bool = Field(True, description="content of unit length, with a bias before")
    reg_weight: float = Field(1e-2, ge=0, description="weight of the squared parts of a batch")
    alignment_weight: float = Field(
        0.0, ge=0, description="coordinate: weight of the contrast between modalities"
    )
    temperature: float = Field(0.2, gt=0, description="of that contrast")

    @model_validator(mode="after")
    def _makes_sense(self) -> SchemaConfig:
        why = self.choice.refusal()
        if why is None and self.alignment_weight and self.representation == "joint":
            why = "a joint vector has nothing to align: alignment_weight needs coordinate"
        if why is not None:
            near = self.choice.neighbours()
            ways = "; or ".join(f"{name}={'|'.join(values)}" for name, values in near.items())
            ways = f"; with the rest as it is: {ways}" if ways else ""
            raise UsageError(
                f"schema: {why} (got {self.choice}){ways}; `mmbench models schema` lists all "
                "combinations"
            )
        return self

    @property
    def choice(self) -> Choice:
        """The cell of the schema."""
        return Choice(**{name: getattr(self, name) for name in FACTORS})


_NO_TOKENS = (
    "schema: the policy learned needs side=item: a user's content is a mean of stored vectors, "
    "which a trained stand-in is not"
)


class Schema(Recommender):
    """The formal schema: representation, fusion, operator, side, ids and backbone are settings."""

    Config = SchemaConfig
    learns_absent = True

    def __init__(self, train: TrainSet, content: Content, config: SchemaConfig, init: Init) -> None:
        super().__init__()
        self.config, self.choice, self.modalities = config, config.choice, tuple(content)
        self.sizes = {"user": train.n_users, "item": train.n_items}
        self.scores_unseen = self.choice.scores_unseen
        # A graph's users are those of training: another one has no edges there.
        self.by_history = config.ids == "none" and config.backbone != "lightgcn"
        joint = config.representation == "joint"
        self.stand_ins = content.stand_ins()
        self.widths = {m: x.shape[1] for m, x in content.vectors.items()}
        if len(self.stand_ins) and not self.learns_absent_with(config):
            raise UsageError(_NO_TOKENS)
        if config.alignment_weight and len(content) < 2:
            raise UsageError(
                f"schema: alignment_weight: there is one modality ({', '.join(content)}) and "
                "nothing to align it with; name another with --features"
            )
        stored = {"joint": content.side_by_side()} if joint else content.vectors
        self.projection = nn.ModuleDict()
        for part, x in stored.items():
            self.projection[part] = init.linear(
                f"projection.{part}", x.shape[1], config.embedding_dim
            )
            if not config.normalise:
                self.projection[part].register_parameter("bias", None)
        self._store("item", list(stored.values()))
        dtype = self.projection[next(iter(stored))].weight.dtype
        if self.choice.has_content("user"):
            history = _mean_of_history(train, cast(torch.dtype, dtype))
            self._store("user", [history @ x for x in stored.values()])
        self._add_ids("user", tuple(stored), init)
        self._add_ids("item", tuple(stored), init)
        self._add_backbone(train, cast(torch.dtype, dtype), init)

    def _store(self, who: Who, vectors: Sequence[Tensor]) -> None:
        for place, x in enumerate(vectors):
            self.register_buffer(f"{who}_content_{place}", x, persistent=False)

    def _add_ids(self, who: Who, parts: Sequence[str], init: Init) -> None:
        """`<who>_id`, and `<who>_part.<p>` in place of content that the side lacks."""
        n, d, choice = self.sizes[who], self.config.embedding_dim, self.choice
        instead = choice.by_part and not choice.has_content(who)
        # With ids=users a part's own table is the id: nothing of an item would meet another one.
        own = choice.has_ids(who) and not (instead and choice.ids == "users")
        table = init.xavier_uniform(f"{who}_id", n, d) if own else None
        self.register_parameter(f"{who}_id", table)
        tables = {p: init.xavier_uniform(f"{who}_part.{p}", n, d) for p in parts if instead}
        self.add_module(f"{who}_part", nn.ParameterDict(tables))

    def _n_parts(self, who: Who) -> int:
        """How many parts a user or an item has."""
        parts = len(self.projection) if self.choice.by_part or self.choice.has_content(who) else 0
        return parts + (getattr(self, f"{who}_id") is not None)

    def _add_backbone(self, train: TrainSet, dtype: torch.dtype, init: Init) -> None:
        """Operators, towers and the graph."""
        choice, d = self.choice, self.config.embedding_dim
        n_parts = {who: self._n_parts(who) for who in ("user", "item")}
        # Whose parts get shares; both sides', unless scores are fused.
        fused = [who for who in ("user", "item") if choice.fusion != "late"]
        if choice.fusion == "late":
            fused = ["user" if choice.query == "user" else "item"]
        self.asked = choice.query == "user" and choice.fusion != "late" and n_parts["item"] > 1
        self.fusion = nn.ModuleDict()
        for who in fused:
            if not (self.asked and who == "item"):
                self.fusion[who] = Fusion(
                    choice.operator, n_parts[cast(Who, who)], d, f"fusion.{who}", init
                )
        if self.asked:
            self.question = init.xavier_uniform("question", d, d)
        self.tower = nn.ModuleDict()
        if choice.backbone == "mlp":
            for who in ("user", "item"):
                # After early fusion there is one vector, as wide as all parts for concat.
                wide = d * n_parts[who] if choice.fusion == "early" and choice.by_part else d
                count = 1 if choice.fusion == "early" else n_parts[who]
                self.tower[who] = nn.ModuleList(
                    self._tower(f"tower.{who}.{p}", wide, init) for p in range(count)
                )
        self.graph: SparseMatrix | None = None
        if choice.backbone == "lightgcn":
            self.graph = symmetric_normalised(bipartite(train), dtype=dtype)

    def _tower(self, name: str, width: int, init: Init) -> nn.ModuleList:
        layers = [init.linear(f"{name}.{k}", width, width) for k in range(self.config.n_layers)]
        # The last bias of an item's tower would cancel in s(u, i) - s(u, j).
        layers[-1].register_parameter("bias", None)
        return nn.ModuleList(layers)

    @classmethod
    def learns_absent_with(cls, settings: ModelConfig) -> bool:
        """Where users have no content: theirs is a mean of stored vectors."""
        return not cast(SchemaConfig, settings).choice.has_content("user")

    @classmethod
    def represents_unseen(cls, settings: ModelConfig) -> bool:
        """Where an item has content, and its id decides nothing alone."""
        return cast(SchemaConfig, settings).choice.scores_unseen

    # ------------------------------------------------------------------------------ representation

    def _mu(self, place: int, products: Tensor) -> Tensor:
        """The representation of stored vectors y, from W y, (n, d)."""
        bias = cast(nn.Linear, list(self.projection.values())[place]).bias
        return products if bias is None else normalise_rows(products + bias)

    def _content(self, who: Who, rows: Tensor | None) -> list[Tensor]:
        """c_x, or each c_x^m, of some rows or of all, (n, d) each."""
        found = []
        for place, projection in enumerate(self.projection.values()):
            stored = self.get_buffer(f"{who}_content_{place}")
            weight = cast(nn.Linear, projection).weight
            y = stored if rows is None else stored[rows]
            if who == "user":  # whose content is made of stored vectors: there are no stand-ins
                found.append(self._mu(place, linear(y, weight)))
            else:
                found.append(self._mu(place, self._products(place, y, weight, rows)))
        return found

    def _products(self, place: int, y: Tensor, weight: Tensor, rows: Tensor | None) -> Tensor:
        """W y of stored vectors of items, with stand-ins where content is absent, (n, d)."""
        if self.config.representation == "joint":
            return linear(self.stand_ins.side_by_side(y, self.widths, rows), weight)
        return self.stand_ins.put_in(
            self.modalities[place], linear(y, weight), lambda token: linear(token, weight), rows
        )

    def _parts(self, who: Who, rows: Tensor | None = None) -> list[Tensor]:
        """P_x of some rows (distinct) or of all, (n, d) each."""
        own, instead = getattr(self, f"{who}_id"), getattr(self, f"{who}_part").values()
        tables = [*([] if own is None else [own]), *instead]
        ids = [table if rows is None else take(table, rows) for table in tables]
        return ids + (self._content(who, rows) if self.choice.has_content(who) else [])

    # -------------------------------------------------------------------- fusion and the backbone

    def _before(self, who: Who, parts: list[Tensor]) -> list[Tensor]:
        """Early fusion, if that is the choice: what goes into the backbone."""
        if self.choice.fusion != "early" or who not in self.fusion:
            return parts
        return [self.fusion[who](parts)]

    def _after(self, who: Who, parts: list[Tensor]) -> list[Tensor]:
        """Fusion of what the backbone gives; late: the item's parts with their shares."""
        if self.choice.fusion == "early" or who not in self.fusion:
            return parts
        fusion = cast(Fusion, self.fusion[who])
        return [fusion(parts)] if self.choice.fusion == "intermediate" else fusion.weigh(parts)

    def _alone(self, who: Who, parts: list[Tensor]) -> list[Tensor]:
        """The backbone of users or items that no edge leads to."""
        if self.choice.backbone == "mlp":
            towers = cast("nn.ModuleList", self.tower[who])
            return [_mlp(cast(nn.ModuleList, t), x) for t, x in zip(towers, parts, strict=True)]
        if self.choice.backbone == "lightgcn":
            return [x / (self.config.n_layers + 1) for x in parts]
        return parts

    def _represented(
        self, users: list[Tensor], items: list[Tensor], rows: tuple[Tensor, Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What is compared, from the parts; with a graph, from all parts for the given rows."""
        users, items = self._before("user", users), self._before("item", items)
        if self.graph is None:
            users, items = self._alone("user", users), self._alone("item", items)
        else:
            sizes, nodes = list(self.sizes.values()), None
            if rows is not None:
                sizes, nodes = [len(one) for one in rows], torch.cat([rows[0], rows[1] + sizes[0]])
            both = [
                propagate(self.graph, torch.cat(pair), self.config.n_layers, rows=nodes)
                for pair in zip(users, items, strict=True)
            ]
            split = [torch.split(z, sizes) for z in both]
            users, items = [u for u, _ in split], [i for _, i in split]
        return self._after("user", users), self._after("item", items)

    # ---------------------------------------------------------------------------- loss and scores

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, `l2`, and `alignment` if it has a weight."""
        size, pairs = len(batch.users), torch.cat([batch.pos, batch.neg])
        (users, user_of), (items, item_of) = distinct(batch.users), distinct(pairs)
        # A graph needs the parts of all of its nodes; anything else the batch's distinct rows.
        all_nodes = self.graph is not None
        of_users = self._parts("user", None if all_nodes else users)
        of_items = self._parts("item", None if all_nodes else items)
        z_users, z_items = self._represented(
            of_users, of_items, (users, items) if all_nodes else None
        )
        terms = {"bpr": bpr_loss(*self._pairs(z_users, user_of, z_items, item_of))}
        # The rows before fusion and backbone, each as often as the batch has it.
        if all_nodes:
            of_users = [take(x, users) for x in of_users]
            of_items = [take(x, items) for x in of_items]
        norms = _counted_norms(of_users, user_of) + _counted_norms(of_items, item_of)
        terms["l2"] = norms * (self.config.reg_weight / (2 * size))
        if self.config.alignment_weight:
            has = self.choice.has_content("item")
            content = of_items[-len(self.modalities) :] if has else self._content("item", items)
            # The positives come first among the pairs.
            positives = [take(x, item_of)[:size] for x in content]
            terms["alignment"] = self._alignment(positives, batch.pos)
        return terms

    def _pairs(
        self, users: list[Tensor], user_of: Grouped, items: list[Tensor], item_of: Grouped
    ) -> tuple[Tensor, Tensor]:
        """s(u, i) and s(u, j) of the batch, (B,) each."""
        of_batch = [take(z, user_of) for z in users]
        if self.asked:
            (user,) = of_batch
            each = [pair_scores(user, z, item_of) for z in items]
            asking = user @ self.question.T / math.sqrt(user.shape[1])
            logits = [pair_scores(asking, z, item_of) for z in items]
            pos, neg = (_asked([s[k] for s in each], [a[k] for a in logits]) for k in (0, 1))
            return pos, neg
        each = [pair_scores(u, i, item_of) for u, i in zip(of_batch, items, strict=True)]
        return self._late([pos for pos, _ in each]), self._late([neg for _, neg in each])

    def _late(self, scores: Sequence[Tensor]) -> Tensor:
        """gamma_l of the scores of each part; one score stays as it is."""
        if len(scores) == 1:
            return scores[0]
        if self.choice.operator == "product":
            return reduce(torch.add, [functional.logsigmoid(s) for s in scores])
        if self.choice.operator == "max":
            return reduce(torch.maximum, scores)
        total = reduce(torch.add, scores)
        return total / len(scores) if self.choice.operator == "mean" else total

    def _alignment(self, content: Sequence[Tensor], items: Tensor) -> Tensor:
        """The contrast between each two modalities of the positives, content (B, d) each."""
        unit = [normalise_rows(x) for x in content]
        losses = []
        for start in range(0, len(items), CONTRASTED):
            part = slice(start, start + CONTRASTED)
            rows = items[part]
            own = torch.arange(len(rows), device=rows.device)
            # Another row of the same item is no negative.
            same = (rows[:, None] == rows[None]) & (own[:, None] != own[None])
            for m, x in enumerate(unit):
                for n, y in enumerate(unit):
                    if m != n:
                        cosines = x[part] @ y[part].T / self.config.temperature  # (b, b)
                        logits = cosines.masked_fill(same, -math.inf)
                        # cross_entropy would look at its targets; the diagonal is the target.
                        losses.append((logits.logsumexp(1) - logits.diagonal()).sum())
        n_pairs = len(unit) * (len(unit) - 1)
        return reduce(torch.add, losses) * (self.config.alignment_weight / (n_pairs * len(items)))

    # ------------------------------------------------------------------------------------- ranking

    def scorer(self, known: Known) -> Score:
        """Users by their ids and the history that is known, unseen items by their content."""
        n_items = self.sizes["item"]
        users, items = self._represented(self._users_by_history(known), self._parts("item"))
        n_unseen = known.n_items - n_items
        if n_unseen and self.scores_unseen:
            unseen = self._alone("item", self._before("item", self._unseen_parts(known)))
            unseen = self._after("item", unseen)
            items = [torch.cat(pair) for pair in zip(items, unseen, strict=True)]
            n_unseen = 0
        columns = [z.T.contiguous() for z in items]

        def score(rows: Tensor) -> Tensor:
            own = [z[rows] for z in users]
            if self.asked:
                asking = own[0] @ self.question.T / math.sqrt(own[0].shape[1])
                scores = _asked([own[0] @ c for c in columns], [asking @ c for c in columns])
            else:
                scores = self._late([u @ c for u, c in zip(own, columns, strict=True)])
            return functional.pad(scores, (0, n_unseen), value=-math.inf) if n_unseen else scores

        return score

    def _users_by_history(self, known: Known) -> list[Tensor]:
        """P_u of all users, their content from the history that is known."""
        parts = self._parts("user")
        if not self.choice.has_content("user"):
            return parts
        n_items, first = self.sizes["item"], len(parts) - len(self.projection)
        history = _mean_of_history(known.histories.distinct(n_items), parts[-1].dtype)
        history = history.to(parts[-1].device)
        for place, projection in enumerate(self.projection.values()):
            stored = self.get_buffer(f"item_content_{place}")
            # W (R C) = R (W C): the mean of few numbers instead of many.
            products = history @ linear(stored, cast(nn.Linear, projection).weight)
            parts[first + place] = self._mu(place, products)
        return parts

    def _unseen_parts(self, known: Known) -> list[Tensor]:
        """P_i of items that training has not seen: their content, and zeros for an id."""
        others = slice(self.sizes["item"], known.n_items)
        stored = {m: self.stand_ins.of_others(m, known.content[m], others) for m in self.modalities}
        vectors = _joined(stored, self.choice)
        found = []
        for place, (projection, x) in enumerate(
            zip(self.projection.values(), vectors, strict=True)
        ):
            weight = cast(nn.Linear, projection).weight
            found.append(self._mu(place, linear(x.to(weight), weight)))
        ids = [torch.zeros_like(found[0])] if self.item_id is not None else []
        return ids + found


def _joined(vectors: Mapping[str, Tensor], choice: Choice) -> list[Tensor]:
    """The stored vectors of each content part."""
    each = list(vectors.values())
    return [torch.cat(each, 1)] if choice.representation == "joint" else each


def _mean_of_history(pairs: TrainSet, dtype: torch.dtype) -> SparseMatrix:
    """R (n_users, n_items): row u averages over the items of u; zero for a user without any."""
    indptr, items = torch.from_numpy(pairs.indptr), torch.from_numpy(pairs.items)
    return row_normalised(SparsePattern(indptr, items, pairs.n_items), dtype=dtype)


def _mlp(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for k, layer in enumerate(cast("list[nn.Linear]", layers)):
        x = linear(functional.relu(x) if k else x, layer.weight, layer.bias)
    return x


def _counted_norms(parts: Sequence[Tensor], places: Grouped) -> Tensor:
    """The sum over a batch of the squared rows, from those of its distinct rows."""
    norms = reduce(torch.add, [part.square().sum(1, keepdim=True) for part in parts])  # (n, 1)
    return take(norms, places).sum()


def _asked(scores: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """sum_p softmax_p(logits) scores, of parts of equal shape."""
    shares = torch.softmax(torch.stack(list(logits)), 0)
    return (shares * torch.stack(list(scores))).sum(0)
