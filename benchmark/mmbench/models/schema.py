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
                 training pairs. An item that training has not seen has no layer but y

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
          the sum runs over i's own row and the rows of other items, at most 256 of them

Items unseen in training are scored where they have content; an id that they lack is zero (product
and max would be decided by it, so there they are never listed). With `ids=none` no parameter
belongs to a user or an item, and users are scored by the history that is known of them.

What makes no sense together is refused; `mmbench models schema` lists what does. The model and loss
of VBPR (`corrected`) are representation=joint with all else as it is.

Trainable: user_id (n_users, d), item_id (n_items, d), user_part.<p> and item_part.<p> in place of
absent content, projection.<p>.weight (d, k) and .bias (d,), fusion.<side>.*, tower.<side>.<p>.*,
question Q (d, d); each where the settings call for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init, Triples
from mmbench.errors import UsageError
from mmbench.models import cells
from mmbench.models.alignment import contrasted
from mmbench.models.backbones import Towers, over_graph
from mmbench.models.base import Content, Known, ModelConfig, Recommender, Score, bpr_loss
from mmbench.models.operators import Fusion, Operator, asked, fused_scores
from mmbench.ops.dense import linear, normalise_rows
from mmbench.ops.graph import bipartite, mean_of_items, symmetric_normalised
from mmbench.ops.id_table import by_name, distinct_rows, id_table, whole
from mmbench.ops.rows import Grouped, distinct, pair_scores, take
from mmbench.ops.sparse import SparseMatrix

Who = Literal["user", "item"]


