"""MIND in torch: multi-interest network with dynamic routing (Li et al., CIKM 2019).

B users, L window length, K interests, D vector width, T targets.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoder.item_fields import ItemFieldVectors
from training.item_fields import FieldSums, ItemFields
from training.item_graph import ItemGraph

# Stands for "never" among logits. Not -inf: a user without clicks has no slot at all, and the
# softmax of nothing but -inf is NaN.
NEVER = -1e9
MARK = 0.3
"""By how much less similar an own item is through its mark. Items carry it in the coordinate of
their colour and users have -1 there, rather than each a root of it: an index over items should find
near each other what is alike, and not what has the same colour."""


def slot_counts(clicks: Tensor, slots: int) -> Tensor:
    """How many interests a user has: K' = max(1, min(K, log2 |clicks|)).

    The paper's dynamic interest number; rounded down, and 0 for users without a click.

    Args:
        clicks: int64 (B,), known clicks in the window.
        slots: K, the most there can be.

    Returns:
        int64 (B,).
    """
    # Compared with powers of two, because log2 in floating point may fall short of an integer.
    powers = torch.tensor([2**k for k in range(1, slots + 1)], device=clicks.device)
    reached = (clicks.unsqueeze(1) >= powers).sum(dim=1)  # (B,)
    return torch.where(clicks > 0, reached.clamp(min=1), torch.zeros_like(clicks))


def click_counts(mask: Tensor) -> Tensor:
    """How many clicks a window has: int64 (B,), of bool (B, L)."""
    # Floating point is exact here, and adding integers is slow in ONNX Runtime.
    return mask.to(torch.float32).sum(dim=1).to(torch.int64)


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors over their last axis to length 1; zero stays zero, without NaN gradients."""
    squares = _inner(vectors, vectors)
    # torch's ONNX exporter drops additions of tiny constants, so an epsilon would not survive.
    return vectors * torch.where(squares > 0, squares, 1.0).rsqrt().unsqueeze(-1)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    # Over the last axis. As a product of matrices, because ONNX Runtime adds up a row in an order
    # that depends on where the row lies in memory, so that a user's bits would depend on who else
    # is in the batch.
    return ((one * other) @ one.new_ones(one.shape[-1], 1)).squeeze(-1)


def squash(vectors: Tensor) -> Tensor:
    """Map lengths to [0, 1), keeping directions, as the paper's squash; zero stays zero."""
    return vectors * _squashing(_inner(vectors, vectors)).unsqueeze(-1)


def _squashing(squares: Tensor) -> Tensor:
    # By what vectors of these squared lengths are multiplied.
    return torch.where(squares > 0, squares, 1.0).sqrt() / (1 + squares)


