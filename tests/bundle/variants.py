"""Implementations with one mistake each, as modules of their own: the text of the wrong one and of the right one.

Those that know nothing of this package are what most users plug in. The layers and the compressor follow the
specification inside, and take plain objects from outside.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A module with a function, and a case that shows its mistake."""

    stage: str
    text: str
    wrong: str
    """Stands in the text where the right one has ``right``"""
    right: str
    case: str
    kind: str
    """Of the failure"""
    check: str = "specification"

    def module(self, wrong: bool) -> str:
        """Return the text of the module."""
        return self.text.replace("MISTAKE", self.wrong if wrong else self.right)


ATTEND = """
import torch


def attend(q, kv, indices, sinks, scale):
    wide = torch.cat((kv, kv.new_zeros(len(kv), 1, kv.shape[2])), 1)
    keys = torch.stack([one[list.clamp(min=-1)] for one, list in zip(wide, indices)]).nan_to_num(0, 0, 0)
    logits = scale * torch.einsum("bshd,bsnd->bshn", q, keys)
    logits = logits.masked_fill((indices < 0)[:, :, None], -torch.inf)
    extra = sinks.view(1, 1, -1, 1).expand(*q.shape[:3], 1)
    p = torch.cat((logits, extra), -1).softmax(-1)[..., :-1]
    out = torch.einsum("bshn,bsnd->bshd", p, keys)
    MISTAKE
    return out
"""

TRAINED = f"""{ATTEND.replace("    MISTAKE", "    out = MISTAKE")}

from csa_spec import Capabilities

attend.capabilities = Capabilities(gradients=True)
"""

NUMPY_ATTEND = """
import numpy as np
from csa_spec import Capabilities


def attend(q, kv, indices, sinks, scale):
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(*q.shape[:3]):
        keys = kv[b][[i for i in indices[b, t] if i >= 0]]
        if len(keys):
            logits = np.append(scale * keys @ q[b, t, h], sinks[h])
            weights = np.exp(logits - logits.max())
            out[b, t, h] = weights[:-1] @ keys / weightsMISTAKE.sum()
    return out


attend.capabilities = Capabilities(arrays="numpy")
"""

SELECT = """
import torch


def select(scores, positions, compress_ratio, top_k):
    entries = scores.shape[2]
    hidden = torch.arange(entries) >= ((positions + MISTAKE) // compress_ratio)[..., None]
    seen = scores.nan_to_num(-9e9, 9e9, -9e8).masked_fill(hidden, -torch.inf)
    top = seen.topk(min(top_k, entries))
    return top.indices.masked_fill(top.values == -torch.inf, -1)
"""

LARGEST = """
import torch


def select(scores, positions, compress_ratio, top_k):
    picks = torch.full((*scores.shape[:2], top_k), -1)
    for b, row in enumerate(scores):
        for t, one in enumerate(row):
            visible = min(len(one), (int(positions[b, t]) + 1) // compress_ratio)
            order = sorted(range(visible), key=lambda s: float(one[s]), reverse=MISTAKE)
            picks[b, t, : min(top_k, visible)] = torch.tensor(order[:top_k])
    return picks
"""

INDEX_SCORES = """
import torch


class Kernels:
    def index_scores(self, index_q, index_k, head_weights):
        products = torch.einsum("bshd,btd->bsht", index_q, index_k)
        return torch.einsum("bsht,bsh->bst", productsMISTAKE, head_weights)


kernels = Kernels()
"""

COMPRESSOR = """
import torch


def compressor(hidden, weights, geometry):
    from dataclasses import fields

    from csa_spec.spec import SPEC, CompressorWeights, Geometry, compress

    used = Geometry(**{one.name: getattr(geometry, one.name) for one in fields(Geometry)})
    assert geometry.entry_count(7) == used.entry_count(7) and geometry.overlap == used.overlap
    named = {name: getattr(weights, name).double() for name in ("wkv", "wgate", "ape", "norm")}
    MISTAKE
    rows = [compress(r.double(), 0, CompressorWeights(**named), used, SPEC.layer_frequencies(used)) for r in hidden]
    return torch.stack(rows).to(hidden.dtype)
"""

