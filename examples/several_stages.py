"""One object with several stages: every attribute with the name of a stage is one.

csa-spec check several_stages:kernels
csa-spec check several_stages:kernels --stage select
"""

import official_sparse_attn
import torch_topk

from csa_spec import Capabilities

# Adapter: the kernels under test are those of the other examples.


class Kernels:
    """Stages of one library."""

    capabilities = Capabilities(dtypes={"float32", "bfloat16", "float16"})
    attend = staticmethod(official_sparse_attn.attend)
    select = staticmethod(torch_topk.select)


kernels = Kernels()
