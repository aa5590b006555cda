"""What the energy that a layer loses costs the module's outputs.

The same share lost is nothing in one layer and ruins another: a small language model at 58 % of its
parameters went from a perplexity of 31.4 to 56.6 where every layer's share counted alike, its head
first, and to 32.9 where shares were weighed so (benchmarks/pruning/weighed.json).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from compressor.factorization import pairs
from compressor.factorization.candidates import Candidate
from compressor.factorization.spectrum import Spectrum, pair_of
from compressor.recovery.losses import distance
from compressor.sources.torch_io import call

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 32  # which every layer costs a pass over
_LEAST = 1e-9


def stakes(
    module: nn.Module,
    found: Sequence[Candidate],
    spectra: Mapping[str, Spectrum],
    given: Sequence[Sequence[Tensor]],
    told: Callable[[float, str], None],
) -> dict[str, float]:
    """Candidate → change of the outputs for each share of its energy lost.

    Measured with the layer alone at half of its highest rank, on the batches `given`; the change is
    in units of the outputs' variance. `told` hears the share done and the layer.
    """
    import torch

    tried, weights = copy.deepcopy(module).eval(), {}
    with torch.no_grad():
        wanted = [call(tried, batch) for batch in given]
        for i, one in enumerate(found):
            told(i / len(found), one.name)
            rank = max(1, one.most // 2)
            whole = tried.get_submodule(one.name)
            pairs.put(tried, one.name, pair_of(one.layer, spectra[one.name], rank))
            pieces = zip(given, wanted, strict=True)
            change = sum(float(distance(call(tried, batch), aim)) for batch, aim in pieces)
            pairs.put(tried, one.name, whole)
            weights[one.name] = change / len(given) / max(_LEAST, spectra[one.name].lost(rank))
    return weights