LAYER = """
import torch


def layer(hidden, weights, geometry, positions, documents):
    from dataclasses import fields, replace

    from csa_spec.bugs.bug import following
    from csa_spec.spec import SPEC, Geometry, LayerWeights, Yarn

    yarn = geometry.yarn and Yarn(**{one.name: getattr(geometry.yarn, one.name) for one in fields(Yarn)})
    used = Geometry(**{one.name: getattr(geometry, one.name) for one in fields(Geometry)} | {"yarn": yarn})
    assert geometry.entry_count(7) == used.entry_count(7) and geometry.scale == used.scale
    named = weights.named()
    assert named.keys() == weights_of(weights)
    spec = SPEC
    MISTAKE
    out = following(spec)(hidden, LayerWeights.from_named(named), used, positions, documents)
    return out


def weights_of(weights, prefix=""):
    names = set()
    fields = vars(weights) if hasattr(weights, "__dict__") else weights.__slots__
    for name in list(fields):
        one = getattr(weights, name)
        if isinstance(one, torch.Tensor):
            names.add(prefix + name)
        elif one is not None and not callable(one):
            names |= weights_of(one, f"{prefix}{name}.")
    return names
"""

STREAM = """
import torch


def cache(weights, geometry, batch):
    return Stream(weights, geometry)


class Stream:
    def __init__(self, weights, geometry):
        self.weights, self.geometry, self.past = weights, geometry, None

    def extend(self, hidden):
        self.past = hidden if self.past is None else torch.cat((self.past, hidden), 1)
        rows, length = self.past.shape[:2]
        positions = torch.arange(length).expand(rows, length)
        out = layer(self.past, self.weights, self.geometry, positions, 0 * positions)[:, -hidden.shape[1] :]
        return out

    def rollback(self, n):
        self.past = self.past[:, : self.past.shape[1] - n]

    def reorder(self, rows):
        self.past = self.past[rows]
"""
STREAM += LAYER.replace("    MISTAKE\n", "")
_STREAM_ANSWER = STREAM.replace("        return out", "        MISTAKE\n        return out", 1)

_ANSWER = LAYER.replace("    MISTAKE\n", "").replace("    return out\n", "    MISTAKE\n    return out\n")
_NAN = "torch.empty_like(out).isnan()"
_AHEAD = "spec = replace(SPEC, visible_entries=lambda t, m: list(range(t // m + 1)))"