class SchemaConfig(ModelConfig):
    """Settings of the schema."""

    representation: cells.Representation = Field("coordinate", description="joint or coordinate")
    fusion: cells.FusionStage = Field("early", description="early, intermediate or late")
    operator: Operator = Field(
        "concat", description="concat, sum, mean, product, max, weighted, attention or gate"
    )
    query: cells.Query = Field("shared", description="attention: shared, or asked by the user")
    side: cells.Side = Field("item", description="who has content: item, user or both")
    ids: cells.Ids = Field("both", description="whose ids are trained: both, users or none")
    backbone: cells.Backbone = Field("dot", description="dot, mlp or lightgcn")
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
            told = f"{why} (got {self.choice}){self.choice.ways_out()}"
            raise UsageError(f"schema: {told}; `mmbench models schema` lists all combinations")
        return self

    @property
    def choice(self) -> cells.Choice:
        """The cell of the schema."""
        return cells.Choice(**{name: getattr(self, name) for name in cells.FACTORS})


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
            raise UsageError(
                "schema: the policy learned needs side=item: a user's content is a mean of stored "
                "vectors, which a trained stand-in is not"
            )
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
        for place, x in enumerate(stored.values()):
            self.register_buffer(f"item_content_{place}", x, persistent=False)
            if self.choice.has_content("user"):
                mean = mean_of_items(train, x.dtype) @ x
                self.register_buffer(f"user_content_{place}", mean, persistent=False)
        self._add_ids("user", tuple(stored), init)
        self._add_ids("item", tuple(stored), init)
        self._add_backbone(train, init)

    def _add_ids(self, who: Who, parts: Sequence[str], init: Init) -> None:
        """`<who>_id`, and `<who>_part.<p>` in place of content that the side lacks."""
        n, d, choice = self.sizes[who], self.config.embedding_dim, self.choice
        instead = choice.by_part and not choice.has_content(who)
        # With ids=users a part's own table is the id: nothing of an item would meet another one.
        own = choice.has_ids(who) and not (instead and choice.ids == "users")
        # Over a graph every row is used in every step.
        made = nn.Parameter if choice.backbone == "lightgcn" else id_table
        setattr(self, f"{who}_id", made(init.xavier_uniform(f"{who}_id", n, d)) if own else None)
        tables = {p: made(init.xavier_uniform(f"{who}_part.{p}", n, d)) for p in parts if instead}
        self.add_module(f"{who}_part", by_name(tables))

    def _n_parts(self, who: Who) -> int:
        """How many parts a user or an item has."""
        parts = len(self.projection) if self.choice.by_part or self.choice.has_content(who) else 0
        return parts + (getattr(self, f"{who}_id") is not None)

    def _add_backbone(self, train: TrainSet, init: Init) -> None:
        """Operators, towers and the graph."""
        choice, d = self.choice, self.config.embedding_dim
        n_parts = {"user": self._n_parts("user"), "item": self._n_parts("item")}
        by_user, late = choice.query == "user", choice.fusion == "late"
        self.asked = by_user and not late and n_parts["item"] > 1
        # Whose parts are fused; of late fusion, whose parts get shares.
        if late:
            sides = ["user" if by_user else "item"]
        else:
            sides = ["user"] if self.asked else ["user", "item"]
        self.fusion = nn.ModuleDict()
        for who in sides:
            self.fusion[who] = Fusion(choice.operator, n_parts[who], d, f"fusion.{who}", init)
        if self.asked:
            self.question = init.xavier_uniform("question", d, d)
        self.tower = nn.ModuleDict()
        if choice.backbone == "mlp":
            for who in ("user", "item"):
                # After early fusion there is one vector, as wide as all parts for concat.
                wide = d * n_parts[who] if choice.fusion == "early" and choice.by_part else d
                count = 1 if choice.fusion == "early" else n_parts[who]
                self.tower[who] = Towers(count, wide, self.config.n_layers, f"tower.{who}", init)
        self.graph: SparseMatrix | None = None
        if choice.backbone == "lightgcn":
            dtype = next(self.parameters()).dtype
            self.graph = symmetric_normalised(bipartite(train), dtype=dtype)

    @classmethod
    def learns_absent_with(cls, settings: ModelConfig) -> bool:
        """Where users have no content: theirs is a mean of stored vectors."""
        return not cast(SchemaConfig, settings).choice.has_content("user")

    @classmethod
    def represents_unseen(cls, settings: ModelConfig) -> bool:
        """Where an item has content, and its id decides nothing alone."""
        return cast(SchemaConfig, settings).choice.scores_unseen

    # ------------------------------------------------------------------------------ representation

    def _mu(self, products: Sequence[Tensor]) -> list[Tensor]:
        """The representation c of stored vectors y, from W y, (n, d) each."""
        if not self.config.normalise:
            return list(products)
        layers = cast("list[nn.Linear]", list(self.projection.values()))
        pairs = zip(products, layers, strict=True)
        return [normalise_rows(product + layer.bias) for product, layer in pairs]

    def _stored(self, who: Who) -> list[Tensor]:
        """C of all users or items, (n, k) for each content part."""
        return [self.get_buffer(f"{who}_content_{place}") for place in range(len(self.projection))]

    def _projected(self, stored: Sequence[Tensor]) -> list[Tensor]:
        """W y of the stored vectors y of each content part, (n, d) each."""
        layers = cast("list[nn.Linear]", list(self.projection.values()))
        return [linear(y, layer.weight) for y, layer in zip(stored, layers, strict=True)]

    def _products(self, who: Who, rows: Tensor | None = None) -> list[Tensor]:
        """W y of some rows or of all; items without content have stand-ins, (n, d) each."""
        stored = [y if rows is None else y[rows] for y in self._stored(who)]
        # A user's content is a mean of stored vectors: there are no stand-ins then.
        if who == "user" or not len(self.stand_ins):
            return self._projected(stored)
        if self.config.representation == "joint":
            return self._projected([self.stand_ins.side_by_side(stored[0], self.widths, rows)])
        named = zip(self.modalities, self._projected(stored), strict=True)
        weight = {m: cast(nn.Linear, self.projection[m]).weight for m in self.modalities}
        return [
            self.stand_ins.put_in(m, x, partial(linear, weight=weight[m]), rows) for m, x in named
        ]

    def _ids(self, who: Who, rows: Tensor | None = None) -> list[Tensor]:
        """The trained parts of some rows (distinct) or of all, (n, d) each."""
        own, instead = getattr(self, f"{who}_id"), getattr(self, f"{who}_part").values()
        tables = [*([] if own is None else [own]), *instead]
        return [whole(one) if rows is None else distinct_rows(one, rows) for one in tables]

    def _parts(self, who: Who, rows: Tensor | None = None) -> list[Tensor]:
        """P_x of some rows (distinct) or of all, (n, d) each."""
        content = self._mu(self._products(who, rows)) if self.choice.has_content(who) else []
        return self._ids(who, rows) + content

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
        return self.tower[who](parts) if who in self.tower else parts

    def _represented(
        self, users: list[Tensor], items: list[Tensor], rows: tuple[Tensor, Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What is compared, from the parts; with a graph, from all parts for the given rows."""
        users, items = self._before("user", users), self._before("item", items)
        if self.graph is None:
            users, items = self._alone("user", users), self._alone("item", items)
        else:
            users, items = over_graph(self.graph, users, items, self.config.n_layers, rows)
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
            own = of_items[-len(self.modalities) :] if has else None
            content = own or self._mu(self._products("item", items))
            # The positives come first among the pairs.
            positives = [take(x, item_of)[:size] for x in content]
            contrast = contrasted(positives, batch.pos, self.config.temperature)
            terms["alignment"] = contrast * self.config.alignment_weight
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
            pos, neg = (asked([s[k] for s in each], [a[k] for a in logits]) for k in (0, 1))
            return pos, neg
        each = [pair_scores(u, i, item_of) for u, i in zip(of_batch, items, strict=True)]
        pos, neg = (fused_scores(self.choice.operator, [s[k] for s in each]) for k in (0, 1))
        return pos, neg

    # ------------------------------------------------------------------------------------- ranking

    @property
    def factorises(self) -> bool:
        """Whether a score is one inner product, or a sum of several."""
        return not self.asked and not (
            self.choice.fusion == "late" and self.choice.operator in ("product", "max")
        )

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """What is compared, where `factorises`; the parts of late fusion side by side."""
        users, items = self._represented(self._parts("user"), self._parts("item"))
        late_mean = self.choice.fusion == "late" and self.choice.operator == "mean"
        return torch.cat(users, 1) / (len(users) if late_mean else 1), torch.cat(items, 1)

    def scorer(self, known: Known) -> Score:
        """Users by their ids and the history that is known, unseen items by their content."""
        users, items = self._represented(self._known_users(known), self._parts("item"))
        n_unseen = known.n_items - len(items[0])
        if n_unseen and self.scores_unseen:
            unseen = self._alone("item", self._before("item", self._unseen(known)))
            behind = zip(items, self._after("item", unseen), strict=True)
            items, n_unseen = [torch.cat(pair) for pair in behind], 0
        columns = [z.T.contiguous() for z in items]

        def score(rows: Tensor) -> Tensor:
            own = [z[rows] for z in users]
            if self.asked:
                asking = own[0] @ self.question.T / math.sqrt(own[0].shape[1])
                scores = asked([own[0] @ c for c in columns], [asking @ c for c in columns])
            else:
                each = [u @ c for u, c in zip(own, columns, strict=True)]
                scores = fused_scores(self.choice.operator, each)
            return functional.pad(scores, (0, n_unseen), value=-math.inf) if n_unseen else scores

        return score

    def _known_users(self, known: Known) -> list[Tensor]:
        """P_u of all users that are known, their content from their history there."""
        if not self.choice.has_content("user"):
            return self._ids("user")
        products = self._products("item")
        pairs = known.histories.distinct(self.sizes["item"])
        history = mean_of_items(pairs, products[0].dtype).to(products[0].device)
        # W (R C) = R (W C): means of few numbers instead of many.
        return self._ids("user") + self._mu([history @ product for product in products])

    def _unseen(self, known: Known) -> list[Tensor]:
        """P_i of items that training has not seen: zeros for an id, and their content."""
        rows, like = slice(self.sizes["item"], known.n_items), self._stored("item")[0]
        stored = [
            self.stand_ins.of_others(m, known.content[m], rows).to(like) for m in self.modalities
        ]
        joint = self.choice.representation == "joint"
        content = self._mu(self._projected([torch.cat(stored, 1)] if joint else stored))
        return [torch.zeros_like(content[0])] * self.choice.has_ids("item") + content


def _counted_norms(parts: Sequence[Tensor], places: Grouped) -> Tensor:
    """The sum over a batch of the squared rows, from those of its distinct rows."""
    norms = reduce(torch.add, [part.square().sum(1, keepdim=True) for part in parts])  # (n, 1)
    return take(norms, places).sum()