def route(
    vectors: Tensor,
    bilinear: Tensor,
    logits: Tensor,
    mask: Tensor,
    slots: Tensor,
    iterations: int,
    gates: Tensor | None = None,
    *,
    squashed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Group each user's clicks into interest capsules.

    Behaviour-to-interest dynamic routing: MIND (Li et al., CIKM 2019), algorithm 1. S is applied to
    the K sums rather than to the L clicks that are summed, which is the same and less work.
    Gradients pass through the last round only, as in CapsNet's published code; the rounds before
    settle the couplings.

    Args:
        vectors: float32 (B, L, D), of the items clicked; zero where there is no click.
        bilinear: float32 (D, D), S, which all pairs of clicks and interests share.
        logits: float32 (B, L, K), initial routing logits.
        mask: bool (B, L), True where there is a click.
        slots: bool (B, K), True for the interests that the user has.
        iterations: rounds of routing, at least 1.
        gates: float32 (B, L), how much each click counts in a capsule; 1 each if None.
        squashed: False leaves the capsules as they are before the squash, which changes lengths
            only.

    Returns:
        Capsules float32 (B, K, D), and the couplings float32 (B, L, K) that made them. Both are
        zero in slots the user does not have, and couplings also where there is no click.
    """
    # Clicks are the last axis within: L columns fill a processor's vectors, and K do not.
    columns = vectors.detach().transpose(1, 2)  # (B, D, L)
    known = mask.to(vectors.dtype).unsqueeze(1)  # (B, 1, L)
    # A click that counts for less is a shorter vector, as far as sums of vectors go.
    weight = known if gates is None else known * gates.unsqueeze(1)  # (B, 1, L)
    # Capsules in slots that the user does not have remain zero, so this lasts for all rounds.
    logits = logits.transpose(1, 2) + torch.where(slots, 0.0, NEVER).unsqueeze(2)  # (B, K, L)
    # Of a capsule before the squash, sum S, the rounds need its length and its product with S';
    # sum SS' yields both.
    product = bilinear.detach() @ bilinear.detach().T  # (D, D)
    for _ in range(iterations - 1):
        sums = _product(_couplings(logits, weight), vectors.detach())  # (B, K, D)
        mapped = sums @ product
        scale = _squashing(_inner(sums, mapped))  # (B, K)
        logits = logits + _product(mapped * scale.unsqueeze(2), columns)
    couplings = _couplings(logits, known)  # (B, K, L)
    weighed = couplings if gates is None else couplings * gates.unsqueeze(1)
    capsules = _product(weighed, vectors) @ bilinear
    return (squash(capsules) if squashed else capsules), couplings.transpose(1, 2)


def _couplings(logits: Tensor, weight: Tensor) -> Tensor:
    # Softmax over slots, (B, K, L), times (B, 1, L). Written out, because ONNX Runtime's own is
    # slow over few numbers that are not next to each other; and its sum over an axis in the middle
    # has another order where B is 1.
    powers = (logits - logits.amax(dim=1, keepdim=True)).exp()
    parts = torch.split(powers, 1, dim=1)
    total: Tensor = functools.reduce(torch.add, parts)  # (B, 1, L)
    return powers * (weight / total)


def _product(rows: Tensor, matrices: Tensor) -> Tensor:
    # (…, K, M) by (B, M, N). ONNX Runtime multiplies a single row in an order of its own, which
    # depends on the padding.
    if rows.shape[-2] == 1:
        return (torch.cat([rows, rows], dim=-2) @ matrices)[:, :1]
    return rows @ matrices


def attend(interests: Tensor, slots: Tensor, targets: Tensor, power: float, scale: float) -> Tensor:
    """Label-aware attention: the user as the target sees them.

    softmax(pow(⟨interest, target⟩, p)) over the user's interests. The power is taken of the
    product's size and the sign put back: the paper leaves negative products open, and an even power
    would favour the interest that is most unlike the target.

    Args:
        interests: float32 (B, K, D).
        slots: bool (B, K), True for the interests that the user has.
        targets: float32 (B, T, D), item vectors.
        power: p; 0 weighs all interests alike, infinity takes the likeliest alone.
        scale: products are multiplied by it first (1 in the paper; 1/temperature for cosines).

    Returns:
        float32 (B, T, D).
    """
    real = slots.unsqueeze(1)  # (B, 1, K)
    likeness = targets @ interests.transpose(1, 2) * scale  # (B, T, K)
    if math.isinf(power):
        best = torch.where(real, likeness, NEVER).argmax(dim=2, keepdim=True)  # (B, T, 1)
        return interests.gather(1, best.expand(-1, -1, interests.shape[2]))
    raised = likeness if power == 1 else likeness.sign() * likeness.abs().pow(power)
    return torch.where(real, raised, NEVER).softmax(dim=2) @ interests  # (B, T, D)


class Mind(nn.Module):
    """Item table, shared bilinear map, routing, and label-aware attention.

    Args:
        items: N; the table has N+1 rows, row 0 being padding.
        width: D.
        interests: K.
        iterations: rounds of routing.
        cosine: compare unit vectors (items and interests alike) instead of raw inner products.
        average: the one capsule is the average of the window, without routing.
        hidden: width of the ReLU layer that the paper puts after the capsules; 0 for none.
        fade: a click counts e^-fade for every click after it; 0 if all count alike.
        graph: which items are clicked close to each other.
        smoothing: weight of an item's neighbours in its vector, over that of its own.
        spectral: start the table from the graph's leading eigenvectors, if there is a graph.
        fields: what is known of the N items beside their clicks.
        profile: of each field of the users' profile how many codes there are, 0 for not known.
        profile_width: width of each of these fields' vectors.
        seed: of the weights and of the directions that seed served routing.

    Raises:
        ValueError: the fields are of another number of items, there is a profile but no ReLU layer
            to take it in, or an average of several interests.
    """

    directions: Tensor
    colours: Tensor

    def __init__(
        self,
        items: int,
        *,
        width: int,
        interests: int,
        iterations: int = 3,
        cosine: bool = True,
        average: bool = False,
        hidden: int = 0,
        fade: float = 0.0,
        graph: ItemGraph | None = None,
        smoothing: float = 0.0,
        spectral: bool = False,
        fields: ItemFields | None = None,
        profile: tuple[int, ...] = (),
        profile_width: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if average and interests != 1:
            raise ValueError(f"an average is one interest, not {interests}")
        if profile and not hidden:
            raise ValueError("a profile goes into the ReLU layer, so `hidden` must be above 0")
        if fields is not None and len(fields) != items:
            raise ValueError(f"fields are of {len(fields)} items, but the table has {items}")
        generator = torch.Generator().manual_seed(seed)
        self.interests = interests
        self.iterations = iterations
        self.cosine = cosine
        self.average = average
        self.graph = graph if smoothing else None
        self.smoothing = smoothing
        self.fade = fade
        scale = 1 / math.sqrt(width)
        table = torch.randn(items + 1, width, generator=generator) * scale
        table[0] = 0.0
        if spectral and self.graph is not None:
            # From a generator of its own, so that nothing else of the model depends on it.
            leading = unit(self.graph.leading_vectors(width, torch.Generator().manual_seed(seed)))
            # Items without an edge stay at random.
            table = torch.where(leading.any(dim=1, keepdim=True), leading + 0.3 * table, table)
        self.table = nn.Parameter(table)
        # S, the bilinear map that all pairs of clicks and interests share. From the identity plus
        # noise, so that routing groups similar items from the start.
        noise = torch.randn(width, width, generator=generator) * (0.1 * scale)
        self.bilinear = nn.Parameter(torch.eye(width) + noise)
        self.layers = nn.Sequential()
        if hidden:
            into = nn.Linear(width + len(profile) * profile_width, hidden)
            out = nn.Linear(hidden, width)
            for layer in (into, out):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
                nn.init.zeros_(layer.bias)
            self.layers = nn.Sequential(into, nn.ReLU(), out)
        self.register_buffer("directions", torch.randn(width, interests, generator=generator))
        self.marks = 0
        self.register_buffer("colours", torch.full((items + 1,), -1), persistent=False)
        # Drawn last, so that a model without them has the same bits as ever.
        self.item_fields = fields
        self.fields = None if fields is None else FieldSums(fields)
        self.field_table: nn.Parameter | None = None
        if fields is not None:
            values = torch.randn(fields.values, width, generator=generator) * scale
            self.field_table = nn.Parameter(values)
        self.profile = profile
        self.profile_table: nn.Parameter | None = None
        if profile:
            codes = torch.randn(sum(profile), profile_width, generator=generator)
            self.profile_table = nn.Parameter(codes * profile_width**-0.5)

    def item_table(self, kept: Tensor | None = None, linked: Tensor | None = None) -> Tensor:
        """Item vectors as compared and served: float32 (N+1, D), row 0 zeros.

        With a graph, an item's vector leans on those of its neighbours (a round of LightGCN, He et
        al., SIGIR 2020), so that an item clicked twice has a place that many clicks decided.

        With fields, its own vector is the average of its id's and its fields', and a field's that
        of the item's values: the paper's embedding and pooling layer.

        Args:
            kept: bool (N+1, 1), False for items without an id of their own, which have nothing but
                their fields and their neighbours; None for all as they are.
            linked: bool (N+1, 1), False for items without neighbours; None for all as they are.
        """
        table: Tensor = self.table if kept is None else self.table * kept
        if self.fields is not None and self.field_table is not None:
            ids = 1 if kept is None else kept.to(table.dtype)
            parts = (self.fields.present + ids).clamp(min=1)  # (N+1, 1)
            table = (table + self.fields.of(self.field_table)) / parts
        if self.graph is not None:
            neighbours = self.smoothing * self.graph.neighbours(table)
            table = table + (neighbours if linked is None else neighbours * linked)
        return unit(table) if self.cosine else table

    def mark(self, colours: Tensor, marks: int) -> None:
        """Let searches leave out own items, by colour; see `training.marks`.

        Args:
            colours: int64 (N+1,), below `marks`; -1 for none, as row 0 has.
            marks: C, how many there are.
        """
        self.colours, self.marks = colours, marks

    def served_table(self) -> Tensor:
        """Item vectors as served: those of `item_table` and then their marks, (N+1, D+C)."""
        columns = torch.arange(self.marks)
        marks = MARK * (self.colours.unsqueeze(1) == columns).to(torch.float32)  # (N+1, C)
        return torch.cat([self.item_table(), marks], dim=1)

    def vectors_from_fields(self, items: ItemFields) -> Tensor:
        """Vectors of items that were not trained on: the average of their fields', without an id.

        Args:
            items: M items, with the fields that the model was trained with.

        Returns:
            float32 (M, D+C), without a mark; zero for items of which nothing is known, of length 1
            otherwise, if the model compares cosines.

        Raises:
            ValueError: the model was trained without fields, or with others.
        """
        if self.fields is None or self.field_table is None or self.fields.fields != items.fields:
            raise ValueError("these are not the fields that the model was trained with")
        sums = FieldSums(items)
        vectors = (sums.of(self.field_table) / sums.present.clamp(min=1))[1:]
        return functional.pad(unit(vectors) if self.cosine else vectors, (0, self.marks))

    def field_vectors(self) -> ItemFieldVectors | None:
        """What serving needs to do the same without torch; None for a model without fields."""
        if self.fields is None or self.field_table is None:
            return None
        vectors = functional.pad(self.field_table.detach(), (0, self.marks)).numpy().copy()
        return ItemFieldVectors(self.fields.fields, vectors, self.cosine)

    def gates(self, mask: Tensor) -> Tensor | None:
        """How much each click counts, falling exponentially with the clicks after it: (B, L)."""
        if not self.fade:
            return None
        known = mask.to(torch.float32)  # ONNX Runtime is slow with integers, and these are exact
        after = known.sum(dim=1, keepdim=True) - known.cumsum(dim=1)  # (B, L)
        return (-self.fade * after).exp()

    def profile_vectors(self, codes: Tensor) -> Tensor:
        """The vectors of a profile's fields, one after another; zeros for what is not known.

        Args:
            codes: int64 (B, P); 0, and codes that training did not have, are not known.

        Returns:
            float32 (B, P · profile_width).
        """
        if self.profile_table is None:
            raise ValueError("the model was built without a profile")
        sizes = torch.tensor(self.profile, device=codes.device)
        known = (codes > 0) & (codes < sizes)  # (B, P)
        rows = torch.where(known, codes, 0) + sizes.cumsum(0) - sizes
        return (self.profile_table[rows] * known.unsqueeze(2)).flatten(1)

    def encode(
        self, vectors: Tensor, mask: Tensor, logits: Tensor, profile: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode windows of item vectors.

        Args:
            vectors: float32 (B, L, D), rows of `item_table`, zero where there is no click.
            mask: bool (B, L), True where there is a click.
            logits: float32 (B, L, K), initial routing logits.
            profile: int64 (B, P), the users' codes; for a model with a profile only.

        Returns:
            Interests float32 (B, K, D), zero in slots the user does not have (of length 1
            elsewhere if the model compares cosines), and couplings float32 (B, L, K).

        Raises:
            ValueError: there is a profile and the model has none, or the other way round.
        """
        if (profile is not None) != bool(self.profile):
            raise ValueError(f"the model has {len(self.profile)} profile fields; pass just those")
        counts = slot_counts(click_counts(mask), self.interests)  # (B,)
        slots = torch.arange(self.interests, device=mask.device) < counts.unsqueeze(1)  # (B, K)
        gates = self.gates(mask)
        if self.average:
            couplings = mask.unsqueeze(2).to(vectors.dtype)  # (B, L, 1)
            shares = couplings if gates is None else couplings * gates.unsqueeze(2)
            total = shares.transpose(1, 2) @ shares.new_ones(mask.shape[1], 2)  # (B, 1, 2)
            capsules = shares.transpose(1, 2) @ vectors / total[:, :, :1].clamp(min=1)
        else:
            capsules, couplings = route(
                vectors,
                self.bilinear,
                logits,
                mask,
                slots,
                self.iterations,
                gates,
                # Vectors of length 1 are made of them below.
                squashed=bool(self.layers) or not self.cosine,
            )
        if profile is not None:
            user = self.profile_vectors(profile).unsqueeze(1)  # (B, 1, P · profile_width)
            capsules = torch.cat([capsules, user.expand(-1, self.interests, -1)], dim=2)
        if len(self.layers):
            capsules = torch.where(slots.unsqueeze(2), self.layers(capsules), 0.0)
        return (unit(capsules) if self.cosine else capsules), couplings  # (B, K, D), (B, L, K)

    def served_logits(self, vectors: Tensor) -> Tensor:
        """Routing logits seeded by the item: its unit vector times K fixed random directions.

        The paper draws them at random, in training and in service. Served this way, the result is
        a function of the window, and an interest keeps its slot as the window slides.
        """
        columns = (vectors if self.cosine else unit(vectors)).transpose(1, 2)  # (B, D, L)
        return _product(self.directions.T, columns).transpose(1, 2)  # (B, L, K); see `route`