VARIANTS = {
    "sinks": Variant(
        "attend", ATTEND.replace("sinks.view", "MISTAKE.view").replace("    MISTAKE\n", ""), "(0 * sinks)", "sinks",
        "attend S=2 H=2 D=2 N=2 n=2 values=gaussian sinks=drawn-sinks", "WrongNumbers",
    ),
    "empty": Variant(
        "attend", ATTEND, "out[(indices < 0).all(-1)] = torch.nan", "pass",
        "attend S=2 D=2 N=2 n=2 indices=empty sinks=drawn-sinks", "NotFinite",
    ),
    "raises": Variant(
        "attend", ATTEND, "out.view(0)", "pass", "attend D=2 N=2 n=1 values=gaussian dtype=float64",
        "CandidateRaised[RuntimeError]",
    ),
    "shape": Variant("attend", ATTEND, "out = out.flatten(2)", "pass", "attend H=2 D=2 N=1 n=1", "WrongShape"),
    "large": Variant(
        "attend", ATTEND, "out = 1.5 * out", "pass", "attend B=2 S=16 H=4 D=32 N=16 n=8 values=gaussian",
        "WrongNumbers",
    ),
    "half": Variant(
        "attend", ATTEND, "out = -out", "pass", "attend S=2 D=4 N=3 n=2 values=gaussian dtype=bfloat16",
        "WrongNumbers",
    ),
    "alone": Variant(
        "attend", ATTEND, "out = out if len(q) > 1 else 0 * out", "pass", "attend B=2 D=2 N=2 n=1 values=gaussian",
        "RowsInteract", "rows",
    ),
    "numpy": Variant(
        "attend", NUMPY_ATTEND, "[:-1]", "", "attend H=2 D=2 N=3 n=2 values=gaussian", "WrongNumbers",
    ),
    "ahead": Variant(
        "select", SELECT, "compress_ratio", "1", "select S=3 T=2 m=2 k=1 values=gaussian", "PickNotVisible",
    ),
    "smallest": Variant(
        "select", LARGEST, "False", "True", "select S=2 T=4 m=1 k=2 start=3", "MissedHigherScore",
    ),
    "relu": Variant(
        "index_scores", INDEX_SCORES, "", ".relu()", "index_scores S=2 T=2 HI=2 DI=2 values=gaussian", "WrongNumbers",
    ),
    "bias": Variant(
        "compressor", COMPRESSOR, "named['ape'] = 0 * named['ape']", "pass",
        "compressor blocks=2 m=2 E=2 values=gaussian overlap=csa", "WrongNumbers",
    ),
    "tail": Variant(
        "compressor", COMPRESSOR, "hidden = hidden * (1 + hidden[:, -1:])", "pass",
        "compressor blocks=2 tail=1 m=2 E=2 values=gaussian overlap=hca seed=4", "PrefixDiffers", "prefix",
    ),
    "aligned": Variant(
        "attend", ATTEND.replace("    wide", "    MISTAKE\n    wide").replace("    MISTAKE\n    return", "    return"),
        "q = q.as_strided(q.shape, q.stride(), q.storage_offset() // 4 * 4)", "pass",
        "attend D=2 N=2 n=2 indices=shuffled values=gaussian layout=offset", "NotFinite",
    ),
    "viewed": Variant(
        "attend", ATTEND.replace("    wide", "    MISTAKE\n    wide").replace("    MISTAKE\n    return", "    return"),
        "kv.view(-1)", "pass",
        "attend B=2 D=2 N=2 n=2 indices=shuffled values=gaussian layout=mixed", "CandidateRaised[RuntimeError]",
    ),
    "packed": Variant(
        "layer", LAYER, "hidden = hidden.as_strided(hidden.shape, (4, 2, 1)) + 0 * named['wkv'].sum()", "pass",
        "sliding rows=2,2 values=gaussian layout=transposed", "SeesTooMuch",
    ),
    "csa": Variant("layer", LAYER, _AHEAD, "pass", "csa m=2 rows=3 values=gaussian", "SeesTooMuch"),
    "hca": Variant("layer", LAYER, _AHEAD, "pass", "hca m=2 rows=3,1 yarn=4/64/32/1", "SeesTooMuch"),
    "sliding": Variant(
        "layer", LAYER, "spec = replace(SPEC, window_tokens=lambda t, window: list(range(max(0, t - window), t + 1)))",
        "pass", "sliding W=2 rows=3,1<2 values=gaussian", "SeesTooMuch",
    ),
    "ties": Variant(
        "layer", LAYER, "named['wo_b'] = 2 * named['wo_b']", "pass",
        "csa k=1 rows=3 values=gaussian scores=tied", "WrongNumbers",
    ),
    "future": Variant("layer", LAYER, _AHEAD, "pass", "hca m=2 rows=3 values=gaussian", "FutureLeak", "future"),
    "shorter": Variant(
        "layer", LAYER, "hidden = hidden + hidden[:, -1:]", "pass", "sliding W=2 rows=3 values=gaussian",
        "PrefixDiffers", "prefix",
    ),
    "batch": Variant(
        "layer", LAYER, "hidden = hidden + hidden[:1]", "pass", "sliding rows=2,2 values=gaussian",
        "BatchOrderMatters", "batch-order",
    ),
    "company": Variant(
        "layer", LAYER, "hidden = hidden + hidden[:1]", "pass", "sliding rows=2,1 values=gaussian",
        "RowsInteract", "rows",
    ),
    "shown": Variant(
        "layer", _ANSWER.replace("MISTAKE", "out = LayerOutput(out, selection=torch.tensor([[[0, -1], MISTAKE]]))")
        + "\n\nfrom csa_spec import LayerOutput\n", "[1, -1]", "[0, 1]", "csa k=2 rows=2 values=gaussian",
        "WrongSelection",
    ),
    "rollback": Variant(
        "cache", STREAM.replace("- n]", "- MISTAKE]"), "0", "n",
        "cache sliding calls=3,rollback:2,1,1 W=2 values=gaussian", "StreamDiffers[after rollback]",
    ),
    "reorder": Variant(
        "cache", STREAM.replace("self.past[rows]", "self.past[MISTAKE]"), "[0, 0]", "rows",
        "cache hca B=2 calls=2,reorder:1.0,2 m=2 values=gaussian", "StreamDiffers[after reorder]",
    ),
    "refuses": Variant(
        "cache", _STREAM_ANSWER, "out.view(0)", "pass",
        "cache sliding calls=2,1 values=gaussian", "CandidateRaised[RuntimeError]",
    ),
    "turned": Variant(
        "cache", _STREAM_ANSWER, "out = out.transpose(0, 1)", "pass",
        "cache sliding B=2 calls=1 values=gaussian", "WrongShape",
    ),
}  # fmt: skip

