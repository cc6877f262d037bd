"""SMORE: modalities denoised and fused as spectra, each weighed by what their fusion says.

Paper: Ong, Khong: Spectrum-based Modality Representation Fusion Graph Convolutional Network for
Multimodal Recommendation, WSDM 2025, https://doi.org/10.1145/3701551.3703561 (arXiv 2412.14978).

    g_m,i   = W_m features_m,i + b_m                        features_m starts from the raw vectors
    F       = the discrete Fourier transform along the d numbers of a row, scaled by d^-1/2
    n_m     = F^-1(F(g_m) * spectrum_m)                            denoised
    n_f     = F^-1(product over m of F(g_m) * fused_spectrum)      fused
    S_m     = D^-1/2 C_m D^-1/2 on the k = `neighbours` nearest items of each row by cosine of the
              raw vectors, itself included; C_m the cosines, D their row sums               frozen
    S_f     = the largest entry of all S_m that have one, at each pair of items             frozen
    Â       = D^-1/2 A D^-1/2 of the user-item graph; R its rows of users and columns of items
    x       = [user_embedding; item_embedding]
    z       = mean of x, Â x, …, Â^L x                                          L = `n_ui_layers`
    h_v,i   = (S_v^`n_item_layers` (item_embedding * sigmoid(gate_v(n_v))))_i ;  h_v,u = (R h_v)_u
              for each view v: the modalities and f
    p_v     = sigmoid(preference_v(z)), each entry zero with probability `dropout`, else divided by
              1 - dropout
    side    = (p_f * h_f + sum_m p_m * softmax(query_m tanh(asking_m(h_f))) * h_m) / (M + 1)
              the softmax over the d entries of a row
    e       = z + side
    L       = mean over the batch of -log sigmoid(<e_u, e_i> - <e_u, e_j>)
              + reg_weight / (2 batch_size) * sum over the batch of (|e_u|² + |e_i|² + |e_j|²)
              + cl_weight * (contrast(side_u, z_u) + contrast(side_i, z_i))
              contrast(x, y): mean over the batch's rows b of
              -log(e(b, b) / sum over its rows c of e(b, c)), e(b, c) = exp(cos(x_b, y_c) / τ)
    s(u, i) = <e_u, e_i>, without dropout                                       τ = `temperature`

gate_v, preference_v and asking_m are linear layers, query_m is one without bias. Spectra are
complex, (d // 2 + 1, 2) real numbers: the transform is that of real rows. The learning rate is
lr 0.96^((epoch - 1) / 50). The equations are those of the authors' code, which MMRec runs line for
line; M + 1 views are the 3 of its two modalities. There are no presets.

Differences from that code: a row sum of cosines that is not positive counts as none, instead of
turning S into NaN; so does a zero vector: it is similar to itself alone. Dropout is drawn for the
rows of a batch only (the same law: one draw for each row, however often the row occurs).

Exact, and fast: a filter of a spectrum is a matrix, multiplied with the gate behind it, so that no
row is transformed but for the fusion. What follows h_v, and the last user-item layer, is computed
for the distinct users and items of a batch only; contrasts run over these with their counts, in
blocks; the vectors are a `RowTable`, whose update multiplies their gradient out a few rows at a
time.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), for each modality features.<m>
(n_items, k_m), projection.<m>.weight (d, k_m), gate.<m>.weight, preference.<m>.weight,
asking.<m>.weight, query.<m>.weight (d, d), their .bias (d,) except query's, spectrum.<m>
(d // 2 + 1, 2); fused_gate and fused_preference, weight (d, d) and bias (d,), fused_spectrum
(d // 2 + 1, 2). The imaginary parts of a spectrum's first number, and of its last one where d is
even, have a gradient of zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmbench.core.sampling import Init, Triples
from mmbench.models.base import Content, TrainSet
from mmbench.models.cells import Cell
from mmbench.models.multiview import MultiView, MultiViewConfig, Neighbours, Rows, opened
from mmbench.ops.dense import linear
from mmbench.ops.draws import kept
from mmbench.ops.sparse import SparseMatrix, SparsePattern


class SMOREConfig(MultiViewConfig):
    """Settings of SMORE; the defaults are the published best values of Amazon Baby."""

    n_ui_layers: int = Field(4, ge=0, description="L, propagations on the user-item graph")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the preferences made zero")
    neighbours: Neighbours | None = Field(
        None,
        description="k, entries of each row of an item graph: a number, or one by modality; none: "
        "visual 40 and the others 15",
    )

    ALIASES: ClassVar[Mapping[str, str]] = {**MultiViewConfig.ALIASES, "dropout_rate": "dropout"}


class SMORE(MultiView):
    """Modalities denoised and fused in the frequency domain, item graphs of each and of all."""

    Config = SMOREConfig
    config: SMOREConfig
    fourier: Tensor
    inverse: Tensor
    cell = Cell(
        modalities="any; pictures and texts in 2025",
        representation="coordinate",
        fusion="intermediate",
        operator="product of spectra; mean, by preference",
        side="item",
        backbone="lightgcn + frozen item graphs, contrasted",
    )

    def __init__(self, train: TrainSet, content: Content, config: SMOREConfig, init: Init) -> None:
        usual = {m: 40 if m == "visual" else 15 for m in content}
        given = usual if config.neighbours is None else config.neighbours
        super().__init__(train, content, config, init, given)
        d = config.embedding_dim
        self.fused_graph = _largest(super()._graphs())
        self.preference, self.asking, self.query = (
            nn.ModuleDict({m: init.linear(f"{name}.{m}", d, d) for m in content})
            for name in ("preference", "asking", "query")
        )
        for layer in self.query.values():
            layer.register_parameter("bias", None)
        fourier, inverse = (one.to(self.item_embedding.dtype) for one in _transforms(d))
        self.register_buffer("fourier", fourier, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)
        n = d // 2 + 1
        self.spectrum = nn.ParameterDict({m: init.normal(f"spectrum.{m}", n, 2) for m in content})
        self.fused_spectrum = init.normal("fused_spectrum", n, 2)
        self.fused_gate = init.linear("fused_gate", d, d)
        self.fused_preference = init.linear("fused_preference", d, d)

    def _graphs(self) -> list[SparseMatrix]:
        return [*super()._graphs(), self.fused_graph]

    def _filters(self) -> list[Tensor]:
        content = {m: self._project(m, None) for m in self.features}  # (n_items, d) each
        spectra = [linear(g, self.fourier) for g in content.values()]
        fused = linear(reduce(_times, spectra), self.inverse)
        views = [(g, self.gate[m], self.spectrum[m]) for m, g in content.items()]
        views.append((fused, self.fused_gate, self.fused_spectrum))
        return [
            opened(x, gate, self._filter(spectrum))  # type: ignore[arg-type]
            for x, gate, spectrum in views
        ]

    def _filter(self, spectrum: Tensor) -> Tensor:
        """The matrix M (d, d) by which x M = F^-1(F(x) * spectrum)."""
        # Its rows are what becomes of the unit vectors, whose transforms are those of `fourier`.
        return linear(_times(self.fourier.T, spectrum.T.reshape(1, -1)), self.inverse)

    def _side(
        self, z: Tensor, views: list[Tensor], rows: Rows | None, batch: Triples | None
    ) -> Tensor:
        fused = views[-1]
        parts = [fused * self._preferred("fused_preference", z, rows, batch)]
        for m, h in zip(self.features, views, strict=False):
            asked = torch.tanh(linear(fused, *_weights(self.asking[m])))
            # Which entries of a modality count, by what all of them have in common.
            share = torch.softmax(linear(asked, *_weights(self.query[m])), 1)
            parts.append(self._preferred(f"preference.{m}", z, rows, batch) * share * h)
        return reduce(torch.add, parts) / len(parts)

    def _preferred(self, name: str, z: Tensor, rows: Rows | None, batch: Triples | None) -> Tensor:
        """p_v of some rows, by the layer of this name; dropped out for a batch."""
        preferred = opened(z, self.get_submodule(name))  # type: ignore[arg-type]
        rate = self.config.dropout
        if rows is None or batch is None or not rate:
            return preferred
        stay = [
            self._kept(name, side, some, batch)
            for side, some in zip(("user", "item"), rows, strict=True)
        ]
        return preferred * torch.cat(stay) / (1 - rate)

    def _kept(self, name: str, side: str, rows: Tensor, batch: Triples) -> Tensor:
        """Which entries of p_v stay, of users or of items, (n, d)."""
        shape = (len(rows), self.config.embedding_dim)
        # Of users and items apart: a list may be filled up with copies (`ops.rows`).
        return kept(batch.stream(f"dropout:{name}:{side}"), shape, self.config.dropout)


def _transforms(d: int) -> tuple[Tensor, Tensor]:
    """F as a linear layer's weight, (2 f, d) with f = d // 2 + 1, and its inverse, (d, 2 f).

    A row of d real numbers becomes f real parts, then f imaginary ones: the other frequencies of a
    real row are conjugate to these, and count in the inverse.
    """
    parts = torch.view_as_real(torch.fft.rfft(torch.eye(d, dtype=torch.float64), norm="ortho"))
    real, imaginary = parts.unbind(2)  # (d, f) each
    twice = torch.full((d // 2 + 1,), 2.0, dtype=torch.float64)
    # The sums of a row, and of its numbers with alternating signs, are real, and occur once. No
    # rounding may be left there: Adam would make whole steps of it.
    for once in [0, d // 2] if d % 2 == 0 else [0]:
        imaginary[:, once], twice[once] = 0.0, 1.0
    fourier = torch.cat([real, imaginary], 1)
    return fourier.T.contiguous(), fourier * torch.cat([twice, twice])


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of complex numbers, entry by entry: rows of real parts, then imaginary ones."""
    (p, q), (r, s) = a.chunk(2, 1), b.chunk(2, 1)
    return torch.cat([p * r - q * s, p * s + q * r], 1)


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer."""
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias


def _largest(graphs: list[SparseMatrix]) -> SparseMatrix:
    """The largest of the entries that the graphs have at each pair of items."""
    patterns = [graph.pattern for graph in graphs]
    rows, columns = (torch.cat([getattr(p, name) for p in patterns]) for name in ("row", "indices"))
    pattern, entry = SparsePattern.from_edges(rows, columns, graphs[0].shape)
    given = torch.cat([graph.values for graph in graphs])
    values = given.new_full((pattern.nnz,), -math.inf)
    return SparseMatrix(pattern, values.scatter_reduce_(0, entry, given, "amax"))