class ServedMind(nn.Module):
    """What is exported: windows of item rows in, interests and what explains them out."""

    def __init__(self, model: Mind) -> None:
        super().__init__()
        self.model = model
        self.width = model.table.shape[1]

    def forward(
        self, items: Tensor, rows: Tensor, ages: Tensor, profile: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Encode windows.

        Args:
            items: float32 (N+1, D+C), the item table as served, row 0 zeros.
            rows: int64 (B, L), rows of the table, oldest click first; 0 where there is none.
            ages: float32 (B, L), seconds before the window's newest click; this model ignores it.
            profile: int64 (B, P), of a model with a profile, which is not exported.

        Returns:
            interests float32 (B, K, D+C), counts int64 (B,), weights float32 (B, K), assignment
            int64 (B, L) and exemplars int64 (B, K), as in `encoder.mind_encoder.InterestBatch`.
        """
        del ages
        mask = rows > 0  # (B, L)
        clicked = functional.embedding(rows, items)  # (B, L, D+C)
        vectors = clicked[:, :, : self.width]  # (B, L, D)
        logits = self.model.served_logits(vectors)
        interests, couplings = self.model.encode(vectors, mask, logits, profile)
        if not self.model.cosine:
            interests = unit(interests)
        clicks = click_counts(mask)  # (B,)
        counts = slot_counts(clicks, self.model.interests)
        slot = torch.arange(self.model.interests, device=rows.device)
        slots = slot < counts.unsqueeze(1)  # (B, K)

        # Each click's couplings add up to 1. A product of matrices: see `_inner`; of two columns,
        # because ONNX Runtime treats a single one as a vector, with another order.
        couplings = couplings.transpose(1, 2)  # (B, K, L)
        routed = _product(couplings, couplings.new_ones(rows.shape[1], 2))[:, :, 0]  # (B, K)
        weights = routed / clicks.clamp(min=1).unsqueeze(1)  # (B, K)

        assignment = torch.where(mask, couplings.argmax(dim=1), -1)  # (B, L)

        own = assignment.unsqueeze(1) == slot.unsqueeze(1)  # (B, K, L)
        has_own = own.any(dim=2, keepdim=True)  # (B, K, 1)
        eligible = own | (mask.unsqueeze(1) & ~has_own)  # (B, K, L)
        likeness = _product(interests, vectors.transpose(1, 2))  # (B, K, L)
        likeness = likeness + torch.where(eligible, 0.0, NEVER)
        # Turned round, because argmax takes the first of equals and the newest click is last.
        newest_first = likeness.flip(2).argmax(dim=2)  # (B, K)
        exemplars = torch.where(slots, rows.shape[1] - 1 - newest_first, -1)
        if self.model.marks:
            owned = (clicked[:, :, self.width :] > 0).any(dim=1, keepdim=True)  # (B, 1, C)
            marks = torch.where(slots.unsqueeze(2) & owned, -1.0, 0.0)  # (B, K, C)
            interests = torch.cat([interests, marks], dim=2)
        return interests, counts, weights, assignment, exemplars