WITHOUT_SCRIPT = {
    "mutates": Variant(
        "attend", ATTEND, "q.mul_(scale)", "pass", "attend D=2 N=2 n=1 scale=scale-root", "InputsChanged", "inputs",
    ),
    "repeats": Variant(
        "attend", ATTEND, "attend.n = getattr(attend, 'n', 0) + 1; out = out + attend.n", "pass",
        "attend D=2 N=2 n=1", "NotRepeatable", "repeat",
    ),
    "order": Variant(
        "attend", ATTEND, "out = out if int(indices[0, 0, 0]) >= 0 else 2 * out", "pass",
        "attend D=2 N=2 n=2 values=gaussian", "OrderMatters", "order",
    ),
    "shares": Variant(
        "attend", ATTEND, "out = q.copy_(out)", "pass", "attend D=2 N=2 n=1 values=gaussian", "SharesMemory", "memory",
    ),
    "buffer": Variant(
        "attend", ATTEND, "attend.out = getattr(attend, 'out', out).copy_(out); out = attend.out", "pass",
        "attend D=2 N=2 n=1 values=gaussian", "OverwritesOutput", "memory",
    ),
    "uninitialised": Variant(
        "attend", ATTEND, f"out = out.masked_fill({_NAN}, 7)", "pass", "attend D=2 N=2 n=1 values=gaussian",
        "ReadsUninitialised", "memory",
    ),
    "previous": Variant(
        "attend", ATTEND, "attend.out = getattr(attend, 'out', out); out = attend.out.clone()", "pass",
        "attend D=2 N=2 n=1 values=gaussian", "ReturnsPrevious", "own-inputs",
    ),
    "random": Variant(
        "attend", ATTEND, "torch.rand(1)", "pass", "attend D=2 N=2 n=1", "DrawsRandom[torch's random generator]",
        "state",
    ),
    "detached": Variant(
        "attend", TRAINED, "out.detach() + 0 * (q + kv.sum())", "out", "attend D=2 N=2 n=1 sinks=drawn-sinks",
        "NoGradient[sinks]", "gradients",
    ),
    "doubled": Variant(
        "attend", TRAINED, "out + (out - out.detach())", "out", "attend D=2 N=2 n=1 values=gaussian",
        "WrongGradient[q]", "gradients",
    ),
    "stray": Variant(
        "attend", TRAINED, "out + (kv - kv.detach()).sum()", "out", "attend D=2 N=3 n=1 values=gaussian",
        "StrayGradient[kv]", "gradients",
    ),
    "ignored": Variant(
        "layer", LAYER, "named['kv_norm'] = torch.ones_like(named['kv_norm'])", "pass",
        "sliding rows=2 values=gaussian", "WeightIgnored[kv_norm]", "weights",
    ),
    "buffered": Variant(
        "layer", _ANSWER, "layer.out = getattr(layer, 'out', out); out = layer.out.clone()", "pass",
        "hca rows=1 values=gaussian", "ReturnsPrevious", "own-inputs",
    ),
    "consumes": Variant(
        "cache", _STREAM_ANSWER, "hidden.neg_()", "pass",
        "cache sliding calls=2,1 values=gaussian", "InputsChanged", "inputs",
    ),
}  # fmt: skip
"""Laws that no script shows: the bundle says how to try the case with this package."""
